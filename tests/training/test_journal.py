"""Means over the steps that were taken, worked by hand; what comes back after a resume."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from hf_fst.training.journal import Journal
from tests.device import USE_CPU


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=USE_CPU)


def step(journal, accelerator, labeled, unlabeled, number=1):
    losses = {"labeled_loss": torch.tensor(labeled), "unlabeled_loss": torch.tensor(unlabeled)}
    if journal.is_finite(losses, accelerator, False):
        journal.add(losses)
    else:
        journal.stop_after_too_many(losses, number)


def test_a_skipped_step_is_no_part_of_a_mean(accelerator):
    journal, nan = Journal(10), float("nan")
    step(journal, accelerator, 1.0, 0.5)
    step(journal, accelerator, nan, 0.5)
    step(journal, accelerator, 3.0, 2.5)
    logs = {"loss": 99.0, "learning_rate": 0.1}
    journal.tell(logs, accelerator)
    # (1 + 3) / 2 and (0.5 + 2.5) / 2
    assert logs == {
        "loss": 3.5,
        "learning_rate": 0.1,
        "labeled_loss": 2.0,
        "unlabeled_loss": 1.5,
        "skipped_real_steps": 1,
    }
    assert list(logs)[0] == "loss"
    step(journal, accelerator, 4.0, 1.0)
    last = {"train_loss": 99.0}
    journal.tell(last, accelerator)
    assert last == {"train_loss": (1.5 + 5.5 + 5.0) / 3}


def test_a_step_that_nobody_waits_for_counts_as_one_that_is_waited_for(accelerator):
    nan, (waits, later) = float("nan"), (Journal(2), Journal(2))
    for number, loss in enumerate((1.0, nan, 3.0, nan, 5.0), start=1):
        step(waits, accelerator, loss, 0.5)
        losses = {"labeled_loss": torch.tensor(loss), "unlabeled_loss": torch.tensor(0.5)}
        later.is_finite_later({"virtual": torch.tensor(nan)}, accelerator)
        bad = ~later.is_finite_later(losses, accelerator, number)
        later.add({name: value.masked_fill(bad, 0) for name, value in losses.items()})
    entries = later.entries(accelerator)
    assert entries.pop("skipped_virtual_steps") == 5 and entries == waits.entries(accelerator)
    assert entries["labeled_loss"] == 3.0 and later.in_a_row == 0
    later.is_finite_later({"loss": torch.tensor(nan)}, accelerator, 6)
    later.is_finite_later({"loss": torch.tensor(nan)}, accelerator, 7)
    with pytest.raises(RuntimeError, match=r"for 2 steps in a row \(last: step 7, loss\)"):
        later.catch_up()


def test_where_no_step_was_taken_there_is_no_loss(accelerator):
    journal = Journal(10)
    step(journal, accelerator, float("inf"), 0.5)
    for logs, expected in (
        ({"loss": 0.0, "epoch": 1.0}, {"epoch": 1.0, "skipped_real_steps": 1}),
        ({"train_loss": 0.0}, {}),
    ):
        journal.tell(logs, accelerator)
        assert logs == expected


def test_what_was_counted_comes_back_bit_for_bit(accelerator, tmp_path):
    whole, first = Journal(4), Journal(4)
    third = 1 / 3
    for journal in (whole, first):
        step(journal, accelerator, third, 0.1)
        journal.entries(accelerator)
        step(journal, accelerator, float("nan"), 0.1)
        step(journal, accelerator, 2 * third, 0.7)
        step(journal, accelerator, float("nan"), 0.1)
    first.save(tmp_path, 0, 1)
    resumed = Journal(4)
    resumed.load(tmp_path, 0, 1, torch.device("cpu"))
    for journal in (whole, resumed):
        step(journal, accelerator, 0.3, 0.9)
    assert whole.entries(accelerator) == resumed.entries(accelerator)
    assert whole.summary(accelerator) == resumed.summary(accelerator)
    assert whole.skipped == resumed.skipped == {"real": 2, "virtual": 0}


def test_steps_in_a_row_are_counted_over_a_resume(accelerator, tmp_path):
    journal = Journal(2)
    step(journal, accelerator, float("nan"), 0.0)
    journal.save(tmp_path, 0, 1)
    resumed = Journal(2)
    resumed.load(tmp_path, 0, 1, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="not finite for 2 steps in a row .last: step 8, labeled_loss"):
        step(resumed, accelerator, float("nan"), 0.0, number=8)


def test_on_another_number_of_processes_each_has_the_mean_of_those_there_were(accelerator, tmp_path):
    for process, loss in ((0, 1.0), (1, 2.0)):
        journal = Journal(2)
        step(journal, accelerator, loss, 0.0)
        journal.save(tmp_path, process, 2)
    resumed = Journal(2)
    resumed.load(tmp_path, 0, 1, torch.device("cpu"))
    assert resumed.entries(accelerator)["labeled_loss"] == 1.5
