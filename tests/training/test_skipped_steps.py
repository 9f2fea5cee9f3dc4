"""Steps that must not count: losses and gradients that are not finite, interruptions, batches without labels."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch

from hf_fst.method.objectives import PseudoLabelObjective
from hf_fst.method.rules import DeepFST
from tests import tiny


def spoil(items, *numbers, value=float("nan")):
    for number in numbers:
        items[number]["pixel_values"] = torch.full_like(items[number]["pixel_values"], value)
    return items


@pytest.mark.parametrize("buffers", ["copy", "ema", "batch"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_without_finite_loss_is_skipped_and_poisons_nothing(tmp_path, buffers, value):
    sets = spoil(tiny.images(6, 1), 2, value=value), spoil(tiny.images(6, 2, labels=False), 5, value=value)
    trainer = tiny.trainer(
        tmp_path,
        tiny.model(batch_norm=True),
        sets=sets,
        rule="fst_d",
        max_steps=6,
        per_device_train_batch_size=1,
        teacher_buffers=buffers,
        teacher_momentum=0.5,
        weight_decay=0.5,
        learning_rate=0.1,
        logging_strategy="steps",
        logging_steps=1,
    )
    weights = []

    class Record(DeepFST):
        def look_ahead(self, step):
            weights.append([p.detach().clone() for p in trainer.model.parameters()])
            super().look_ahead(step)

    trainer.rule = Record(2)
    trainer.train()
    weights.append([p.detach().clone() for p in trainer.model.parameters()])
    for network in (trainer.model, trainer.teacher.model):
        assert all(tensor.isfinite().all() for tensor in tiny.weights(network))
    # every image comes once in six steps: one or two are bad
    stayed = [tiny.same(a, b) for a, b in zip(weights, weights[1:], strict=False)]
    bad = sum(stayed)
    assert bad in (1, 2) and trainer.journal.skipped == {"real": bad, "virtual": 2 * bad}
    logged = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    skipped = [entry.get("skipped_real_steps", 0) for entry in logged]
    assert skipped == list(np.cumsum(stayed))  # said in the log of the very step
    assert ["loss" not in entry for entry in logged] == stayed
    assert all(math.isfinite(entry["loss"]) for entry in logged if "loss" in entry)


def test_a_virtual_step_without_finite_loss_alone_is_skipped(tmp_path, caplog):
    trainer = tiny.trainer(tmp_path, rule="fst_w", lookahead_students=2, max_steps=2, teacher_momentum=0.5)
    clean = trainer.lookahead_groups

    def spoiled(count, size):
        for k, group in enumerate(clean(count, size)):
            yield [{**b, "pixel_values": b["pixel_values"] * float("nan")} for b in group] if k == 0 else group

    trainer.lookahead_groups = spoiled
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.journal.skipped == {"real": 0, "virtual": 2}
    assert "Skipped steps: 2 virtual (of 2 in all), since their loss or gradient was not finite" in caplog.text
    assert all(tensor.isfinite().all() for tensor in tiny.weights(trainer.teacher.model))


def test_too_many_such_steps_in_a_row_stop_the_run(tmp_path):
    trainer = tiny.trainer(
        tmp_path,
        sets=(spoil(tiny.images(2), 0, 1), tiny.images(2, 2, labels=False)),
        rule="fst_d",
        max_steps=9,
        max_nonfinite_steps=3,
    )
    with pytest.raises(RuntimeError) as error:
        trainer.train()
    assert str(error.value) == (
        "The loss or its gradient was not finite for 3 steps in a row (last: step 3, labeled_loss, gradient); lower the "
        "learning rate or look at their images."
    )


class SpoiledGradient(torch.autograd.Function):
    """The identity, with a gradient that is not a number."""

    @staticmethod
    def forward(context, value):
        return value.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * float("nan")


class SpoiledObjective(PseudoLabelObjective):
    """Its labeled loss is finite, the gradient of it is not."""

    def labeled_terms(self, output, batch, totals):
        losses = super().labeled_terms(output, batch, totals)
        return {name: SpoiledGradient.apply(loss) for name, loss in losses.items()}


def test_a_finite_loss_with_a_gradient_that_is_none_moves_nobody(tmp_path):
    trainer = tiny.trainer(tmp_path, rule="fst_d", lookahead_steps=2, max_steps=2, teacher_momentum=0.5)
    trainer.learning_objective = SpoiledObjective()
    before = [tensor.clone() for tensor in trainer.model.parameters()]
    trainer.train()
    assert trainer.journal.skipped == {"real": 2, "virtual": 4}
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert all(tensor.isfinite().all() for tensor in tiny.weights(trainer.teacher.model))


def test_a_look_ahead_that_is_interrupted_leaves_the_student_in_the_present(tmp_path):
    trainer = tiny.trainer(tmp_path, rule="fst_d", lookahead_steps=2, max_steps=1, learning_rate=0.5)
    before = [tensor.clone() for tensor in trainer.model.parameters()]

    def interrupted(parameters, buffers, momentum, follow=trainer.teacher.follow):
        if any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)):
            raise KeyboardInterrupt
        follow(parameters, buffers, momentum)

    trainer.teacher.follow = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_a_stream_cannot_be_trained_on(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(tiny.images(2))

    with pytest.raises(ValueError) as error:
        tiny.trainer(tmp_path, sets=(Stream(), tiny.images(2, 2, labels=False)))
    assert str(error.value) == ("train_dataset is a stream, which cannot be indexed; give a dataset with a length.")


@pytest.mark.parametrize("rule", ["supervised", "fst_d"])
def test_a_batch_without_any_labelled_pixel_has_a_finite_loss(tmp_path, rule):
    labeled = tiny.images(2)
    for item in labeled:
        item["labels"] = torch.full_like(item["labels"], 255)
    objective = {} if rule == "supervised" else {"objective": "class_mix"}
    trainer = tiny.trainer(
        tmp_path,
        sets=(labeled, tiny.images(2, 2, labels=False)),
        rule=rule,
        logging_strategy="steps",
        logging_steps=1,
        **objective,
    )
    trainer.train()
    assert trainer.journal.skipped == {"real": 0, "virtual": 0}
    losses = [entry["labeled_loss"] for entry in trainer.state.log_history if "labeled_loss" in entry]
    assert losses == [0, 0, 0]
    assert all(tensor.isfinite().all() for tensor in tiny.weights(trainer.model))
