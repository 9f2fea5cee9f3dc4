"""Half precision: teacher and average stay in float32; with a gradient scaler an overflow costs its step and no more."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from hf_fst.method.rules import DeepFST, ImprovedFST, MeanTeacher, NaiveFST, Supervised, WideFST
from tests import tiny
from tests.architectures import make
from tests.plain import Plain

STEPS = 6
INTERVAL = 2  # iterations without overflow after which the scale doubles
FIRST_SCALE = 2.0**10


# bfloat16


def trained_in_bf16(directory, network, rule, **options):
    size = (32, 32)
    sets = tiny.images(4, 1, size, dtype=torch.float32), tiny.images(4, 2, size, labels=False, dtype=torch.float32)
    trainer = tiny.trainer(
        directory,
        network,
        sets=sets,
        trainer_options={"rule": rule},
        bf16=True,
        learning_rate=0.01,
        teacher_momentum=0.9,
        momentum_warmup=False,
        **options,
    )
    trainer.train()
    return trainer


def dtypes(tensors) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}


@pytest.mark.parametrize("rule", [DeepFST(2), WideFST(2, "same")])
def test_under_bf16_autocast_networks_average_and_optimizer_are_float32(tmp_path, rule):
    seen = set()
    network = make("segformer")
    network.decode_head.classifier.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    trainer = trained_in_bf16(tmp_path, network, rule)
    assert torch.bfloat16 in seen, "autocast did nothing"
    for network in trainer.networks().values():
        assert dtypes(tiny.weights(network)) == {torch.float32}
    assert dtypes(t for state in trainer.optimizer.state.values() for t in state.values()) == {torch.float32}
    # the average is not one of rounded numbers: bf16 has 8 bits, so what survives rounding to it would be equal
    moved = [p for p in trainer.teacher.model.parameters() if not torch.equal(p, p.bfloat16().float())]
    assert len(moved) > len(list(trainer.teacher.model.parameters())) // 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_student_of_half_precision_is_trained_as_the_same_numbers_in_float32(tmp_path, dtype):
    """A step of 1e-2 of Adam's is lost in the rounding of bf16 from weights of 4 on, one of 6e-5 from 0.02 on."""
    network, whole = make("segformer").to(dtype), make("segformer").to(dtype).float()
    trainer = trained_in_bf16(tmp_path, network, MeanTeacher(), save_strategy="steps", save_steps=3)
    expected = trained_in_bf16(tmp_path / "whole", whole, MeanTeacher())
    for name, student in trainer.networks().items():
        assert dtypes(tiny.weights(student)) == {torch.float32}
        assert tiny.same(tiny.weights(student), tiny.weights(expected.networks()[name]))
    saved = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert dtypes(saved.values()) == {torch.float32}


# float16 with a gradient scaler, on the CPU: the scaler is real, the overflows are made


def with_scaler(original):
    """`Trainer.create_accelerator_and_postprocess` that gives its accelerator a scaler, as fp16 on a GPU does."""

    def create(trainer):
        original(trainer)
        scaler = torch.amp.GradScaler("cpu", init_scale=FIRST_SCALE, growth_interval=INTERVAL)
        trainer.accelerator.scaler = scaler
        trainer.accelerator.unscale_gradients = lambda optimizer=None: scaler.unscale_(trainer.optimizer.optimizer)

    return create


def overflowing(network, bad: set[int]):
    """Makes the gradient of each optimizer step whose number is in `bad` infinite; a step has two loss terms."""
    calls = []

    def hook(gradient):
        calls.append(None)
        return gradient * float("inf") if (len(calls) - 1) // 2 in bad else gradient

    network.head.weight.register_hook(hook)
    return network


def scaled_run(directory, rule, bad, *, resume=None, **options):
    network = overflowing(tiny.model(), bad)
    with patch.object(
        Trainer, "create_accelerator_and_postprocess", with_scaler(Trainer.create_accelerator_and_postprocess)
    ):
        trainer = tiny.trainer(
            directory,
            network,
            trainer_options={
                "rule": rule,
                "optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
            },
            unlabeled_weight=0.7,
            teacher_momentum=0.9,
            lookahead_momentum=0.8,
            momentum_warmup=False,
            learning_rate=0.1,
            weight_decay=0.05,
            max_grad_norm=0.5,
            max_steps=STEPS,
            **options,
        )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Skipping(Plain):
    """The plain loop, where some steps do not happen; it counts the scale by hand."""

    def begin(self, bad: set[int], steps_an_iteration: int):
        self.bad, self.an_iteration, self.number, self.taken = bad, steps_an_iteration, 0, 0
        self.scale, self.clean = FIRST_SCALE, 0
        return self

    def look_ahead(self, student, optimizer, *rest):
        for settings in optimizer.param_groups:  # a schedule waits for the step that was skipped
            settings["lr"] = self.lr * (self.steps - self.taken) / self.steps
        return super().look_ahead(student, optimizer, *rest)

    def step(self, *arguments):
        overflow, real = self.number in self.bad, self.number % self.an_iteration == self.an_iteration - 1
        self.number += 1
        if overflow:
            self.scale, self.clean = self.scale / 2, 0
            return
        super().step(*arguments)
        self.taken += real
        self.clean += 1
        if self.clean == INTERVAL * self.an_iteration:
            self.scale, self.clean = self.scale * 2, 0


# the rule, its name in the plain loop, its count; iterations have `count` + 1 optimizer steps, the last is real
CASES = {
    "mean teacher, real": (MeanTeacher(), "mean_teacher", 0, {1, 4}),
    "naive, virtual": (NaiveFST(), "naive_fst", 1, {2, 8}),
    "improved, real": (ImprovedFST(), "improved_fst", 1, {1, 7}),
    "deep, virtual": (DeepFST(2), "fst_d", 2, {0, 7, 12}),
    "deep, real": (DeepFST(2), "fst_d", 2, {2, 11}),
    "deep, both": (DeepFST(2), "fst_d", 2, {0, 2, 4, 5, 9, 10, 11}),
    "wide, virtual and real": (WideFST(2, "same"), "fst_w", 2, {0, 4, 5, 13}),
    "deep, none": (DeepFST(2), "fst_d", 2, set()),
}


@pytest.mark.parametrize("case", CASES)
def test_an_overflow_costs_its_step_and_no_more_and_the_scale_is_that_of_the_iterations(tmp_path, case):
    rule, name, count, bad = CASES[case]
    trainer = scaled_run(tmp_path, rule, bad)
    student = tiny.model()
    plain = Skipping(name, count, weight=0.7, steps=STEPS).begin(bad, count + 1)
    teacher = plain.run(student, tiny.images(6, 1), tiny.images(8, 2, labels=False))
    assert tiny.distance(tiny.weights(trainer.model), tiny.weights(student)) < 1e-12
    assert tiny.distance(tiny.weights(trainer.teacher.model), tiny.weights(teacher)) < 1e-12
    scaler = trainer.accelerator.scaler
    assert scaler.get_growth_interval() == INTERVAL * (count + 1)
    assert scaler.get_scale() == plain.scale and scaler._get_growth_tracker() == plain.clean
    assert plain.number == STEPS * (count + 1) and plain.taken == STEPS - sum(b % (count + 1) == count for b in bad)


def test_the_scaler_is_carried_over_a_resume(tmp_path):
    bad = {0, 2, 4, 5, 9, 10, 11}
    whole = scaled_run(tmp_path, DeepFST(2), bad, save_strategy="steps", save_steps=2)
    later = {number - 6 for number in bad if number >= 6}  # the resumed run begins to count at its third iteration
    resumed = scaled_run(tmp_path / "resumed", DeepFST(2), later, resume=str(tmp_path / "checkpoint-2"))
    for network in ("model", "teacher"):
        a, b = (getattr(run, network) for run in (whole, resumed))
        a, b = (a.model, b.model) if network == "teacher" else (a, b)
        assert tiny.same(tiny.weights(a), tiny.weights(b))
    assert whole.accelerator.scaler.state_dict() == resumed.accelerator.scaler.state_dict()


def test_a_rule_that_takes_no_virtual_step_leaves_the_interval_alone(tmp_path):
    trainer = scaled_run(tmp_path, MeanTeacher(), set())
    assert trainer.accelerator.scaler.get_growth_interval() == INTERVAL
    rules = [Supervised(), MeanTeacher(), NaiveFST(), ImprovedFST(), DeepFST(0), DeepFST(4), WideFST(3)]
    assert [rule.virtual_steps for rule in rules] == [0, 0, 1, 1, 0, 4, 3]


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 with a real overflow needs a GPU; there is none here")
def test_on_a_gpu_a_scale_that_is_too_large_costs_steps_until_it_fits(tmp_path):
    size = (32, 32)
    sets = tiny.images(4, 1, size, dtype=torch.float32), tiny.images(4, 2, size, labels=False, dtype=torch.float32)
    trainer = tiny.trainer(
        tmp_path, make("segformer"), sets=sets, trainer_options={"rule": DeepFST(2)}, fp16=True, use_cpu=False
    )
    trainer.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40, growth_interval=6000)
    before = tiny.weights(trainer.model)
    trainer.train()
    assert trainer.accelerator.scaler.get_scale() < 2.0**40
    for network in trainer.networks().values():
        assert all(torch.isfinite(tensor).all() for tensor in tiny.weights(network))
    assert not tiny.same(before, tiny.weights(trainer.model))
