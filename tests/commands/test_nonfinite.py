"""Weights that are not finite are refused by every command that loads them."""

from __future__ import annotations

import shutil

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch

from hf_fst import cli
from hf_fst.data.about import ABOUT
from tests.evaluation.conftest import tiny_model
from tests.publishing.conftest import make_facts
from tests.recipes import tiny


def spoil(path, value: float) -> str:
    """Puts one value into the last tensor of a safetensors file; gives the tensor's name."""
    tensors = safetensors.torch.load_file(path)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[0] = value
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    return name


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run's directory in which one weight of the student and of the teacher is not finite, and an image."""
    folder = tmp_path_factory.mktemp("model")
    for place, value in ((folder, float("nan")), (folder / "student", float("-inf"))):
        tiny_model(0).save_pretrained(place)
        spoil(place / "model.safetensors", value)
    make_facts(classes=["sky", "road", "car", "tree"], evaluations=[]).save(folder)
    (folder / "images").mkdir()
    PIL.Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(folder / "images/1.png")
    return folder


COMMANDS = {
    "eval": ["street", "--options", "size=[32, 32]", "num_train=1", "num_validation=1", "num_test=1"],
    "predict": ["IMAGES", "-o", "OUT"],
    "label": ["IMAGES", "-o", "OUT"],
    "export": ["-o", "OUT/x.onnx"],
    "demo": [],
    "push": ["me/model", "--token", "none"],
    "card": [],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_names_them(says, model, tmp_path, name):
    words = {"IMAGES": str(model / "images"), "OUT": str(tmp_path / "out"), "OUT/x.onnx": str(tmp_path / "x.onnx")}
    sentence = says([name, str(model), *(words.get(word, word) for word in COMMANDS[name])], 1)
    assert sentence.startswith("1 of the tensors in ") and "hold values that are not finite, the first is " in sentence
    assert "use an earlier checkpoint" in sentence and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["eval", "predict", "label"])
def test_logits_that_overflow_are_neither_scored_nor_colored(capsys, model, tmp_path, name):
    network = tiny_model(0, num_labels=len(ABOUT["street"].classes))
    torch.nn.init.constant_(network.decode_head.classifier.weight, 3e38)
    network.save_pretrained(tmp_path / "large")
    words = {"IMAGES": str(model / "images"), "OUT": str(tmp_path / "out")}
    argv = [name, str(tmp_path / "large"), *(words.get(word, word) for word in COMMANDS[name])]
    assert cli.main(argv) == 1
    said = capsys.readouterr().err
    assert "The logits of SegformerForSemanticSegmentation are not finite" in said and "Traceback" not in said
    assert not [*tmp_path.rglob("*.png")]


@pytest.mark.parametrize("name", ["eval", "predict"])
def test_the_student_is_looked_at_too(says, model, tmp_path, name):
    words = {"IMAGES": str(model / "images"), "OUT": str(tmp_path / "out")}
    argv = [name, str(model), *(words.get(word, word) for word in COMMANDS[name]), "--student"]
    assert f"{model}, subfolder student hold" in says(argv, 1)


def test_a_training_starts_neither_from_them_nor_goes_on_with_them(says, model, tmp_path):
    out = tmp_path / "out"
    recipe = tiny.write(tmp_path / "r.yaml", tiny.STREET)
    options = ["--model", str(model), "--model_config", "null", "--replace_head", "-o", str(out)]
    assert "hold values that are not finite" in says(["train", recipe, *options], 1)
    assert not out.exists()


def test_a_run_does_not_go_on_from_a_checkpoint_with_them(says, tmp_path):
    from hf_fst.training.checkpoints import mark_complete

    out = tmp_path / "out"
    argv = ["train", tiny.write(tmp_path / "r.yaml", tiny.STREET), "-o", str(out)]
    assert cli.main(argv) == 0
    shutil.rmtree(out / "checkpoint-2")
    (out / "results.json").unlink()
    checkpoint = out / "checkpoint-1"
    name = spoil(checkpoint / "teacher/model.safetensors", float("nan"))
    (checkpoint / "complete.json").unlink()
    mark_complete(checkpoint, 1, {"rule": "mean_teacher", "model_type": "segformer"})  # it was written like this
    sentence = says([*argv, "--resume"], 1)
    assert f"1 of the tensors in {checkpoint}/teacher/model.safetensors hold" in sentence and name in sentence


@pytest.mark.parametrize("content", [b"", b"{}", b"not weights at all, but a page of some server"])
def test_a_file_that_is_no_weights_is_not_published(says, model, tmp_path, content):
    for name in ("config.json", "fst_run.json"):
        shutil.copy(model / name, tmp_path / name)
    (tmp_path / "model.safetensors").write_bytes(content)
    sentence = says(["push", str(tmp_path), "me/model", "--token", "none"], 1)
    assert f"{tmp_path}/model.safetensors cannot be read" in sentence
