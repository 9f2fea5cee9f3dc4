"""Weights and inputs that follow from parameter names alone, so that recordings need not carry them."""

from __future__ import annotations

import math
import zlib

import torch


def seeded_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A float32 tensor of `shape` from the generator seeded with the CRC-32 of `name`, at a scale that suits its role."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    normal = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    role = name.split(".")[-1]
    if role == "running_var":
        values = 1 + 0.2 * normal.abs()
    elif role == "running_mean":
        values = 0.1 * normal
    elif role.startswith("gamma_"):
        values = 0.3 + 0.05 * normal
    elif role == "relative_position_bias_table":
        values = 0.2 * normal
    elif len(shape) >= 2 and role != "cls_token":
        values = normal * 1.2 / math.sqrt(math.prod(shape[1:]))
    elif role == "weight":
        values = 1 + 0.1 * normal
    else:
        values = 0.05 * normal
    return values.float()


def seeded_state(layout: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """A state dict for {name: shape}; counters of batch norms are 0."""
    return {
        name: torch.tensor(0) if name.endswith("num_batches_tracked") else seeded_weight(name, shape)
        for name, shape in layout.items()
    }


def seeded_input(shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal pixel values of `shape`."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
