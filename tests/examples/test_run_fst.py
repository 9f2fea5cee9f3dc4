"""The example script and real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_fst import cli
from tests.recipes import tiny

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launch(launcher: list[str], argv: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *launcher, str(ROOT / "examples/run_fst.py"), *argv]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=400)


# what `accelerate launch` starts for several processes; on CPUs it would ask for MPI
TWO = ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"]


@pytest.mark.slow
def test_a_process_ends_with_the_exit_code_and_one_sentence(tmp_path):
    recipe = tiny.write(tmp_path / "r.yaml", tiny.STREET, teacher_momentum=2)
    result = subprocess.run(
        [sys.executable, "-m", "hf_fst.cli", "train", recipe],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=400,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == "hf-fst: teacher_momentum is 2; use a number from 0 to 1."
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_the_script_under_accelerate_is_the_run_of_the_command(tmp_path):
    recipe = tiny.write(tmp_path / "r.yaml", tiny.STREET, rule="fst_d")
    assert cli.main(["train", recipe, "-o", str(tmp_path / "command")]) == 0
    options = [
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    result = launch(["accelerate.commands.launch", *options], [recipe, "-o", str(tmp_path / "script")])
    assert result.returncode == 0, result.stderr[-3000:]
    for network in ("", "student"):
        one, two = (load_file(tmp_path / run / network / "model.safetensors") for run in ("command", "script"))
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.distributed
def test_two_processes_make_one_run(tmp_path):
    recipe = tiny.write(tmp_path / "r.yaml", tiny.STREET, rule="fst_d", per_device_train_batch_size=1)
    result = launch(TWO, [recipe, "-o", str(tmp_path / "out")])
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("The teacher is in ") == 1
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["processes"] == 2
    assert [(entry["weights"], entry["images"]) for entry in results["metrics"]] == [
        ("last", 2),
        ("best", 2),
        ("best", 2),
    ]


@pytest.mark.distributed
def test_two_processes_say_what_is_wrong_once(tmp_path):
    keys = tiny.folders(tmp_path)
    (tmp_path / "labeled/images/1.png").write_bytes(b"no picture")
    recipe = tiny.write(tmp_path / "r.yaml", keys, rule="supervised", per_device_train_batch_size=2)
    result = launch(TWO, [recipe, "-o", str(tmp_path / "out")])
    assert result.returncode == 1
    sentence = f"hf-fst: {tmp_path}/labeled/images/1.png is not an image; replace it or take it out of the dataset."
    assert result.stderr.count(sentence) == 1
