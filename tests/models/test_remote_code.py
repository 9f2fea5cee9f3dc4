"""A saved network carries its code: it loads without this package through `trust_remote_code`."""

import json
import os
import subprocess
import sys

import torch
from transformers import AutoModelForSemanticSegmentation

from hf_fst.models import MODELS, AuxiliaryDecoders, TwoBranches
from tests.tolerance import SHARE, assert_same_weights

from .test_universal import PIXELS, adapter
from .tiny import TINY, image, tiny

# a name for each architecture of ours: the first of its builds
NAMES = {type(tiny(name)): name for name in reversed(TINY)}

LOAD = (
    f"SHARE = {SHARE}"
    + """
import json, sys
sys.modules["hf_fst"] = None  # whoever imports it fails, even if it is installed
import torch
from transformers import AutoModelForSemanticSegmentation
for folder in sys.argv[1:]:
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
    pixel_values, logits = torch.load(folder + "/expected.pt", weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, logits, rtol=0, atol=float(logits.abs().max()) * SHARE)
    print(type(model).__module__)
"""
)


def test_upload_loads_without_the_package(tmp_path):
    folders = []
    models = [(tiny(name), image(name)) for name in NAMES.values()] + [(adapter("eomt"), PIXELS)]
    branch = "deeplabv3plus-resnet101-unimatch"
    models += [(kind.of(tiny(branch)), image(branch)) for kind in (TwoBranches, AuxiliaryDecoders)]
    assert {type(model) for model, _ in models} == set(MODELS.values())
    for model, pixel_values in models:
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        with torch.no_grad():
            torch.save((pixel_values, model(pixel_values).logits), folder / "expected.pt")
        config = json.loads((folder / "config.json").read_text())
        module = type(model).__module__.split(".")[-1]
        assert config["auto_map"]["AutoModelForSemanticSegmentation"] == f"{module}.{type(model).__name__}"
        assert {f"{module}.py", "segmentation.py"} <= {file.name for file in folder.iterdir()}
        folders.append(str(folder))
        # with this package the flag is not needed, and does no harm: its own code is taken
        for options in ({}, {"trust_remote_code": True}):
            loaded = AutoModelForSemanticSegmentation.from_pretrained(folder, **options)
            assert type(loaded) is type(model)
            assert_same_weights(loaded, model)

    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD, *folders]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split(".")[0] for line in done.stdout.split()] == ["transformers_modules"] * len(MODELS)
