"""Other methods' objectives on two processes of two images are those on one of four."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.distributed.methods import RUNS, everything

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes holds after its runs."""
    directory = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "tests.distributed.methods", str(directory)], cwd=ROOT, env=environment, check=True, timeout=600
    )
    return [torch.load(directory / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process holds."""
    return everything(tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("run", [f"{name}, {rule} x{n}" for name, rule, n in RUNS])
def test_two_processes_of_two_images_are_one_of_four(two, one, run):
    for network in ("student", "teacher"):
        assert tiny.same(two[0][run][network], two[1][run][network])
        assert tiny.distance(two[0][run][network], one[run][network]) < 1e-12
