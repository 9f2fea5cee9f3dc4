"""A recipe that trains in a second, and the files it needs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import yaml

from tests.device import USE_CPU

MODEL = {
    "model_type": "segformer",
    "hidden_sizes": [8, 8, 8, 8],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 1, 1],
    "sr_ratios": [1, 1, 1, 1],
    "decoder_hidden_size": 8,
}
KEYS = {
    "model_config": MODEL,
    "crop_size": 32,
    "rule": "mean_teacher",
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": "1e-3",
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "logging_steps": 1,
    "load_best_model_at_end": True,
    "disable_tqdm": True,
    "report": False,
    "use_cpu": USE_CPU,
}
STREET = {
    "dataset": "street",
    "dataset_options": {"look": "synthetic", "size": [32, 48], "num_train": 4, "num_validation": 2, "num_test": 2},
    "unlabeled_options": {"look": "real", "size": [32, 48], "num_train": 4, "num_validation": 2, "num_test": 2},
}


def write(path: Path, *keys: dict, **more) -> str:
    """Writes the recipe of `KEYS`, `keys` and `more` and gives its path."""
    values = dict(KEYS)
    for part in (*keys, more):
        values |= part
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def folders(root: Path, count: int = 4, ids: int = 2) -> dict[str, object]:
    """Two folders of random images, one with masks of `ids` classes; the keys that name them."""
    rng = np.random.default_rng(0)
    for side in ("labeled", "unlabeled"):
        (root / side / "images").mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(root / side / "images" / f"{i}.png")
    (root / "labeled" / "masks").mkdir()
    for i in range(count):
        mask = rng.integers(0, ids, (40, 48), dtype=np.uint8)
        PIL.Image.fromarray(mask).save(root / "labeled" / "masks" / f"{i}.png")
    names = {str(i): f"class {i}" for i in range(ids)}
    (root / "labeled" / "id2label.json").write_text(json.dumps(names))
    return {
        "dataset": "folder",
        "data_dir": str(root / "labeled"),
        "unlabeled_dataset": "folder",
        "unlabeled_data_dir": str(root / "unlabeled"),
        "unlabeled_options": {"masks": None},
        "eval_split": False,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "save_strategy": "no",
    }
