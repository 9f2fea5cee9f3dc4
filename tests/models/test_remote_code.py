"""A saved network carries its code: it loads without this package through `trust_remote_code`."""

import json
import os
import subprocess
import sys

import torch

from .tiny import image, tiny

NAMES = ["daformer-mit-b0", "deeplabv3plus-resnet101-cityscapes", "upernet-swin-base"]

LOAD = """
import json, sys
sys.modules["hf_fst"] = None  # whoever imports it fails, even if it is installed
import torch
from transformers import AutoModelForSemanticSegmentation
for folder in sys.argv[1:]:
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
    pixel_values, logits = torch.load(folder + "/expected.pt", weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, logits, rtol=0, atol=0)
    print(type(model).__module__)
"""


def test_upload_loads_without_the_package(tmp_path):
    folders = []
    for name in NAMES:
        folder = tmp_path / name
        model, pixel_values = tiny(name), image(name)
        model.save_pretrained(folder)
        with torch.no_grad():
            torch.save((pixel_values, model(pixel_values).logits), folder / "expected.pt")
        config = json.loads((folder / "config.json").read_text())
        module = type(model).__module__.split(".")[-1]
        assert config["auto_map"]["AutoModelForSemanticSegmentation"] == f"{module}.{type(model).__name__}"
        assert {f"{module}.py", "segmentation.py"} <= {file.name for file in folder.iterdir()}
        folders.append(str(folder))

    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD, *folders]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split(".")[0] for line in done.stdout.split()] == ["transformers_modules"] * len(NAMES)
