"""The tensors of a network at hand."""

from __future__ import annotations

import torch
from torch import nn


class Tensors:
    """Parameters and buffers of a network as `parameters()` and `buffers()` give them, without a walk through it.

    Such a walk takes milliseconds for a large network, and a look-ahead needs the lists many times a step. Tensors may be
    replaced (sharded, moved), parts may not.
    """

    def __init__(self, network: nn.Module):
        modules = list(network.modules())
        self._parameters = _places(module._parameters for module in modules)
        self._buffers = _places(module._buffers for module in modules)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """As `list(network.parameters())`."""
        return [tensors[name] for tensors, name in self._parameters]

    @property
    def buffers(self) -> list[torch.Tensor]:
        """As `list(network.buffers())`."""
        return [tensors[name] for tensors, name in self._buffers]


def _places(dictionaries) -> list[tuple[dict, str]]:
    """Where each tensor is found first."""
    places = {}
    for tensors in dictionaries:
        for name, tensor in tensors.items():
            if tensor is not None:
                places.setdefault(id(tensor), (tensors, name))
    return list(places.values())
