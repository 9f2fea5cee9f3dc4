"""`--dry_run` where the data is there: a few real steps, their time and memory, and nothing is left behind."""

from __future__ import annotations

import json

import pytest

from hf_fst import cli
from tests.recipes import tiny


@pytest.mark.parametrize(
    ("length", "steps"), [({"max_steps": 500}, 500), ({"max_steps": -1, "num_train_epochs": 3}, 6)]
)
def test_a_few_real_steps_are_measured(tmp_path, capsys, length, steps):
    recipe = tiny.write(tmp_path / "my.yaml", tiny.folders(tmp_path), **length)
    argv = ["train", recipe, "--dry_run", "-o", str(tmp_path / "out")]
    assert cli.main([*argv, "--json"]) == 0
    printed = capsys.readouterr()
    measured = json.loads(printed.out)
    assert measured["seconds_per_step"] > 0 and measured["peak_memory_bytes"] > 1e6
    assert measured["steps"] == steps and measured["epochs"] == length.get("num_train_epochs")
    text = " ".join(printed.err.split())
    assert "images 4 labeled, 4 unlabeled" in text and f"writes {tmp_path}/out: the teacher" in text
    assert f"s a step: {steps} steps take about" in text and " Most memory: " in text
    assert not (tmp_path / "out").exists()


def test_without_data_it_says_how_to_measure(capsys):
    assert cli.main(["train", "folders", "--dry_run", "--model_config.hidden_size", "8"]) == 0
    assert "no step was measured, since no data is named; give --data_dir" in capsys.readouterr().out
