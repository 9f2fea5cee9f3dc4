"""Recordings of what the functions of other methods' authors gave for fixed inputs; they do not come with the code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

FOLDER = Path(os.environ.get("HF_FST_RECORDINGS", Path(__file__).parents[2] / "shared/parity/competitors"))


def recorded(name: str) -> tuple[dict, dict]:
    """Inputs and outputs of a recording; the test is skipped where it is not there."""
    path = FOLDER / f"{name}.pt"
    if not path.is_file():
        pytest.skip(f"no recording {path.name}: give the folder of recordings as HF_FST_RECORDINGS")
    recording = torch.load(path, weights_only=True)
    return recording["inputs"], recording["outputs"]


def ids(labels: torch.Tensor, ignored: int = 250) -> torch.Tensor:
    """Recorded labels, uint8, as ours: int64, 255 where they are ignored."""
    return labels.long().masked_fill(labels == ignored, 255)
