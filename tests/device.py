"""The device that tests run on, and what belongs to it."""

from __future__ import annotations

import os

import torch

DEVICE = torch.device(os.environ.get("HF_FST_TEST_DEVICE", "cpu"))
USE_CPU = DEVICE.type == "cpu"


def on_device(value):
    """`value` with every tensor in its dicts and lists on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(DEVICE)
    if isinstance(value, dict):
        return {key: on_device(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_device(item) for item in value)
    return value


def noise_state() -> list[torch.Tensor]:
    """The states of torch's random number generators, that of the device among them."""
    return [torch.get_rng_state(), *([] if USE_CPU else [torch.cuda.get_rng_state(DEVICE)])]


def set_noise_state(states: list[torch.Tensor]) -> None:
    """Put back what `noise_state` gave."""
    torch.set_rng_state(states[0])
    if not USE_CPU:
        torch.cuda.set_rng_state(states[1], DEVICE)
