"""What is logged and when."""

from __future__ import annotations

import math

import pytest

from tests.behavior.both import images, make
from tests.device import on_device

KEYS = {"loss", "grad_norm", "learning_rate", "epoch", "step"}
LAST = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss"}


def entries(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"logging_strategy": "no"}, []),
        ({"logging_strategy": "steps", "logging_steps": 2}, [2, 4]),
        ({"logging_strategy": "steps", "logging_steps": 2, "logging_first_step": True}, [1, 2, 4]),
        ({"logging_strategy": "steps", "logging_steps": 0.5}, [3]),
        ({"logging_strategy": "epoch"}, [2, 4, 5]),
    ],
)
def test_the_strategy_says_when(tmp_path, kind, options, steps):
    trainer = make(kind, tmp_path, max_steps=5, **options)
    trainer.train()
    assert [entry["step"] for entry in entries(trainer)] == steps


def test_keys_of_an_entry_and_of_the_last_one(tmp_path, kind):
    trainer = make(kind, tmp_path, max_steps=2, logging_strategy="steps", logging_steps=1)
    output = trainer.train()
    first, second, last = trainer.state.log_history
    extra = {"labeled_loss"} if kind == "FSTTrainer" else set()  # the terms of the objective
    assert first.keys() == second.keys() == KEYS | extra
    assert last.keys() == LAST | {"epoch", "step"}
    printed = {"total_flos"}  # whoever prints an entry takes this out of it
    assert output.metrics == {key: value for key, value in last.items() if key not in {"step"} | printed}
    assert output.training_loss == last["train_loss"] == pytest.approx((first["loss"] + second["loss"]) / 2, abs=1e-6)
    assert (first["epoch"], second["epoch"], output.global_step) == (0.5, 1, 2)


def test_a_loss_is_the_mean_since_the_last_entry(tmp_path, kind):
    logs = {}
    for every in (1, 3):
        trainer = make(kind, tmp_path, max_steps=6, logging_strategy="steps", logging_steps=every)
        trainer.train()
        logs[every] = [entry["loss"] for entry in entries(trainer)]
    means = [sum(logs[1][i : i + 3]) / 3 for i in (0, 3)]
    assert logs[3] == pytest.approx(means, abs=1e-6)


def test_a_loss_is_that_of_the_weights_before_the_step(tmp_path, kind):
    items = images(4)
    trainer = make(
        kind,
        tmp_path,
        train=items,
        max_steps=1,
        per_device_train_batch_size=4,
        logging_strategy="steps",
        logging_steps=1,
    )
    batch = on_device(trainer.data_collator(items))
    expected = trainer.model(**batch).loss.item()
    trainer.train()
    assert entries(trainer)[0]["loss"] == pytest.approx(expected, abs=1e-6)
    assert math.isfinite(entries(trainer)[0]["grad_norm"]) and entries(trainer)[0]["grad_norm"] > 0


def test_evaluations_are_logged_with_their_step(tmp_path, kind):
    trainer = make(kind, tmp_path, max_steps=4, evaluation=images(2), eval_strategy="steps", eval_steps=2)
    trainer.train()
    found = [entry["step"] for entry in trainer.state.log_history if "eval_runtime" in entry]
    assert found == [2, 4]


def test_a_user_may_log(tmp_path, kind):
    trainer = make(kind, tmp_path, max_steps=1)
    trainer.train()
    trainer.log({"mine": 3.0})
    assert trainer.state.log_history[-1] == {"mine": 3.0, "epoch": 0.5, "step": 1}
