"""The wheel holds all that a run needs: it is built, installed into an environment of its own, and trains by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = "{look: %s, size: [32, 48], num_train: 4, num_validation: 2, num_test: 2}"


def call(*words: object, folder: Path) -> str:
    """What a command prints, run in `folder` without this repository on its path."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    result = subprocess.run(
        [str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The programs of an environment with the wheel, whose other packages are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "hf_fst", source / "hf_fst", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    call(*pip, "wheel", "--no-index", "--no-build-isolation", "--no-deps", "-w", folder, source, folder=folder)
    [wheel] = folder.glob("*.whl")
    assert wheel.name.startswith("hf_fst-0.2.0-")
    venv.create(folder / "env", symlinks=True)
    programs = folder / "env/bin"
    call(*pip, "--python", programs / "python", "install", "--no-index", "--no-deps", wheel, folder=folder)
    [packages] = (folder / "env/lib").glob("*/site-packages")
    # a line of a .pth file; those that lie there, the one of an editable hf_fst among them, are not followed
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return programs


@pytest.mark.slow
def test_the_wheel_trains_and_evaluates_from_an_empty_directory(installed, tmp_path):
    place = call(installed / "python", "-c", "import hf_fst; print(hf_fst.__file__)", folder=tmp_path)
    assert Path(place.strip()).is_relative_to(installed.parent / "lib")
    tiny = {
        **{
            "max_steps": 2,
            "eval_steps": 2,
            "save_steps": 2,
            "crop_size": "32",
            "disable_tqdm": "true",
            "use_cpu": "true",
        },
        **{"dataset_options": TINY % "synthetic", "unlabeled_options": TINY % "real"},
    }
    words = [word for key, value in tiny.items() for word in (f"--{key}", value)]
    printed = call(installed / "hf-fst", "train", "street-da", *words, folder=tmp_path)
    assert "which is the model to use, is in runs/street_da" in printed
    card = (tmp_path / "runs/street_da/README.md").read_text(encoding="utf-8")
    assert "hf-fst train street-da --max_steps 2" in card
    words = ["--options", "look=real", "num_train=1", "num_validation=2", "num_test=1", "-o", "scores"]
    call(installed / "hf-fst", "eval", "runs/street_da", "street", *words, folder=tmp_path)
    scores = json.loads((tmp_path / "scores/evaluation.json").read_text(encoding="utf-8"))
    assert 0 <= scores["mean_iou"] <= 1
