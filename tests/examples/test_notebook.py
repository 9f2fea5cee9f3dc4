"""The notebook runs from top to bottom: its cells in order, as one program."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def as_python(cell: str) -> str:
    """A cell without what only Jupyter knows: `!` lines become processes, `%pip` is left out."""
    cell = re.sub(r"^%pip .*$", "", cell, flags=re.MULTILINE)
    return re.sub(r"^( *)!hf-fst (.*)$", r"\1HF_FST(f'''\2''')", cell, flags=re.MULTILINE)


def test_the_notebook_is_saved_without_outputs_and_with_the_steps_it_promises():
    assert not any(cell["outputs"] or cell["execution_count"] for cell in NOTEBOOK["cells"] if "outputs" in cell)
    commands = re.findall(r"^ *!hf-fst (\w+)", "\n".join(CELLS), re.MULTILINE)
    assert commands == ["check", "compare", "train", "predict", "card", "push"]
    assert "%pip install" in CELLS[0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_runs_from_top_to_bottom(tmp_path):
    cells = [as_python(cell) for cell in CELLS]
    hurry = [cell.replace('STEPS, BUDGET = 100, "4m"', 'STEPS, BUDGET = 10, "60m"') for cell in cells]
    assert hurry != cells
    start = "import shlex, subprocess, sys\n"
    start += (
        "def HF_FST(words): subprocess.run([sys.executable, '-m', 'hf_fst.cli', *shlex.split(words)], check=True)\n"
    )
    (tmp_path / "notebook.py").write_text("\n".join([start, *hurry]), encoding="utf-8")
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    run = [sys.executable, "notebook.py"]
    done = subprocess.run(run, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=1780)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search("^found: .*road", done.stdout, re.MULTILINE)
    assert (tmp_path / "runs/mine/model.safetensors").is_file()
    assert "license: apache-2.0" in (tmp_path / "runs/mine/README.md").read_text(encoding="utf-8")
    assert len(list((tmp_path / "predictions/overlays").iterdir())) == 40
