"""What a look-ahead leaves behind: nothing but another teacher."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from hf_fst.errors import UserError
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.method.rules import DeepFST, ImprovedFST, NaiveFST, WideFST
from tests import tiny
from tests.device import DEVICE, noise_state
from tests.shampoo import Shampoo

RULES = [NaiveFST(), ImprovedFST(), DeepFST(3), DeepFST(2, "different"), WideFST(3), WideFST(2, "same", "present")]


class Counting(torch.optim.SGD):
    """Counts its steps in the parameter groups, as optimizers without a schedule do."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        for group in self.param_groups:
            group["count"] = 0

    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] += 1
        return super().step(closure)


class Numbered(torch.optim.SGD):
    """Keeps numbers that are not tensors for each parameter."""

    def step(self, closure=None):
        super().step(closure)
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            self.state[p]["count"] = self.state[p].get("count", 0) + 1
            self.state[p]["kind"] = f"step {self.state[p]['count']}"


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01}),
    "amsgrad": (torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.01}),
    "counting": (Counting, {"lr": 0.1}),
    "numbered": (Numbered, {"lr": 0.1}),
    "nested": (Shampoo, {"lr": 0.1}),
}


def state_of(trainer) -> dict:
    """Copies of all that belongs to the student and of all randomness."""
    optimizer = trainer.optimizer.optimizer
    return {
        "weights": tiny.weights(trainer.model),
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "schedule": copy.deepcopy(trainer.lr_scheduler.state_dict()),
        "noise": [*noise_state(), torch.from_numpy(np.random.get_state()[1].copy())],
        "position": np.random.get_state()[2],
        "python": random.getstate(),
    }


def assert_equal(before, after, path="state"):
    """Bitwise equality of nested dicts, lists and tensors."""
    assert type(before) is type(after), path
    if isinstance(before, torch.Tensor):
        assert torch.equal(before, after), path
    elif isinstance(before, dict):
        assert before.keys() == after.keys(), path
        for key in before:
            assert_equal(before[key], after[key], f"{path}.{key}")
    elif isinstance(before, list | tuple):
        assert len(before) == len(after), path
        for i, pair in enumerate(zip(before, after, strict=True)):
            assert_equal(*pair, f"{path}[{i}]")
    else:
        assert before == after, path


class Watched:
    """A rule that compares the student before and after the rule inside it."""

    def __init__(self, rule, trainer):
        self.rule, self.trainer, self.steps = rule, trainer, 0

    def look_ahead(self, step):
        random.random(), np.random.rand()  # the run itself may draw from these
        before = state_of(self.trainer)
        teacher = tiny.weights(self.trainer.teacher.model)
        self.rule.look_ahead(step)
        assert_equal(before, state_of(self.trainer))
        assert all(p.grad is None for p in self.trainer.model.parameters())
        assert self.trainer.model.training
        self.steps += not tiny.same(teacher, tiny.weights(self.trainer.teacher.model))


class Drawing(tiny.TinySegmenter):
    """Draws from numpy and Python too, as an augmentation inside an objective might."""

    def forward(self, pixel_values, labels=None):
        if self.training:
            pixel_values = pixel_values * (1 + 0.1 * np.random.rand() + 0.1 * random.random())
        return super().forward(pixel_values, labels)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize(
    "optimizer",
    [name if name in ("adamw", "nested") else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS],
)
def test_student_optimizer_and_randomness_are_bitwise_what_they_were(tmp_path, rule, optimizer):
    torch.manual_seed(0)
    network = Drawing(tiny.TinyConfig(num_labels=3, batch_norm=True, dropout=0.3)).to(DEVICE, torch.float64)
    options = {"optimizer_cls_and_kwargs": OPTIMIZERS[optimizer], "rule": rule}
    trainer = tiny.trainer(
        tmp_path, network, trainer_options=options, teacher_momentum=0.9, momentum_warmup=False, learning_rate=0.05
    )
    watched = trainer.rule = Watched(rule, trainer)
    trainer.train()
    assert watched.steps == 3  # the first, at which the optimizer has no state yet, among them


LABELED_BY_A_TEACHER = [name for name, kind in OBJECTIVES.items() if kind.needs_unlabeled and not kind.fixed_labels]


@pytest.mark.parametrize(
    "rule", [DeepFST(2, "different"), pytest.param(WideFST(2, "same"), marks=pytest.mark.slow)], ids=repr
)
@pytest.mark.parametrize("objective", LABELED_BY_A_TEACHER)
def test_so_it_is_with_every_objective_with_all_that_it_draws(tmp_path, objective, rule):
    network = tiny.network_of(objective, batch_norm=True, dropout=0.3)
    options = {"objective": objective, "teacher_momentum": 0.9, "momentum_warmup": False, "learning_rate": 0.05}
    trainer = tiny.trainer(tmp_path, network, trainer_options={"rule": rule}, **options)
    watched = trainer.rule = Watched(rule, trainer)
    trainer.train()
    assert watched.steps == 3


def test_the_real_step_draws_the_noise_of_the_first_virtual_one(tmp_path):
    class Noisy(tiny.TinySegmenter):
        seen = []

        def forward(self, pixel_values, labels=None):
            output = super().forward(pixel_values, labels)
            if self.training:
                self.seen.append(self.drop(torch.ones(50)))
            return output

    torch.manual_seed(0)
    network = Noisy(tiny.TinyConfig(num_labels=3, dropout=0.5)).double()
    trainer = tiny.trainer(tmp_path, network, rule="fst_d", lookahead_steps=2, max_steps=1)
    trainer.train()
    # two terms a step: labelled and unlabelled; virtual, virtual, real
    labeled = [Noisy.seen[i] for i in (0, 2, 4)]
    assert torch.equal(labeled[0], labeled[2]) and not torch.equal(labeled[0], labeled[1])
    assert not torch.equal(Noisy.seen[0], Noisy.seen[1])


def test_carry_puts_back_parameters_alone(tmp_path):
    trainer = tiny.trainer(
        tmp_path, tiny.model(batch_norm=True), rule="fst_d", lookahead_state="carry", max_steps=1, learning_rate=0.1
    )
    seen = {}

    class Look:
        def look_ahead(self, step):
            DeepFST(3).look_ahead(step)
            seen["buffers"] = trainer.model.norm.num_batches_tracked.item()
            seen["state"] = [state["step"].item() for state in trainer.optimizer.state.values()]
            seen["same"] = tiny.same([p.detach() for p in trainer.model.parameters()], seen["start"])

    seen["start"] = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.rule = Look()
    trainer.train()
    assert seen["same"]
    assert seen["buffers"] == 6  # three virtual steps of two forwards
    assert seen["state"] == [3] * len(list(trainer.model.parameters()))


def test_frozen_weights_stay_and_have_no_memory_of_the_present(tmp_path):
    network = tiny.model(batch_norm=True)
    network.stem.requires_grad_(False)
    stem = network.stem.weight.clone()
    trainer = tiny.trainer(tmp_path, network, rule="fst_w", learning_rate=0.1)
    trainer.train()
    assert torch.equal(network.stem.weight, stem)
    assert torch.equal(trainer.teacher.model.stem.weight, stem)
    assert len(trainer.context.present.kept) == 4 + 3  # norm and head, and the norm's buffers


@pytest.mark.parametrize("rule", [DeepFST(2), WideFST(2)], ids=repr)
def test_weights_that_are_freed_or_frozen_in_the_middle_of_a_run_are_put_back_too(tmp_path, rule):
    network = tiny.model(batch_norm=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05)

    class Freeze(TrainerCallback):
        """The stem learns at the second and third step alone."""

        def on_step_begin(self, args, state, control, **kwargs):
            network.stem.requires_grad_(state.global_step in (1, 2))

    network.stem.requires_grad_(False)
    stem = [network.stem.weight.clone()]
    options = {"optimizers": (optimizer, None), "rule": rule}
    trainer = tiny.trainer(tmp_path, network, callbacks=[Freeze()], trainer_options=options, max_steps=4)
    watched = trainer.rule = Watched(rule, trainer)
    follow = trainer.rule.look_ahead

    def look(step):
        stem.append(network.stem.weight.clone())
        follow(step)

    trainer.rule.look_ahead = look
    trainer.train()
    assert watched.steps == 4
    moved = [not torch.equal(a, b) for a, b in zip(stem[1:], [*stem[2:], network.stem.weight], strict=True)]
    assert moved == [False, True, True, False]


@pytest.mark.parametrize("rule", [DeepFST(3), WideFST(2)], ids=repr)
def test_memory_of_the_present_is_allocated_once_and_nothing_is_deep_copied(tmp_path, monkeypatch, rule):
    def forbidden(*args, **kwargs):
        raise AssertionError("something was deep-copied in a step")

    class Guard(TrainerCallback):
        """Forbids copies within a step; afterwards asks where the memory for the present lies."""

        def on_step_begin(self, args, state, control, **kwargs):
            self.patches = pytest.MonkeyPatch()
            self.patches.setattr(copy, "deepcopy", forbidden)
            self.patches.setattr("hf_fst.method.teacher.deepcopy", forbidden)

        def on_step_end(self, args, state, control, **kwargs):
            self.patches.undo()
            present = trainer.context.present
            presents.append(present)
            places.append([t.data_ptr() for t in present.kept])
            moments.append([t.data_ptr() for t in present.kept_state])

    presents, places, moments = [], [], []
    trainer = tiny.trainer(tmp_path, callbacks=[Guard()], trainer_options={"rule": rule}, max_steps=4)
    trainer.train()
    assert all(present is presents[0] for present in presents)
    assert places == [places[0]] * 4
    # Adam has three tensors for each of the four parameters, but none before its first step
    assert len(moments[1]) == 12 and moments[1:] == [moments[1]] * 3 and not moments[0]


class Projector:
    """Something with a memory of its own, as some optimizers keep it."""


class Projecting(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        self.state[self.param_groups[0]["params"][0]]["projector"] = Projector()


def test_state_that_cannot_be_put_back_is_refused_unless_it_may_stay(tmp_path):
    options = {"optimizer_cls_and_kwargs": (Projecting, {"lr": 0.1})}
    tiny.trainer(tmp_path / "carry", trainer_options=options, rule="fst_d", lookahead_state="carry").train()
    trainer = tiny.trainer(tmp_path, trainer_options=options, rule="fst_d")
    with pytest.raises(UserError, match="keeps a Projector in its state, .* lookahead_state 'carry'"):
        trainer.train()


def test_the_schedule_does_not_advance_in_virtual_steps(tmp_path):
    trainer = tiny.trainer(tmp_path, rule="fst_d", max_steps=4, lr_scheduler_type="linear", learning_rate=0.1)
    rates = []

    class Rates(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            rates.append(trainer.optimizer.param_groups[0]["lr"])

    trainer.add_callback(Rates())
    trainer.train()
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025], abs=1e-15)


def test_other_images_are_drawn_anew_for_each_step_and_future_and_never_from_the_epoch(tmp_path):
    labeled = tiny.images(6, 1)
    trainer = tiny.trainer(tmp_path, sets=(labeled, tiny.images(8, 2, labels=False)), rule="fst_w", max_steps=4)
    drawn, real = [], []

    class Record:
        def look_ahead(self, step):
            real.append(step.group)
            with step.imagine():
                drawn.extend(
                    (trainer.state.global_step, k, group) for k, group in enumerate(step.groups(3, "different"))
                )

    trainer.rule = Record()
    trainer.train()
    assert [(t, k) for t, k, _ in drawn] == [(t, k) for t in range(4) for k in range(3)]
    for t, k, group in drawn:
        expected = [trainer.pairs["ahead", t, k, i]["pixel_values"] for i in range(2)]
        assert torch.equal(group[0]["pixel_values"].cpu(), torch.stack(expected))
    # the epoch's images come in the order they would have had without a look-ahead
    order = [trainer.pairs[i]["pixel_values"] for i in range(8)]
    assert torch.equal(torch.cat([g[0]["pixel_values"].cpu() for g in real]), torch.stack(order))


def test_no_virtual_step_on_other_images_ends_though_workers_wait(tmp_path):
    trainer = tiny.trainer(
        tmp_path,
        rule="fst_d",
        lookahead_steps=0,
        lookahead_batches="different",
        dataloader_num_workers=1,
        max_steps=2,
    )
    trainer.train()
    assert trainer.state.global_step == 2
