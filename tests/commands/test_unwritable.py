"""Places that cannot be written to are refused before the work is done."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from tests.evaluation.conftest import tiny_model
from tests.recipes import tiny

COMMANDS = {
    "predict": ["MODEL", "IMAGES", "-o", "OUT"],
    "label": ["MODEL", "IMAGES", "-o", "OUT"],
    "export": ["no-model", "-o", "OUT/model.onnx"],
    "eval": ["no-model", "street", "--options", "size=[32, 32]", "num_train=1", "-o", "OUT"],
    "convert": ["no-file", "--model", "deeplabv2-resnet50", "--overwrite", "-o", "OUT"],
    "train": ["RECIPE", "-o", "OUT"],
    "compare": ["RECIPE", "--budget", "60m", "-o", "OUT"],
    "check": ["RECIPE", "--json", "OUT/found.json"],
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_in_the_place_of_a_folder_is_one_sentence(says, tmp_path, name, inside):
    tiny_model(0).save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    PIL.Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(tmp_path / "images/1.png")
    (tmp_path / "file").write_text("precious")
    out = tmp_path / "file" / "runs" if inside else tmp_path / "file"
    words = {"MODEL": str(tmp_path / "model"), "IMAGES": str(tmp_path / "images")}
    words |= {"RECIPE": tiny.write(tmp_path / "r.yaml", tiny.STREET)}
    sentence = says([name, *(words.get(word, word.replace("OUT", str(out))) for word in COMMANDS[name])], 1)
    assert str(out) in sentence and sentence.endswith(("give another place.", "give another output_dir.", "another."))
    assert (tmp_path / "file").read_text() == "precious"
    assert not {path.suffix for path in tmp_path.iterdir()} & {".part", ".lock"}
