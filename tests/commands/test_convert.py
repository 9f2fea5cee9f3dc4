"""`hf-fst convert` writes a model directory with class names."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from hf_fst import cli
from hf_fst.models import BUILDS
from tests.models.test_convert import TINY, image, published_state, save


def test_convert_writes_a_model_with_class_names(says, capsys, monkeypatch, tmp_path):
    name = "deeplabv2-resnet50"
    entry = BUILDS[name]
    monkeypatch.setitem(BUILDS, name, replace(entry, options={**entry.options, **TINY[name]}))
    save(tmp_path / "x.pth", name, published_state(name), published_state(name, 0.9))
    (tmp_path / "names.json").write_text(json.dumps(["road", "sky", "car", "pole", "tree"]))
    argv = ["convert", str(tmp_path / "x.pth"), "--model", name, "-o", str(tmp_path / "out")]
    assert cli.main([*argv, "--id2label", str(tmp_path / "names.json")]) == 0
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert model.config.id2label[2] == "car"
    assert not AutoImageProcessor.from_pretrained(tmp_path / "out").do_resize
    with torch.no_grad():
        assert torch.isfinite(model(image(name)).logits).all()
    out = capsys.readouterr().out
    assert "filled all" in out and "Its image processor has ImageNet's mean and deviation" in out
    assert says(argv, 1) == (f"{tmp_path}/out is not empty; give another --output, or --overwrite to write into it.")
    assert says([*argv, "--overwrite", "--model", "deeplab"], 2).startswith("There is no network 'deeplab'; use one")
