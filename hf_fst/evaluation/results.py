"""What an evaluation leaves behind: a table, JSON, a `.eval_results` file, predicted index maps, and overlays."""

from __future__ import annotations

import hashlib
import json
import math
import re
import textwrap
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from PIL import Image

from hf_fst.data.cityscapes import RAW_IDS
from hf_fst.drawing.overlays import default_palette, overlay
from hf_fst.drawing.tables import percent, text_table
from hf_fst.errors import UserError
from hf_fst.evaluation.inference import WHOLE, Look

RESULTS_FILE = "evaluation.json"
PREDICTIONS, OVERLAYS = "predictions", "overlays"


def without_nan(value: Any) -> Any:
    """The same nested value with None for numbers that are not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def slug(*parts: str | None) -> str:
    """A file name of some words, of which None is left out."""
    return re.sub(r"[^\w.-]+", "-", "-".join(filter(None, parts)))


def eval_results(dataset_id: str, task: str, mean_iou: float, notes: str) -> str:
    """The content of a file in `.eval_results`, in the Hub's format, with an mIoU in 0..1."""
    entry = EvalResultEntry(dataset_id=dataset_id, task_id=task, value=mean_iou, notes=notes)
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)


def default_folder(
    model: str, dataset: str, split: str, which: str, data_dir: str | None = None, look: Look = WHOLE, **settings: Any
) -> Path:
    """Names the folder of an evaluation: `runs/eval/<model>-<dataset>-<split>-<which>` in the current directory.

    Eight more letters follow where a setting that changes the scores is given, or the dataset is the user's own: the
    same evaluation has the same folder, another one has another.
    """
    default = asdict(WHOLE)
    given = {key: value for key, value in settings.items() if value}
    given |= {key: value for key, value in asdict(look).items() if value != default[key]}
    if dataset in ("folder", "hub"):
        given["data_dir"] = str(data_dir)
    name = slug(str(model).strip("/").replace("/", "--"), dataset, split, which)
    if given:
        name += "-" + hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs/eval", name.lstrip("-."))


def table(result: dict[str, Any], width: int | None = None) -> str:
    """The scores of `evaluate_model` as text: one line per class, then the means, in percent. `width` is that of the
    table (see `text_table`) and of the sentences below it; None for any."""
    images = f"{result['images']} image{'s' * (result['images'] != 1)}"
    speed = f"{result['images_per_second']:.3g} images/s"
    if not result["labeled"]:
        return f"{images} without labels, {speed}"
    boundary = "per_category_boundary_iou" in result
    rows = []
    for index, name in enumerate(result["classes"]):
        marked = name if index in result["scored_classes"] else f"({name})"
        row = [marked, percent(result["per_category_iou"][index]), percent(result["per_category_accuracy"][index])]
        rows.append([*row, percent(result["per_category_boundary_iou"][index])] if boundary else row)
    means = ["mean", percent(result["mean_iou"]), percent(result["mean_accuracy"])]
    rows.append([*means, percent(result["mean_boundary_iou"])] if boundary else means)
    columns = ["class", "IoU (%)", "accuracy (%)", *(["boundary IoU (%)"] if boundary else [])]
    lines = [text_table(columns, rows, width).rstrip(), ""]
    if len(result["scored_classes"]) < len(result["classes"]):
        lines.append("The means leave out the classes in brackets.")
    overall = percent(result["overall_accuracy"]), percent(result["frequency_weighted_iou"])
    below = "pixel accuracy {} %, frequency-weighted IoU {} %; {}, {}".format(*overall, images, speed)
    lines.append(below if width is None else textwrap.fill(below, max(width, 40)))
    return "\n".join(lines)


def write_scores(output_dir: str | Path, result: dict[str, Any], dataset_id: str) -> None:
    """Writes `evaluation.json` and `.eval_results/<dataset>-<split>.yaml` (the Hub's format, mIoU in 0..1)."""
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(without_nan(result), indent=2, allow_nan=False) + "\n"
    (output_dir / RESULTS_FILE).write_text(text, encoding="utf-8")
    if result["mean_iou"] is not None and not math.isnan(result["mean_iou"]):
        notes = f"mIoU of the {result['which']}, split {result['split']}, {result['protocol']}"
        content = eval_results(dataset_id, "default", round(result["mean_iou"], 6), notes)
        path = output_dir / ".eval_results" / f"{slug(dataset_id, result['split'])}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")


def image_names(dataset: datasets.Dataset) -> list[str]:
    """A file name without suffix for each row: the image file's own if no other row has it, else
    with the row's number."""
    stored = dataset.select_columns(["image"]).with_format("arrow")
    stems = []
    for batch in stored.iter(batch_size=1000):
        for chunk in batch["image"].chunks:
            stems += [Path(path or "").stem for path in chunk.field("path").to_pylist()]
    seen = Counter(stems)
    digits = len(str(max(len(stems) - 1, 0)))
    return [
        stem if stem and seen[stem] == 1 else f"{index:0{digits}d}" + (f"_{stem}" if stem else "")
        for index, stem in enumerate(stems)
    ]


class Pictures:
    """Writes the predictions of an evaluation as files.

    Args:
        output_dir: gets `predictions/<image>.png` and `overlays/<image>.jpg`.
        dataset: what is evaluated; its image files give the names.
        num_labels: number of classes.
        palette: a color [r, g, b] for each class, or None.
        indices: False, True for class indices (8 or 16 bits), or "cityscapes" for the raw ids of its test server.
        overlays: whether to lay the predictions over the images.

    Raises:
        UserError: there is no directory for the files, or Cityscapes' ids for another number of classes.
    """

    def __init__(
        self,
        output_dir: str | Path | None,
        dataset: datasets.Dataset,
        num_labels: int,
        palette: list[list[int]] | None,
        indices: bool | str,
        overlays: bool,
    ):
        if indices not in (False, True, "cityscapes"):
            raise UserError(f"save_predictions is {indices!r}, but it is False, True or 'cityscapes'.")
        if indices == "cityscapes" and num_labels != len(RAW_IDS):
            raise UserError(
                f"The model has {num_labels} classes, but Cityscapes' ids are those of its {len(RAW_IDS)}."
            )
        self.indices, self.overlays = indices, overlays
        if not (indices or overlays):
            return
        if output_dir is None:
            raise UserError("save_predictions or save_overlays is set, but output_dir is missing; give it.")
        self.folder, self.dataset = Path(output_dir), dataset
        self.names = image_names(dataset)
        self.palette = default_palette(num_labels) if palette is None else palette
        for wanted, name in ((indices, PREDICTIONS), (overlays, OVERLAYS)):
            if wanted:
                (self.folder / name).mkdir(parents=True, exist_ok=True)

    def write(self, index: int, prediction: np.ndarray) -> None:
        """Writes the predicted classes (H, W) of a row of the dataset."""
        if self.indices:
            ids = np.array(RAW_IDS)[prediction] if self.indices == "cityscapes" else prediction
            ids = ids.astype(np.uint8 if ids.max(initial=0) < 256 else np.uint16)
            Image.fromarray(ids).save(self.folder / PREDICTIONS / f"{self.names[index]}.png")
        if self.overlays:
            image = np.asarray(self.dataset[index]["image"].convert("RGB"))
            mixed = Image.fromarray(overlay(image, prediction, self.palette))
            mixed.save(self.folder / OVERLAYS / f"{self.names[index]}.jpg", quality=90)
