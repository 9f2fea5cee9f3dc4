"""How long a teacher remembers, and a look-ahead now and then: worked by hand, and as an expectation over many draws."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from hf_fst.errors import UserError
from hf_fst.method.objectives import Objective
from hf_fst.method.rules import DeepFST, ImprovedFST, MeanTeacher, NaiveFST, WideFST
from hf_fst.method.teacher import EMATeacher
from hf_fst.training.config import FSTConfig
from hf_fst.training.settings import resolve
from hf_fst.training.trainer import FSTTrainer
from tests.architectures import segformer
from tests.device import USE_CPU


class Numbers(nn.Module):
    """A student that is a row of numbers, θ."""

    def __init__(self, count: int, start: float):
        super().__init__()
        self.theta = nn.Parameter(torch.full((count,), start, dtype=torch.float64))
        self.config = SimpleNamespace(num_labels=1, id2label={0: "a"}, model_type="numbers")

    def forward(self, pixel_values):
        return self.theta


class Toward(Objective):
    """Σ(θ-b)²/2, where the numbers b, one for each of θ, are drawn again for each gradient: a linear student."""

    def __init__(self, center: float = 0.0, spread: float = 0.0):
        super().__init__()
        self.center, self.spread = center, spread
        self.draw = torch.Generator().manual_seed(0)

    def prepare(self, teacher, batch):
        return batch

    def counts(self, batch):
        return {"n": torch.ones(())}

    def terms(self, student, teacher, batch, totals):
        theta = student(pixel_values=None)
        noise = torch.randn(len(theta), generator=self.draw, dtype=torch.float64).to(theta.device)
        yield {"distance": ((theta - self.center - self.spread * noise) ** 2).sum() / 2}


class Jump(TrainerCallback):
    """Sets the student to 1 before a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                model.theta.fill_(1)


def train(folder, rule, steps, *, objective=None, count=1, start=0.0, teacher=None, callbacks=(), rate=0.0, **options):
    """The teacher's numbers after a run with a constant learning rate."""
    item = {"pixel_values": torch.zeros(3, 1, 1, dtype=torch.float64), "labels": torch.zeros(1, 1, dtype=torch.long)}
    args = FSTConfig(
        output_dir=str(folder),
        learning_rate=rate,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        max_steps=steps,
        optim="sgd",
        use_cpu=USE_CPU,
        report_to=[],
        report=False,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        per_device_train_batch_size=1,
        **{"momentum_warmup": False, **options},
    )
    trainer = FSTTrainer(
        Numbers(count, start),
        args,
        rule=rule,
        objective=objective or Toward(),
        train_dataset=[item],
        callbacks=list(callbacks),
    )
    if teacher is not None:
        with torch.no_grad():
            trainer.teacher.model.theta.fill_(teacher)
    trainer.train()
    return trainer.teacher.model.theta


@pytest.fixture
def momenta(monkeypatch):
    """All momenta with which a teacher has followed, in order."""
    found, follow = [], EMATeacher.follow

    def noted(self, parameters, buffers, momentum):
        found.append(momentum)
        follow(self, parameters, buffers, momentum)

    monkeypatch.setattr(EMATeacher, "follow", noted)
    return found


def test_a_memory_of_16_steps_is_shared_among_three_futures_at_every_fourth_step(tmp_path, momenta):
    train(tmp_path, DeepFST(3, every=4), 8, teacher_memory=16)
    # four moves a step, each with (15/16)^(1/4); a future stands for those of four steps
    present, future = (15 / 16) ** (1 / 4), 15 / 16
    assert momenta == pytest.approx([present, *[future] * 3, *[present] * 3] * 2, rel=1e-15)


def test_warm_up_is_shared_likewise(tmp_path, momenta):
    train(tmp_path, DeepFST(3, every=4), 8, teacher_memory=1000, momentum_warmup=True)
    # steps 4 to 7 have 4/5, 5/6, 6/7 and 7/8, together 1/2
    shares = [(number / (number + 1)) ** (1 / 4) for number in (4, 5, 6, 7)]
    assert momenta[:4] == [0, 0, 0, 0]  # the teacher starts as the student
    assert momenta[7:] == pytest.approx([shares[0], *[(1 / 2) ** (1 / 4)] * 3, *shares[1:]], rel=1e-15)


RULES = [
    MeanTeacher(),
    NaiveFST(),
    ImprovedFST(),
    ImprovedFST(every=4),
    DeepFST(1),
    DeepFST(3),
    DeepFST(3, every=2),
    DeepFST(3, every=4),
    DeepFST(5, every=4),
    WideFST(3, "same"),
    WideFST(2, "same", "present", every=4),
]


@pytest.mark.parametrize("warmup", [False, True], ids=["constant", "warm-up"])
@pytest.mark.parametrize("follows", ["before", "after", "both"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_all_moves_of_four_steps_multiply_to_the_memory(tmp_path, momenta, rule, follows, warmup):
    if follows != "before" and getattr(rule, "labels", None) == "present":
        pytest.skip("labels of the present go with following before the step alone")
    train(tmp_path, rule, 8, teacher_memory=10, momentum_warmup=warmup, teacher_follows=follows)
    factors = [min(step / (step + 1), 0.9) if warmup else 0.9 for step in range(8)]
    second = len(momenta) // 2  # the first four steps of a warm-up multiply to 0
    assert math.prod(momenta[second:]) == pytest.approx(math.prod(factors[4:]), rel=1e-14)
    assert math.prod(momenta) == pytest.approx(math.prod(factors), rel=1e-14, abs=0)


@pytest.mark.parametrize("warmup", [False, True], ids=["constant", "warm-up"])
def test_a_student_that_jumps_once_and_learns_nothing_has_the_same_teacher_under_every_rule(tmp_path, warmup):
    found = [
        train(tmp_path, rule, 16, teacher_memory=7, momentum_warmup=warmup, callbacks=[Jump(8)]).item()
        for rule in RULES
    ]
    # what is left of 0 after the jump: steps 8 to 15 have s/(s+1) > 6/7 in warm-up, too
    assert found == pytest.approx([1 - (6 / 7) ** 8] * len(RULES), rel=1e-14)


def test_steps_before_the_first_look_ahead_have_the_same_memory(tmp_path, momenta):
    train(tmp_path, DeepFST(3), 3, teacher_memory=10, lookahead_start=2)
    assert momenta[:4] == pytest.approx([0.9**0.5] * 4, rel=1e-15)  # before and after each of two steps
    assert momenta[4:] == pytest.approx([0.9**0.25] * 4, rel=1e-15)


def test_every_second_step_looks_ahead(tmp_path):
    # μ = 3/4, μ' = 1/4, M = 2, K = 1, θ = 4, b = 0, γ = 1/2: a step halves θ. Step 0: φ' = 3/4·0 + 1/4·4 = 1, then
    # 1/16·1 + 15/16·2 = 31/16; θ = 2. Step 1: 3/4·31/16 + 1/4·2 = 125/64; θ = 1. Step 2: 3/4·125/64 + 1/4·1 = 439/256,
    # then 1/16·439/256 + 15/16·1/2
    pace = {"teacher_momentum": 0.75, "lookahead_momentum": 0.25, "rate": 0.5, "start": 4.0, "teacher": 0.0}
    found = [train(tmp_path, DeepFST(1, every=2), steps, **pace).item() for steps in (1, 2, 3)]
    assert found == [31 / 16, 125 / 64, 439 / 4096 + 15 / 32]


@pytest.mark.parametrize("batches", ["same", "different"])
def test_the_expected_teacher_does_not_depend_on_how_often_it_looks_ahead(tmp_path, batches):
    count, center = 20_000, 1.0  # independent students, that have come to rest about the center
    pace = {"teacher_momentum": 0.95, "lookahead_momentum": 0.95, "rate": 0.1, "count": count, "start": center}
    found = []
    for every in (1, 2, 4):
        rule = DeepFST(3, batches, every=every)
        found.append(train(tmp_path, rule, 24, objective=Toward(center, 1.0), teacher=0.0, **pace))
    # E θ = center at all times, so E φ = (1 - Πμ) center, and Πμ over 24 steps is .95^(4·24) whatever M; a mean of
    # `count` draws is off by more than five standard errors once in two million times
    for teacher in found:
        error = teacher.std().item() / math.sqrt(count)
        assert teacher.mean().item() == pytest.approx((1 - 0.95 ** (4 * 24)) * center, abs=5 * error)
        assert 5 * error < 0.02
    # the mean teacher of this μ is far from that
    assert abs((1 - 0.95**24) - (1 - 0.95 ** (4 * 24))) > 0.2


def settings(**options):
    return resolve(FSTConfig(output_dir="unused", report_to=[], use_cpu=USE_CPU, **options))


def test_memory_and_momenta_are_both_known_whichever_is_given():
    default = settings(rule="fst_d")
    assert (default.teacher_memory, default.by_memory) == (1000, True)
    assert default.teacher_momentum == default.lookahead_momentum == pytest.approx(0.999**0.25, rel=1e-15)
    assert settings(rule="mean_teacher").teacher_momentum == 0.999
    given = settings(rule="fst_d", teacher_momentum=0.9)
    assert (given.lookahead_momentum, given.by_memory) == (0.9, False)
    assert given.teacher_memory == pytest.approx(1 / (1 - 0.9**4), rel=1e-5)
    assert settings(rule="fst_d", lookahead_momentum=1.0).teacher_memory == pytest.approx(1000, rel=1e-5)
    assert settings(rule="mean_teacher", teacher_momentum=1.0).teacher_memory is None
    for preset in ("paper", "official"):  # what they were
        preset = settings(rule="fst_d", preset=preset)
        assert (preset.teacher_momentum, preset.lookahead_momentum, preset.by_memory) == (0.999, 0.999, False)


@pytest.mark.parametrize("name", ["teacher_momentum", "lookahead_momentum"])
def test_memory_and_momentum_together_are_refused(name):
    with pytest.raises(UserError, match="teacher_memory is set beside"):
        settings(rule="fst_d", teacher_memory=100, **{name: 0.9})


@pytest.mark.parametrize("rule", ["naive_fst", "mean_teacher", "supervised"])
def test_rules_that_cannot_look_ahead_now_and_then_refuse_it(rule):
    with pytest.raises(UserError, match="lookahead_every is set but the rule is"):
        settings(rule=rule, lookahead_every=2)


def test_a_network_that_was_trained_whole_needs_no_warm_up(tmp_path):
    network = segformer()
    network.save_pretrained(tmp_path / "trained")
    options = {"output_dir": str(tmp_path / "run"), "report_to": [], "use_cpu": USE_CPU}
    names = dict(enumerate("abcdefg"))
    assert len(names) != network.config.num_labels
    for id2label, warmup in ((None, False), (names, True)):
        trainer = FSTTrainer(
            str(tmp_path / "trained"), FSTConfig(**options), "mean_teacher", "supervised", id2label=id2label
        )
        assert trainer.settings.momentum_warmup is warmup
    given = FSTConfig(**options, momentum_warmup=True)
    assert FSTTrainer(str(tmp_path / "trained"), given, "mean_teacher", "supervised").settings.momentum_warmup
    assert FSTTrainer(segformer(), FSTConfig(**options), "mean_teacher", "supervised").settings.momentum_warmup
