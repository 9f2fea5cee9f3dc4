"""Losses and gradients that are not finite, in virtual steps and in the real one, under every rule."""

from __future__ import annotations

import pytest
import torch

from hf_fst.method.rules import RULES, DeepFST, ImprovedFST, MeanTeacher, NaiveFST, Supervised, WideFST
from tests import tiny

# rule, virtual steps of one real one
SAME = [
    (Supervised(), 0),
    (MeanTeacher(), 0),
    (NaiveFST(), 1),
    (ImprovedFST(), 1),
    (DeepFST(3), 3),
    (WideFST(2, "same"), 2),
    (WideFST(2, "same", "present"), 2),
]
OTHER = [
    (NaiveFST("different"), 1),
    (ImprovedFST("different"), 1),
    (DeepFST(2, "different"), 2),
    (WideFST(2), 2),
    (WideFST(3, "different", "present"), 3),
]


def test_every_rule_is_here():
    assert {type(rule) for rule, _ in SAME} == set(RULES.values())


def bad_images(count, value):
    items = tiny.images(count)
    for item in items:
        item["pixel_values"] = torch.full_like(item["pixel_values"], value)
    return items


def trainer(directory, rule, labeled, **options):
    return tiny.trainer(
        directory,
        tiny.model(batch_norm=True),
        sets=(labeled, tiny.images(4, 2, labels=False)),
        trainer_options={"rule": rule},
        objective="supervised" if isinstance(rule, Supervised) else "pseudo_label",
        **{
            "max_steps": 4,
            "per_device_train_batch_size": 1,
            "learning_rate": 0.1,
            "weight_decay": 0.1,
            "teacher_momentum": 0.5,
            "momentum_warmup": False,
            "logging_strategy": "steps",
            "logging_steps": 1,
            **options,
        },
    )


def finite(trained) -> bool:
    networks = (trained.model, trained.teacher.model)
    return all(tensor.isfinite().all() for network in networks for tensor in tiny.weights(network))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("rule", "virtual"), SAME, ids=lambda value: repr(value))
def test_one_bad_image_costs_its_step_and_the_virtual_ones_before_it(tmp_path, rule, virtual, value):
    trained = trainer(tmp_path, rule, [*tiny.images(3), *bad_images(1, value)])
    trained.train()
    assert trained.journal.skipped == {"real": 1, "virtual": virtual} and finite(trained)
    # three steps were taken, and their mean is what is told of the run
    losses = [entry["loss"] for entry in trained.state.log_history if "loss" in entry]
    assert len(losses) == 3
    last = trained.state.log_history[-1]
    assert last["train_loss"] == pytest.approx(sum(losses) / 3, abs=1e-12)


@pytest.mark.parametrize(("rule", "virtual"), OTHER, ids=lambda value: repr(value))
def test_bad_images_of_a_look_ahead_alone_cost_no_real_step(tmp_path, rule, virtual):
    trained = trainer(tmp_path, rule, tiny.images(4))
    clean = trained.lookahead_groups

    def spoiled(count, size):
        for group in clean(count, size):
            yield [{**batch, "pixel_values": batch["pixel_values"] * float("nan")} for batch in group]

    trained.lookahead_groups = spoiled
    trained.train()
    assert trained.journal.skipped == {"real": 0, "virtual": 4 * virtual} and finite(trained)


@pytest.mark.parametrize(("rule", "virtual"), [*SAME, *OTHER], ids=lambda value: repr(value))
def test_so_many_bad_steps_in_a_row_stop_the_run_and_say_where(tmp_path, rule, virtual):
    trained = trainer(tmp_path, rule, bad_images(4, float("nan")), max_steps=9, max_nonfinite_steps=2)
    start = [p.detach().clone() for p in trained.model.parameters()]
    with pytest.raises(RuntimeError) as error:
        trained.train()
    assert str(error.value) == (
        "The loss or its gradient was not finite for 2 steps in a row (last: step 2, labeled_loss, gradient); lower the "
        "learning rate or look at their images."
    )
    assert trained.journal.skipped == {"real": 2, "virtual": 2 * virtual} and finite(trained)
    assert tiny.same(start, [p.detach() for p in trained.model.parameters()])
