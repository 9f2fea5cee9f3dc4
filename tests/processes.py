"""Two processes on this machine, as `accelerate launch` would start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def on_two(module: str, *arguments: object) -> str:
    """Runs a module on two processes, waits for both, and gives what they wrote to stderr."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", module]
    done = subprocess.run(
        [*command, *map(str, arguments)], cwd=ROOT, env=ENVIRONMENT, timeout=900, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stderr


def held_by_two(module: str, directory: Path) -> list[dict]:
    """Runs a module that writes what each process holds as rank0.pt and rank1.pt into a directory."""
    on_two(module, directory)
    return [torch.load(directory / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
