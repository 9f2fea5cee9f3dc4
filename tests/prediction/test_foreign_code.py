"""A model that needs code of its own: it runs only when asked for, and nobody is asked on the terminal."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import save_file

from hf_fst import cli
from hf_fst.models.loading import load
from tests.evaluation.conftest import tiny_model
from tests.prediction.test_predict import noise

CODE = """
from pathlib import Path
from transformers import SegformerConfig, SegformerForSemanticSegmentation
Path(__file__).with_name("ran").touch()

class OwnConfig(SegformerConfig):
    model_type = "own_net_of_{name}"

class OwnNet(SegformerForSemanticSegmentation):
    config_class = OwnConfig
"""


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "foreign"
    network = tiny_model(1)
    network.save_pretrained(folder)
    save_file(
        network.state_dict(), folder / "model.safetensors", metadata={"format": "pt"}
    )  # names are not translated
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_net_of_somebody", "architectures": ["OwnNet"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForSemanticSegmentation": "own.OwnNet"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE.format(name="somebody"))
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked on the terminal"))
    return folder


@pytest.mark.parametrize("command", ["predict", "label"])
def test_commands_refuse_with_the_flag_to_give(foreign, tmp_path, capsys, command):
    noise(tmp_path / "images/a.png")
    argv = [command, str(foreign), str(tmp_path / "images"), "-o", str(tmp_path / "out")]
    assert cli.main(argv) == 1
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-fst: ")]
    assert sentence == (
        f"hf-fst: {foreign} needs code that comes with it, which is not run unasked; read that code, then give "
        "--trust_remote_code (in Python trust_remote_code=True)."
    )
    assert not (tmp_path / "out").exists() and not list((tmp_path / "modules").rglob("ran"))


def test_with_the_flag_it_runs(foreign, tmp_path):
    noise(tmp_path / "images/a.png")
    argv = ["predict", str(foreign), str(tmp_path / "images"), "-o", str(tmp_path / "out"), "--trust_remote_code"]
    assert cli.main(argv) == 0
    assert (tmp_path / "out/predictions/a.png").is_file()


def test_loading_in_python_does_not_ask_either(foreign):
    with pytest.raises(ValueError, match="give --trust_remote_code"):
        load(foreign)
