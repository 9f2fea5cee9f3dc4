"""BatchNorm over processes; the rest of sharding needs two of them (tests/distributed)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_fst.training import sharding
from tests import tiny


def options(device: str, processes: int = 2, wanted: bool = True) -> SimpleNamespace:
    return SimpleNamespace(sync_batchnorm=wanted, world_size=processes, device=torch.device(device))


def test_batch_norm_of_several_gpus_is_synchronized_under_the_same_names():
    network = tiny.model(batch_norm=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    sharding.synchronize_batchnorm(network, options("cuda"))
    assert isinstance(network.norm, nn.SyncBatchNorm)
    after = network.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_on_cpus_it_stays_and_a_warning_says_so(monkeypatch):
    said, network = [], tiny.model(batch_norm=True)
    monkeypatch.setattr(sharding.logger, "warning_once", said.append)
    sharding.synchronize_batchnorm(network, options("cpu"))
    assert type(network.norm) is nn.BatchNorm2d
    assert said == [
        "sync_batchnorm needs GPUs but the device is 'cpu': BatchNorm takes the statistics of each process's own images."
    ]


@pytest.mark.parametrize("asked", [options("cuda", processes=1), options("cuda", wanted=False)])
def test_one_process_or_none_asked_for_changes_nothing(asked):
    network = tiny.model(batch_norm=True)
    sharding.synchronize_batchnorm(network, asked)
    assert type(network.norm) is nn.BatchNorm2d
