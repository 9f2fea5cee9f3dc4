"""What objectives learn beside the student moves once a real step, whatever a rule imagines, and survives a resume."""

from __future__ import annotations

import pytest
import torch

from hf_fst.errors import UserError
from hf_fst.method.lookahead import Step
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.method.rules import RULES
from tests import tiny
from tests.invariants.remembering import OTHER_RULES, REMEMBERING, copied, run, trained
from tests.processes import held_by_two

AHEAD = ("naive_fst", "improved_fst", "fst_d", "fst_w")


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_every_objective_with_a_memory_is_tested_here():
    assert set(REMEMBERING) == {name for name, kind in OBJECTIVES.items() if kind.remembers}


@pytest.mark.parametrize("name", REMEMBERING)
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "supervised"])
def test_each_rule_trains_and_virtual_steps_leave_the_memory_bit_for_bit(tmp_path, monkeypatch, name, rule):
    before, gradients = [], []
    look_ahead, gradient = Step.look_ahead, Step.gradient

    def watched_look_ahead(step, rule):
        before.append(copied(step.context.objective))
        look_ahead(step, rule)
        assert same(before[-1], copied(step.context.objective))

    def counted_gradient(step, group, virtual=False):
        gradients.append(virtual)
        return gradient(step, group, virtual)

    monkeypatch.setattr(Step, "look_ahead", watched_look_ahead)
    monkeypatch.setattr(Step, "gradient", counted_gradient)
    trainer = trained(tmp_path, name, rule=rule, max_steps=3)
    assert any(gradients) == (rule in AHEAD) and gradients.count(False) == 3
    memories = [*before, copied(trainer.learning_objective)]
    assert len(memories) == 4 and memories[-1]
    # every real step moves it
    assert all(not same(first, second) for first, second in zip(memories, memories[1:], strict=False))


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_skipped_step_moves_no_memory(tmp_path, monkeypatch, name):
    memories, look_ahead = [], Step.look_ahead

    def watched_look_ahead(step, rule):
        memories.append(copied(step.context.objective))
        look_ahead(step, rule)

    monkeypatch.setattr(Step, "look_ahead", watched_look_ahead)
    labeled = tiny.images(6, 1)
    for item in labeled:
        item["pixel_values"] = item["pixel_values"] * float("nan")
    trainer = trained(
        tmp_path, name, rule="mean_teacher", sets=(labeled, tiny.images(8, 2, labels=False)), max_steps=2
    )
    assert trainer.journal.skipped["real"] == 2
    assert same(memories[0], memories[1]) and same(memories[0], copied(trainer.learning_objective))


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_resumed_run_is_the_run_that_was_not_interrupted(tmp_path, name):
    whole = run(tmp_path / "whole", name)
    run(tmp_path / "parts", name, stop=2)
    parts = run(tmp_path / "parts", name, resume=True)
    for key in ("student", "teacher", "memory"):
        assert len(whole[key]) > 0 and tiny.same(whole[key], parts[key]), key


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_checkpoint_without_a_memory_is_refused(tmp_path, name):
    tiny.trainer(tmp_path, rule="mean_teacher", save_strategy="steps", save_steps=1, max_steps=1).train()
    with pytest.raises(UserError) as error:
        trained(tmp_path, name, rule="mean_teacher", resume=True)
    assert str(error.value) == (
        f"The checkpoint {tmp_path / 'checkpoint-1'} holds no objective.pt, which this run's objective needs to resume; "
        "resume with the objective that wrote it, or give it as the model of a new run."
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes holds after its runs."""
    return held_by_two("tests.invariants.remembering", tmp_path_factory.mktemp("two"))


@pytest.mark.distributed
@pytest.mark.parametrize("name", [*REMEMBERING, *(f"{name}, {rule}" for name in REMEMBERING for rule in OTHER_RULES)])
def test_two_processes_hold_the_same_networks_and_memory(two, name):
    for key in ("student", "teacher", "memory"):
        assert len(two[0][name][key]) > 0 and tiny.same(two[0][name][key], two[1][name][key]), key


@pytest.mark.distributed
@pytest.mark.parametrize("name", [name for name, case in REMEMBERING.items() if case.split])
def test_two_processes_of_two_images_are_one_of_four(tmp_path, two, name):
    one = run(tmp_path, name, **REMEMBERING[name].split)
    for key in ("student", "teacher", "memory"):
        assert tiny.distance(two[0][f"{name}, split"][key], one[key]) < 1e-9, key


@pytest.mark.parametrize("name", [name for name, case in REMEMBERING.items() if case.split])
def test_two_micro_batches_of_two_images_are_one_of_four(tmp_path, name):
    one = run(tmp_path / "one", name, **REMEMBERING[name].split)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    accumulated = run(tmp_path / "two", name, **REMEMBERING[name].split, **options)
    for key in ("student", "teacher", "memory"):
        assert tiny.distance(accumulated[key], one[key]) < 1e-9, key
