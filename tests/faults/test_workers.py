"""A process that loads images and dies: one sentence, and the run goes on from its last checkpoint."""

from __future__ import annotations

import os
import re
import signal

import pytest
import torch

from tests import tiny


class Deadly(torch.utils.data.Dataset):
    """Images of which one, in a worker, kills the process that loads it, as want of memory does."""

    def __init__(self, items, deadly):
        self.items, self.deadly = items, deadly

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if self.deadly and index == 5 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.items[index]


def trainer(directory, deadly, workers=1):
    return tiny.trainer(
        directory,
        sets=(Deadly(tiny.images(8, 1), deadly), tiny.images(8, 2, labels=False)),
        rule="fst_d",
        lookahead_steps=1,
        num_train_epochs=1,
        max_steps=-1,
        per_device_train_batch_size=1,
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=1 if workers else None,
        save_strategy="steps",
        save_steps=1,
        data_seed=3,
    )


def test_a_dead_worker_ends_the_run_with_one_sentence_and_it_goes_on_without(tmp_path):
    with pytest.raises(RuntimeError) as error:
        trainer(tmp_path / "run", True).train()
    assert re.fullmatch(
        r"A process that loads images died after step (\d) \(DataLoader worker \(pid.*\) .*\); lower "
        r"dataloader_num_workers or free memory, then resume\.",
        str(error.value),
    )
    resumed = trainer(tmp_path / "run", True, workers=0)
    # the sixth image comes late enough for a checkpoint before it
    order = [resumed_index(resumed, draw) for draw in range(8)]
    assert order.index(5) >= 2
    resumed.train(resume_from_checkpoint=True)
    whole = trainer(tmp_path / "whole", False, workers=0)
    whole.train()
    assert tiny.same(tiny.weights(resumed.model), tiny.weights(whole.model))
    assert tiny.same(tiny.weights(resumed.teacher.model), tiny.weights(whole.teacher.model))


def resumed_index(trained, draw):
    trained.get_train_dataloader()
    pixels = trained.pairs[draw]["pixel_values"]
    return next(i for i, item in enumerate(trained.train_dataset.items) if torch.equal(item["pixel_values"], pixels))
