"""A network from elsewhere, as docs/models.md says: the lines that stand there, with the libraries they name."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from hf_fst.method.rules import DeepFST
from tests import tiny
from tests.device import DEVICE
from tests.prediction.test_predict import noise
from tests.tolerance import assert_same_logits

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs/models.md").read_text().partition("## A network from elsewhere")[2].partition("\n## ")[0]


def code(kind: str, library: str) -> str:
    """The class of the page for a library, under a name of its own, with the lines that save its code."""
    text = SECTION.partition("```python\n")[2].partition("```")[0]
    if library == "segmentation_models_pytorch":
        network, logits = re.findall(r"`(self\.network = smp.*?|logits=self.*?)`", SECTION)
        text = re.sub(r" +make = .*\n( +)self\.network = .*", rf"\1{network}", text)
        text = re.sub(r"logits=.*", f"{logits})", text).replace("import torchvision", f"import {library} as smp")
    more = re.findall(r"`(\w+\.register_for_auto_class\(.*?\))`", SECTION)
    return "\n".join([text.replace('"foreign"', f'"{kind}"'), *more])


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torchvision", "segmentation_models_pytorch"])
def test_the_ten_lines_train_save_and_load_and_every_command_takes_the_run(tmp_path, monkeypatch, library):
    pytest.importorskip(library)
    kind = f"foreign_{library}"
    text = code(kind, library)
    assert text.count(library) >= 1 and text.count("register_for_auto_class") == 2
    (tmp_path / f"{kind}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(kind)
    torch.manual_seed(0)
    network = module.Foreign(module.ForeignConfig(id2label={0: "sky", 1: "road", 2: "car"}))
    size, dtype = (32, 32), torch.float32
    sets = tiny.images(4, 1, size, dtype=dtype), tiny.images(4, 2, size, labels=False, dtype=dtype)
    run = tmp_path / "run"
    options = {"objective": "class_mix", "max_steps": 1, "trainer_options": {"rule": DeepFST(1)}}
    trainer = tiny.trainer(run, network, sets=sets, **options)
    trainer.train()

    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    for name, trained in trainer.networks().items():
        loaded = AutoModelForSemanticSegmentation.from_pretrained(run / ("student" if name == "student" else ""))
        assert type(loaded).__name__ == "Foreign" and loaded.config.id2label[2] == "car"
        with torch.no_grad():
            assert_same_logits(loaded.to(DEVICE).eval()(pixels).logits, trained.eval()(pixels).logits)

    noise(tmp_path / "images/a.png")
    words = ["predict", str(run), str(tmp_path / "images"), "-o", str(tmp_path / "out"), "--trust_remote_code"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-m", "hf_fst", *words]  # a process that has not imported the class
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/predictions/a.png").is_file()
