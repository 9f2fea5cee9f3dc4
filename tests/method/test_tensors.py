"""The tensors of a network, found without a walk through it, are those that a walk finds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_fst.method.tensors import Tensors
from tests import architectures


def same(tensors, network):
    return [*map(id, tensors.parameters)] == [*map(id, network.parameters())] and [*map(id, tensors.buffers)] == [
        *map(id, network.buffers())
    ]


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_they_are_those_of_the_network_in_its_order(name):
    network = architectures.make(name)
    tensors = Tensors(network)
    assert tensors.parameters and same(tensors, network)


def test_shared_weights_come_once_and_replaced_tensors_are_seen():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
    network[2].weight = network[0].weight
    tensors = Tensors(network)
    assert len(tensors.parameters) == 4 and same(tensors, network)
    network[0].weight = network[2].weight = nn.Parameter(torch.ones(2, 2))
    network.double()  # replaces the buffers
    assert same(tensors, network)
