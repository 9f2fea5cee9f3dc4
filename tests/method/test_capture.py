"""Passes replayed as CUDA graphs; on CPUs a stand-in for the graph runs what was recorded."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from hf_fst.errors import RunError, UserError
from hf_fst.method import capture
from hf_fst.method.capture import Replayed
from hf_fst.method.objectives import PseudoLabelObjective
from hf_fst.training import refusals
from hf_fst.training.journal import Journal
from tests import tiny
from tests.device import DEVICE, USE_CPU


class StandIn:
    """Recording runs nothing; a replay runs the function on whatever is where it reads."""

    replays = 0

    def __init__(self, function, pool):
        self.function, self.outputs = function, {}

    def replay(self):
        StandIn.replays += 1
        return self.function()


@pytest.fixture
def stand_in(monkeypatch):
    if USE_CPU:
        StandIn.replays = 0
        monkeypatch.setattr(capture, "Graph", StandIn)
        monkeypatch.setattr(refusals, "refuse_capture", lambda args: None)


def same(first, second):
    """Bitwise on CPUs; on a GPU a few kernels add in any order."""
    return all(tiny.distance(a, b) <= (0 if USE_CPU else 1e-12) for a, b in zip(first, second, strict=True))


def trained(tmp_path, network, sets=None, **options):
    options = {"learning_rate": 0.05, "teacher_momentum": 0.8, "max_steps": 5, "max_grad_norm": 0.5, **options}
    trainer = tiny.trainer(tmp_path, network, sets=sets, **options)
    trainer.train()
    return tiny.weights(trainer.networks()["student"]), tiny.weights(trainer.networks()["teacher"]), trainer


OPTIONS = {
    "mean teacher": {"rule": "mean_teacher"},
    "fst_d": {"rule": "fst_d", "lookahead_steps": 2},
    "fst_w, other images": {"rule": "fst_w", "lookahead_students": 2},
    "carry": {"rule": "fst_d", "lookahead_steps": 2, "lookahead_state": "carry"},
    "now and then": {"rule": "fst_d", "lookahead_steps": 2, "lookahead_every": 2},
    "accumulated": {"rule": "fst_d", "lookahead_steps": 1, "gradient_accumulation_steps": 2},
    "one pass": {"rule": "fst_d", "lookahead_steps": 1, "joint_forward": "true"},
    "statistics of the batch": {"rule": "fst_d", "lookahead_steps": 1, "teacher_buffers": "batch"},
    "entropy_drop": {"rule": "fst_d", "lookahead_steps": 1, "objective": "entropy_drop"},
    "cut_mix": {"rule": "fst_d", "lookahead_steps": 1, "objective": "cut_mix"},
    "sgd": {"rule": "fst_d", "lookahead_steps": 2, "optim": "sgd"},
    "after": {"rule": "fst_d", "lookahead_steps": 1, "teacher_follows": "after"},
}


@pytest.mark.parametrize(
    "spoiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "a step that is not finite"]
)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_replayed_passes_are_those_that_are_not(tmp_path, stand_in, options, spoiled):
    runs = []
    for captured in (False, True):
        sets = tiny.images(8, 1), tiny.images(8, 2, labels=False)
        if spoiled:
            sets[0][2]["pixel_values"][:] = float("nan")
        *networks, trainer = trained(tmp_path, tiny.model(batch_norm=True), sets, capture=captured, **options)
        runs.append((*networks, trainer.journal.skipped))
    assert same(runs[0][:2], runs[1][:2]) and runs[0][2] == runs[1][2]
    assert trainer.context.capture.student.graphs and trainer.context.capture.teacher.graphs
    assert trainer.context.capture.student.reason is trainer.context.capture.teacher.reason is None
    if USE_CPU:
        assert StandIn.replays > 4


def test_nobody_waits_to_know_whether_a_real_step_was_finite(tmp_path, stand_in, monkeypatch):
    monkeypatch.setattr(Journal, "is_finite", None)
    labeled = tiny.images(4, 1)
    for image in labeled:
        image["pixel_values"][:] = float("nan")
    options = {"rule": "fst_d", "lookahead_steps": 1, "capture": True, "max_steps": 9, "max_nonfinite_steps": 3}
    with pytest.raises(RunError, match=r"for 3 steps in a row \(last: step 3, labeled_loss"):
        trained(tmp_path, tiny.model(), (labeled, tiny.images(4, 2, labels=False)), **options)


def test_weights_that_are_freed_in_the_middle_get_their_gradient(tmp_path, stand_in):
    class Freed(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            model.stem.requires_grad_(state.global_step >= 4)

    runs = []
    for captured in (False, True):
        options = {"rule": "fst_d", "lookahead_steps": 1, "max_steps": 8, "capture": captured, "callbacks": [Freed()]}
        runs.append(trained(tmp_path, tiny.model(), **options)[:2])
    assert same(runs[0], runs[1])
    assert not tiny.same(runs[0][0][:1], tiny.weights(tiny.model())[:1])


def test_a_network_that_draws_on_the_cpu_is_told_about_once_and_runs_as_before(tmp_path, stand_in, caplog):
    class Layerdrop(torch.nn.Module):
        def forward(self, x):
            return x * (1.0 if torch.rand(()) < 0.5 else 0.5)

    runs = []
    for captured in (False, True):
        network = tiny.model()
        network.norm = Layerdrop()
        with caplog.at_level(logging.WARNING):
            *networks, trainer = trained(tmp_path, network, rule="fst_d", lookahead_steps=1, capture=captured)
        runs.append(networks)
    assert same(runs[0], runs[1])
    assert not trainer.context.capture.student.graphs and not trainer.context.capture.teacher.graphs
    told = [record.getMessage() for record in caplog.records if "capture" in record.getMessage()]
    assert len(told) == 2 and all("drawn on the CPU" in line for line in told)


def test_an_objective_of_ones_own_has_the_teacher_alone_replayed(tmp_path, stand_in, caplog):
    class Own(PseudoLabelObjective):
        pass

    trainer = tiny.trainer(tmp_path, rule="fst_d", lookahead_steps=1, capture=True)
    trainer.learning_objective = Own()
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.context.capture.student is None and trainer.context.capture.teacher.graphs
    assert "Own is not replayed" in caplog.text


def test_the_third_call_of_a_kind_is_recorded_and_others_run_as_they_are(monkeypatch):
    monkeypatch.setattr(capture, "Graph", StandIn)
    monkeypatch.setattr(capture, "WARM_UP", 2)
    ran = []

    def double(inputs):
        ran.append(inputs["x"].data_ptr())
        return {"y": 2 * inputs["x"]}

    replayed, StandIn.replays = Replayed(double, "it"), 0
    for number in range(5):
        x = torch.full((2,), float(number))
        assert replayed({"x": x})["y"].tolist() == [2.0 * number] * 2
        assert (ran[-1] == x.data_ptr()) == (number < 2)
    assert StandIn.replays == 3 and len(set(ran[2:])) == 1  # what is read stays where it is
    for _ in range(4):
        replayed({"x": torch.ones(3)}, ready=False)
    assert len(replayed.graphs) == 1
    for size in (3, 4, 5):
        for _ in range(3):
            replayed({"x": torch.ones(size)})
    assert len(replayed.graphs) == capture.KINDS


def test_a_recording_that_fails_is_told_about_once(monkeypatch, caplog):
    class Fails:
        def __init__(self, function, pool):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(capture, "Graph", Fails)
    replayed = Replayed(lambda inputs: {"y": inputs["x"] + 1}, "it")
    with caplog.at_level(logging.WARNING):
        assert [replayed({"x": torch.ones(1)})["y"].item() for _ in range(5)] == [2.0] * 5
    assert caplog.text.count("not permitted") == 1


@pytest.mark.parametrize(
    "options, match",
    [
        ({"use_cpu": True}, "the device is 'cpu'"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing is true"),
        ({"torch_compile": True}, "torch_compile is true"),
    ],
)
def test_what_it_does_not_go_with_is_refused(tmp_path, monkeypatch, options, match):
    given = {"fp16": False, "gradient_checkpointing": False, "torch_compile": False, **options}
    device = torch.device("cpu" if given.pop("use_cpu", False) else "cuda")
    with pytest.raises(UserError, match=match):
        refusals.refuse_capture(SimpleNamespace(device=device, world_size=1, **given))
    if USE_CPU and device.type == "cpu":
        with pytest.raises(UserError, match=match):
            tiny.trainer(tmp_path, capture=True)


@pytest.mark.gpu
@pytest.mark.skipif(USE_CPU, reason="needs a GPU")
def test_noise_is_drawn_anew_at_every_replay_and_put_back_after_a_look_ahead(tmp_path):
    losses, states = [], []
    for captured in (False, True):
        trainer = tiny.trainer(
            tmp_path,
            tiny.model(dropout=0.5),
            rule="fst_d",
            lookahead_steps=2,
            capture=captured,
            max_steps=8,
            learning_rate=0.0,
            logging_strategy="steps",
            logging_steps=1,
            sets=(tiny.images(2, 1), tiny.images(2, 2, labels=False)),
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        states.append(torch.cuda.get_rng_state(DEVICE))
    assert len(set(losses[1])) == len(losses[1])
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    assert torch.equal(*states)
