"""A model that needs code of its own: it runs only when asked for, and nobody is asked on the terminal."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from hf_fst import cli
from hf_fst.models.loading import load
from tests.evaluation.conftest import NAMES, tiny_model
from tests.prediction.test_predict import noise
from tests.recipes import tiny as recipe

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


def words(command, model, folder) -> list[str]:
    """A command line for the model; what it writes lies in `folder`/out."""
    pixels = noise(folder / "images/a.png")
    mask = np.zeros(Image.open(pixels).size[::-1], np.uint8)
    mask[:, ::2] = 3
    (folder / "masks").mkdir()
    Image.fromarray(mask).save(folder / "masks/a.png")
    (folder / "id2label.json").write_text(json.dumps(NAMES))
    out = ["-o", str(folder / "out")]
    more = {
        "predict": [str(folder / "images"), *out],
        "label": [str(folder / "images"), *out],
        "eval": ["folder", "--data_dir", str(folder), "--split", "train", *out],
        "export": ["-o", str(folder / "out/model.onnx"), "--size", "32,32"],
        "demo": [],
    }
    if command == "train":
        values = {"model": str(model), "model_config": None, "replace_head": True}
        return ["train", recipe.write(folder / "run.yaml", recipe.STREET, values), *out]
    return [command, str(model), *more[command]]


COMMANDS = ["predict", "label", "eval", "export", "demo", "train"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_with_the_flag_to_give(foreign, tmp_path, capsys, command):
    assert cli.main(words(command, foreign, tmp_path)) == 1
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-fst: ")]
    assert sentence == (
        f"hf-fst: {foreign} needs code that comes with it, which is not run unasked; read that code, then give "
        "--trust_remote_code (in Python trust_remote_code=True)."
    )
    assert not (tmp_path / "out").exists() and not list((tmp_path / "modules").rglob("ran"))


@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("export", "demo") else name for name in COMMANDS],
)
def test_with_the_flag_it_runs(foreign, tmp_path, monkeypatch, command):
    launched = []
    monkeypatch.setattr("hf_fst.prediction.demo.launch_page", lambda page, **options: launched.append(page))
    assert cli.main([*words(command, foreign, tmp_path), "--trust_remote_code"]) == 0
    assert launched or any((tmp_path / "out").iterdir())


def test_loading_in_python_does_not_ask_either(foreign):
    with pytest.raises(ValueError, match="give --trust_remote_code"):
        load(foreign)


def test_code_of_an_image_processor_alone_is_refused_alike(foreign, tmp_path, capsys):
    tiny_model(1).save_pretrained(foreign)
    about = {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.OwnConfig"}}
    (foreign / "preprocessor_config.json").write_text(json.dumps(about))
    assert cli.main(words("predict", foreign, tmp_path)) == 1
    said = capsys.readouterr().err
    assert f"The image processor of {foreign} needs code that comes with it" in said and not (foreign / "ran").exists()
