"""The rules on a problem that can be followed by hand: θ=4, φ=0, γ=1/4, μ=3/4, μ'=1/4, L_b=(θ-φ-b)².

∇L_b = 2(θ-φ-b), so a virtual step is θ̃ = θ - (θ-φ-b)/2. Following the present: φ' = 3/4·0 + 1/4·4 = 1; following a
future: φ ← φ/4 + 3/4·θ̃. All numbers are sums of powers of two, hence exact.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_fst.method.objectives import Objective
from hf_fst.method.options import make, values_of
from hf_fst.method.rules import (
    RULES,
    DeepFST,
    ImprovedFST,
    MeanTeacher,
    NaiveFST,
    Supervised,
    WideFST,
)
from hf_fst.training.config import FSTConfig
from hf_fst.training.trainer import FSTTrainer
from tests.device import USE_CPU


class Number(nn.Module):
    """A student with one weight, θ."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(4.0, dtype=torch.float64))
        self.config = SimpleNamespace(num_labels=1, id2label={0: "a"}, model_type="number")

    def forward(self, pixel_values):
        return self.theta


class Square(Objective):
    """L_b = (θ-φ-b)²; remembers what it was asked for as (θ, φ, b)."""

    names = ("square",)

    def __init__(self):
        super().__init__()
        self.asked = []

    def prepare(self, teacher, batch):
        return batch

    def counts(self, batch):
        return {"n": torch.ones(())}

    def terms(self, student, teacher, batch, totals):
        b = batch["pixel_values"].mean()
        theta, phi = student(pixel_values=b), teacher(b)
        self.asked.append((theta.item(), phi.item(), b.item()))
        yield {"square": (theta - phi - b) ** 2}


def run(tmp_path, rule, **options):
    """One step; gives φ_1, θ_1 and all (θ, φ, b) that the loss was taken at, the real one last."""
    item = {"pixel_values": torch.zeros(3, 1, 1, dtype=torch.float64), "labels": torch.zeros(1, 1, dtype=torch.long)}
    args = FSTConfig(
        output_dir=str(tmp_path),
        teacher_momentum=0.75,
        lookahead_momentum=0.25,
        learning_rate=0.25,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        max_steps=1,
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
    objective = Square()
    trainer = FSTTrainer(Number(), args, rule=rule, objective=objective, train_dataset=[item])

    def other_images(count, size):
        assert size == 1
        for b in range(count):
            yield [{"pixel_values": torch.full((1,), float(b), dtype=torch.float64)}]

    trainer.lookahead_groups = other_images
    with torch.no_grad():
        trainer.teacher.model.theta.zero_()
    trainer.train()
    return trainer.teacher.model.theta.item(), trainer.model.theta.item(), objective.asked


ORACLES = [
    (MeanTeacher(), 1, []),
    # θ̃ = 4 - 2 = 2; φ = 1/4·2
    (NaiveFST(), 0.5, [(4, 0, 0)]),
    # φ' = 1, θ̃ = 4 - 3/2 = 2.5; φ = 1/4 + 3/4·2.5
    (ImprovedFST(), 2.125, [(4, 1, 0)]),
    (DeepFST(0), 1, []),
    (DeepFST(1), 2.125, [(4, 1, 0)]),
    # then θ̃ = 2.5 - .375/2 = 2.3125, φ̃ = 2.125/4 + 3/4·2.3125 = 2.265625; θ̃ = 2.2890625
    (DeepFST(3), 2.283203125, [(4, 1, 0), (2.5, 2.125, 0), (2.3125, 2.265625, 0)]),
    # θ̃ = 2.5; then b = 1: θ̃ = 2.5 + .625/2 = 2.8125, φ̃ = 2.640625; b = 2: θ̃ = 2.8125 + 1.828125/2 = 3.7265625
    (DeepFST(3, "different"), 3.455078125, [(4, 1, 0), (2.5, 2.125, 1), (2.8125, 2.640625, 2)]),
    (WideFST(1, "same"), 2.125, [(4, 1, 0)]),
    (WideFST(3, "same"), 2.125, [(4, 1, 0)] * 3),
    # labels of φ_t = 0: θ̃ = 4 - 2 = 2; φ = 1/4 + 3/4·2
    (WideFST(3, "same", "present"), 1.75, [(4, 0, 0)] * 3),
    # θ̃_b = 4 - (3-b)/2: 2.5, 3, 3.5, mean 3; φ = 1/4 + 3/4·3
    (WideFST(3, "different"), 2.5, [(4, 1, 0), (4, 1, 1), (4, 1, 2)]),
    # θ̃_b = 4 - (4-b)/2: 2, 2.5, 3, mean 2.5; φ = 1/4 + 3/4·2.5
    (WideFST(3, "different", "present"), 2.125, [(4, 0, 0), (4, 0, 1), (4, 0, 2)]),
]


@pytest.mark.parametrize("rule, teacher, virtual", ORACLES, ids=lambda v: repr(v) if hasattr(v, "look_ahead") else "")
def test_teacher_is_where_the_equation_says_and_the_student_has_not_moved(tmp_path, rule, teacher, virtual):
    phi, theta, asked = run(tmp_path, rule)
    assert phi == teacher
    assert asked == [*virtual, (4, teacher, 0)]  # the real gradient is taken at θ = 4 with the new teacher
    assert theta == 4 - (4 - teacher) / 2


def test_supervised_leaves_the_teacher_alone(tmp_path):
    phi, theta, asked = run(tmp_path, Supervised())
    assert (phi, theta, asked) == (0, 2, [(4, 0, 0)])


def test_warm_up_makes_the_first_teacher_the_student(tmp_path):
    # step 0: μ = 0, so φ = θ = 4 and there is no gradient
    phi, theta, asked = run(tmp_path, MeanTeacher(), momentum_warmup=True)
    assert (phi, theta, asked) == (4, 4, [(4, 4, 0)])


def test_a_rule_of_ones_own_runs(tmp_path):
    class Jump:
        """φ_{t+1} = θ_t, written with the verb that copies the present twice as far."""

        def look_ahead(self, step):
            for _ in range(2):
                step.teacher_follows_present()

    phi, _, _ = run(tmp_path, Jump())
    assert phi == 0.75 * 1 + 0.25 * 4


def test_every_rule_is_known_by_its_name_in_the_config():
    assert list(RULES) == ["supervised", "mean_teacher", "naive_fst", "improved_fst", "fst_d", "fst_w"]
    settings = {"lookahead_steps": 2, "lookahead_batches": "different", "lookahead_every": 1}
    assert make("rule", RULES, "fst_d", settings) == DeepFST(2, "different")
    assert values_of(DeepFST(2, "different")) == settings
    assert make("rule", RULES, "fst_w", {"lookahead_students": None}) == WideFST(3, "different", "followed")


def test_improved_fst_shares_no_code_with_fst_d():
    assert ImprovedFST.__mro__[1:] == DeepFST.__mro__[1:] == (object,)
    assert "DeepFST" not in ImprovedFST.look_ahead.__code__.co_names


@pytest.mark.parametrize(
    "made, sentence",
    [
        (lambda: DeepFST(-1), "lookahead_steps is -1; use a number from 0 to 1000."),
        (lambda: WideFST(0), "lookahead_students is 0; use a number from 1 to 1000."),
        (lambda: WideFST(labels="past"), "lookahead_labels is 'past'; use one of followed, present."),
        (lambda: NaiveFST("other"), "lookahead_batches is 'other'; use one of same, different."),
        (lambda: ImprovedFST("other"), "lookahead_batches is 'other'; use one of same, different."),
        (
            lambda: make("rule", RULES, "fst", {}),
            "rule is 'fst'; use one of supervised, mean_teacher, naive_fst, improved_fst, fst_d, fst_w.",
        ),
        (
            lambda: make("rule", RULES, "mean_teacher", {"lookahead_steps": 3}),
            "lookahead_steps is set but the rule is mean_teacher; leave it out or use fst_d.",
        ),
    ],
)
def test_a_wrong_rule_is_answered_in_one_sentence(made, sentence):
    with pytest.raises(ValueError) as error:
        made()
    assert str(error.value) == sentence
