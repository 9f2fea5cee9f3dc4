"""examples/evaluate_miou.py on a tiny tree, run as a script in this process."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import SegformerImageProcessor

from tests.evaluation.conftest import tiny_model

SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate_miou.py"


@pytest.fixture
def camvid(tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for folder, shape, top in ((split, (48, 64, 3), 256), (f"{split}annot", (48, 64), 12)):
            (tmp_path / "camvid" / folder).mkdir(parents=True)
            Image.fromarray(random.integers(0, top, shape, dtype=np.uint8)).save(
                tmp_path / "camvid" / folder / "a.png"
            )
    tiny_model(1, 11).save_pretrained(tmp_path / "model")
    SegformerImageProcessor(do_resize=False).save_pretrained(tmp_path / "model")
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_prints_the_table_and_writes_the_scores(camvid, monkeypatch, capsys):
    data = ["--dataset", "camvid", "--data_dir", camvid / "camvid", "--output_dir", camvid / "out"]
    run(monkeypatch, camvid / "model", *data, "--window", 32, "--stride", 16, "--flip", "--save_predictions")
    printed = capsys.readouterr().out
    assert "bicyclist" in printed and "1 images" in printed
    scores = json.loads((camvid / "out" / "evaluation.json").read_text())
    label = np.asarray(Image.open(camvid / "camvid" / "valannot" / "a.png"))
    assert np.sum(scores["confusion_matrix"]) == (label < 11).sum()
    assert scores["protocol"] == "full size, windows of 32 every 16, mirrored too"
    assert (camvid / "out" / "predictions" / "a.png").is_file()


def test_a_mistake_is_one_line(camvid, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, camvid / "nowhere", "--dataset", "camvid", "--data_dir", camvid / "camvid")
    assert stopped.value.code == 2
    expected = f"error: There is no directory {camvid / 'nowhere'}: give a model's directory or a Hub id.\n"
    assert capsys.readouterr().err.endswith(expected)
