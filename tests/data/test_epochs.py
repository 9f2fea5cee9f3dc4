"""Who tells the sampler which epoch it is: accelerate and Trainer but in one case, for which there is a callback."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader
from transformers import Trainer

from hf_fst.data.pairing import DrawSampler, Pairs, collate
from hf_fst.training.callbacks import EpochOfDraws
from tests import tiny


def told_epoch(processes: int, skipped: int) -> int:
    """The epoch a sampler is in after what Trainer does at the start of epoch 3."""
    pairs = Pairs(tiny.images(8))
    sampler = DrawSampler(pairs)
    loader = DataLoader(pairs, batch_size=2, sampler=sampler, collate_fn=collate)
    loader = prepare_data_loader(loader, num_processes=processes, process_index=0, put_on_device=False)
    if skipped:
        loader = skip_first_batches(loader, skipped)
    loader.set_epoch(3)
    wrapped = getattr(getattr(loader, "batch_sampler", None), "batch_sampler", None)
    if hasattr(wrapped, "set_epoch"):
        wrapped.set_epoch(3)
    return sampler.epoch


def test_these_are_the_lines_of_trainer_that_tell_it():
    source = inspect.getsource(Trainer._run_epoch)
    assert "train_dataloader.set_epoch(epoch)" in source and "underlying_sampler.set_epoch(epoch)" in source


@pytest.mark.parametrize(("processes", "skipped", "epoch"), [(1, 0, 3), (1, 1, 3), (2, 0, 3), (2, 1, 0)])
def test_only_several_processes_that_resume_inside_an_epoch_are_not_told(processes, skipped, epoch):
    assert told_epoch(processes, skipped) == epoch


@pytest.mark.parametrize(("position", "epoch"), [(None, 0), (0.0, 0), (3.25, 3), (4.0, 4)])
def test_the_callback_tells_the_epoch_that_begins(position, epoch):
    sampler = DrawSampler(Pairs(tiny.images(2)))
    EpochOfDraws(SimpleNamespace(draws=sampler)).on_epoch_begin(None, SimpleNamespace(epoch=position), None)
    assert sampler.epoch == epoch
