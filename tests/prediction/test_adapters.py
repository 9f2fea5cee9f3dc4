"""A run with LoRA is taken by every command as it is, and gives what the merged network gives."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_fst import cli
from hf_fst.models.loading import load
from tests.evaluation.conftest import NAMES
from tests.models.test_adapters import base, run  # noqa: F401  the fixtures
from tests.prediction.test_foreign_code import words


@pytest.fixture(scope="module")
def merged(run, tmp_path_factory):  # noqa: F811
    """The teacher of the run as a whole network."""
    folder = tmp_path_factory.mktemp("merged")
    for saved in load(run[0]):
        saved.save_pretrained(folder)
    return folder


def results(command: str, folder: Path) -> object:
    """Classes of the pixels or scores that a command left."""
    if command == "predict":
        return np.asarray(Image.open(folder / "predictions/a.png")).tolist()
    if command == "label":
        (row,) = datasets.load_dataset("parquet", data_dir=str(folder))["train"]
        return np.asarray(row["label"]).tolist()
    if command == "eval":
        return json.loads((folder / "evaluation.json").read_text())["confusion_matrix"]
    return None


@pytest.mark.parametrize(
    "command", ["predict", "label", "eval", "export", pytest.param("demo", marks=pytest.mark.slow)]
)
def test_commands_take_the_run_as_it_is(run, merged, tmp_path, monkeypatch, capsys, command):  # noqa: F811
    launched, found = [], []
    monkeypatch.setattr("hf_fst.prediction.demo.launch_page", lambda page, **options: launched.append(page))
    models = (run[0], merged) if command in ("predict", "label", "eval") else (run[0],)
    for index, model in enumerate(models):
        (tmp_path / str(index)).mkdir()
        assert cli.main(words(command, model, tmp_path / str(index))) == 0
        assert "MISMATCH" not in capsys.readouterr().err
        found.append(results(command, tmp_path / str(index) / "out"))
        assert launched or any((tmp_path / str(index) / "out").iterdir())
    assert found[0] == found[-1]


def test_the_card_says_how_the_adapter_is_loaded(run, base):  # noqa: F811
    card = (run[0] / "README.md").read_text()
    assert "library_name: peft" in card and "PeftModel-" not in card and "SegformerForSemanticSegmentation for" in card
    parameters = sum(parameter.numel() for parameter in load(run[0])[0].parameters())
    assert f"SegformerForSemanticSegmentation, {parameters:,} parameters, with an adapter (`peft`) that alone" in card
    code = card.split("```python\n")[1].split("image = ")[0]
    code = code.replace('name = "."', f"name = {str(run[0])!r}").replace('base = "base"', f"base = {str(base)!r}")
    variables: dict = {}
    exec(code, variables)
    assert variables["model"].config.id2label == dict(enumerate(NAMES))
    assert not any("lora" in name for name in variables["model"].state_dict())


def test_a_run_whose_base_lies_on_this_machine_is_not_pushed(run, base, capsys):  # noqa: F811
    assert cli.main(["push", str(run[0]), "alice/lora"]) == 1
    said = capsys.readouterr().err
    assert f"was trained on {base}, which is not on the Hub; publish that network first and write its Hub id" in said
