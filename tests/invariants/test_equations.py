"""Every rule, through `FSTTrainer.train()`, against a plain torch loop of its equation, in float64."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainerCallback

from tests import tiny
from tests.device import noise_state
from tests.plain import Plain
from tests.shampoo import Shampoo

DIGITS = 1e-12

# rule, K or N, batches, labels
RULES = [
    ("supervised", 0, None, None),
    ("mean_teacher", 0, None, None),
    ("naive_fst", 1, "same", None),
    ("naive_fst", 1, "different", None),
    ("improved_fst", 1, "same", None),
    ("improved_fst", 1, "different", None),
    ("fst_d", 1, "same", None),
    ("fst_d", 1, "different", None),
    ("fst_d", 3, "same", None),
    ("fst_d", 3, "different", None),
    ("fst_w", 1, "same", "followed"),
    ("fst_w", 1, "different", "present"),
    ("fst_w", 3, "same", "present"),
    ("fst_w", 3, "same", "followed"),
    ("fst_w", 3, "different", "followed"),
    ("fst_w", 3, "different", "present"),
]


# of other methods one case of each rule runs by default, all the others among the long tests
DEFAULT = {
    ("mean_teacher", 0, None, None),
    ("naive_fst", 1, "different", None),
    ("improved_fst", 1, "same", None),
    ("fst_d", 3, "same", None),
    ("fst_w", 3, "different", "present"),
}


def name_of(case) -> str:
    return "-".join(str(part) for part in case if part is not None)


METHOD_CASES = [
    pytest.param(case, id=name_of(case), marks=[] if case in DEFAULT else pytest.mark.slow) for case in RULES[1:]
]


class Noise(TrainerCallback):
    """Remembers torch's random state as each step begins."""

    def __init__(self):
        self.states = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.states.append(noise_state())


def compare(tmp_path, case, *, kind=Plain, network=tiny.model, more=None, batch_norm=False, dropout=0.0, **changes):
    """Largest differences (student, teacher) between the trainer, given `more` options, and the plain loop `kind`."""
    rule, count, batches, labels = case
    plain = kind(rule, count, batches == "different", labels == "present", **changes)
    options = {
        "fst_d": {"lookahead_steps": count, "lookahead_batches": batches},
        "fst_w": {"lookahead_students": count, "lookahead_batches": batches, "lookahead_labels": labels},
        "naive_fst": {"lookahead_batches": batches},
        "improved_fst": {"lookahead_batches": batches},
    }.get(rule, {})
    if plain.every > 1:
        options["lookahead_every"] = plain.every
    pace = {"teacher_momentum": plain.mu, "lookahead_momentum": plain.mu_ahead}
    options |= pace if plain.memory is None else {"teacher_memory": plain.memory}
    optimizers = {
        "sgd": (torch.optim.SGD, {"lr": plain.lr, "momentum": 0.9}),
        "adamw": (torch.optim.AdamW, {"lr": plain.lr, "betas": (0.9, 0.999), "eps": 1e-8}),
        "shampoo": (Shampoo, {"lr": plain.lr}),
    }
    noise = Noise()
    trainer = tiny.trainer(
        tmp_path,
        network(batch_norm=batch_norm, dropout=dropout),
        callbacks=[noise],
        trainer_options={"optimizer_cls_and_kwargs": optimizers[plain.optimizer]},
        rule=rule,
        **options,
        momentum_warmup=plain.warmup,
        teacher_buffers=plain.buffers,
        lookahead_state="carry" if plain.carry else "restore",
        learning_rate=plain.lr,
        weight_decay=plain.decay,
        max_grad_norm=plain.clip,
        lr_scheduler_type="linear",
        max_steps=plain.steps,
        per_device_train_batch_size=plain.batch_size,
        gradient_accumulation_steps=plain.accumulation,
        seed=plain.seed,
        **{"unlabeled_weight": plain.weight, **(more or {})},
    )
    trainer.train()

    if dropout:
        plain.noise = noise.states[:: 1 if len(noise.states) == plain.steps else plain.accumulation]
    student = network(batch_norm=batch_norm, dropout=dropout)
    start = tiny.weights(student)
    teacher = plain.run(student, *((tiny.images(6, 1), tiny.images(8, 2, labels=False))))
    assert tiny.distance(start, tiny.weights(student)) > 1e-2, "nothing was learned"
    ours = tiny.weights(trainer.model), tiny.weights(trainer.teacher.model)
    if rule == "supervised":
        return tiny.distance(ours[0], tiny.weights(student)), 0
    return tiny.distance(ours[0], tiny.weights(student)), tiny.distance(ours[1], tiny.weights(teacher))


@pytest.mark.parametrize("case", RULES, ids=name_of)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rule_equals_its_equation(tmp_path, case, optimizer):
    student, teacher = compare(tmp_path, case, optimizer=optimizer, lr=0.1 if optimizer == "sgd" else 0.01)
    assert student < DIGITS and teacher < DIGITS


@pytest.mark.parametrize("case", RULES[2:], ids=name_of)
def test_rule_equals_its_equation_with_batch_norm_and_dropout(tmp_path, case):
    # the two optimizers, group sizes and warm-ups are spread over the rules
    number = RULES.index(case)
    changes = {
        "optimizer": ["sgd", "adamw"][number % 2],
        "lr": [0.1, 0.01][number % 2],
        "warmup": number % 3 == 0,
        "accumulation": 1 + number // 2 % 2,
        "batch_size": 2 - number // 2 % 2,
        "buffers": ["copy", "ema"][number // 3 % 2],
    }
    student, teacher = compare(tmp_path, case, batch_norm=True, dropout=0.2, **changes)
    assert student < DIGITS and teacher < DIGITS


DEEP, WIDE = ("fst_d", 3, "same", None), ("fst_w", 3, "different", "followed")
WIDE_PRESENT = ("fst_w", 3, "different", "present")


@pytest.mark.parametrize(
    "case, changes",
    [
        (DEEP, {"warmup": True}),
        (WIDE, {"warmup": True, "accumulation": 2}),
        (DEEP, {"carry": True}),
        (DEEP, {"carry": True, "optimizer": "adamw", "lr": 0.01, "buffers": "ema"}),
        (DEEP, {"carry": True, "buffers": "batch", "accumulation": 2}),
        (WIDE, {"carry": True, "optimizer": "adamw", "lr": 0.01}),
        (WIDE_PRESENT, {"carry": True}),
        (("naive_fst", 1, "different", None), {"carry": True}),
        (DEEP, {"optimizer": "shampoo"}),
        (WIDE, {"optimizer": "shampoo", "accumulation": 2}),
        (WIDE_PRESENT, {"optimizer": "shampoo"}),
        (("naive_fst", 1, "same", None), {"optimizer": "shampoo"}),
        (DEEP, {"optimizer": "shampoo", "carry": True}),
        (DEEP, {"buffers": "batch"}),
        (WIDE, {"buffers": "batch", "optimizer": "adamw", "lr": 0.01}),
        (DEEP, {"clip": 1e9, "accumulation": 3, "batch_size": 1}),
        (DEEP, {"mu": 0.0, "mu_ahead": 1.0}),
        (DEEP, {"mu": 1.0, "mu_ahead": 0.0}),
        (DEEP, {"every": 2}),
        (DEEP, {"every": 2, "warmup": True, "optimizer": "adamw", "lr": 0.01}),
        (("fst_d", 2, "different", None), {"every": 3, "steps": 5, "accumulation": 2}),
        (("improved_fst", 1, "different", None), {"every": 2}),
        (WIDE, {"every": 2, "carry": True}),
        (WIDE_PRESENT, {"every": 3}),
        (DEEP, {"memory": 6}),
        (DEEP, {"memory": 6, "every": 2, "warmup": True}),
        (WIDE_PRESENT, {"memory": 6, "every": 2}),
        (("naive_fst", 1, "same", None), {"memory": 6, "warmup": True}),
        (("mean_teacher", 0, None, None), {"memory": 6}),
    ],
    ids=lambda value: name_of(value) if isinstance(value, tuple) else "-".join(f"{k}={v}" for k, v in value.items()),
)
def test_options_equal_their_equation(tmp_path, case, changes):
    student, teacher = compare(tmp_path, case, batch_norm=True, dropout=0.2, **changes)
    assert student < DIGITS and teacher < DIGITS
