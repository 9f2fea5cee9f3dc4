"""Rules that are the same at the ends of their ranges are so bit for bit, though each is written for itself."""

from __future__ import annotations

import pytest

from hf_fst.method.rules import DeepFST, ImprovedFST, MeanTeacher, WideFST
from tests import tiny


def result(tmp_path, rule, **options):
    """Student, teacher and optimizer after five steps with batch norm, dropout, clipping and class mixing."""
    trainer = tiny.trainer(
        tmp_path,
        tiny.model(batch_norm=True, dropout=0.3),
        trainer_options={"rule": rule},
        **{
            "objective": "class_mix",
            "confidence_threshold": 0.4,
            "learning_rate": 0.05,
            "max_grad_norm": 0.3,
            "weight_decay": 0.1,
            "teacher_momentum": 0.9,
            "lookahead_momentum": 0.7,
            "max_steps": 5,
            **options,
        },
    )
    trainer.train()
    moments = [t for state in trainer.optimizer.state.values() for t in state.values()]
    return tiny.weights(trainer.model), tiny.weights(trainer.teacher.model), moments


IDENTITIES = [
    (DeepFST(0), MeanTeacher()),
    (DeepFST(0, "different"), MeanTeacher()),
    (DeepFST(1), ImprovedFST()),
    (DeepFST(1, "different"), ImprovedFST("different")),
    (WideFST(1, "same"), ImprovedFST()),
    (WideFST(1, "different"), ImprovedFST("different")),
    (WideFST(1, "same"), DeepFST(1)),
]


@pytest.mark.parametrize("first, second", IDENTITIES, ids=repr)
@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1, "momentum_warmup": False}],
    ids=["warm-up", "accumulated"],
)
def test_equal_bit_for_bit(tmp_path, first, second, options):
    one, other = result(tmp_path, first, **options), result(tmp_path, second, **options)
    for a, b in zip(one, other, strict=True):
        assert tiny.same(a, b)


@pytest.mark.parametrize("first, second", [(DeepFST(1), DeepFST(2)), (MeanTeacher(), ImprovedFST())], ids=repr)
def test_other_rules_differ(tmp_path, first, second):
    one, other = result(tmp_path, first), result(tmp_path, second)
    assert tiny.distance(one[0], other[0]) > 1e-6 and tiny.distance(one[1], other[1]) > 1e-6


@pytest.mark.parametrize("state", ["restore", "carry"])
def test_the_identities_hold_where_state_is_carried(tmp_path, state):
    for first, second in ((DeepFST(1), ImprovedFST()), (WideFST(1, "same"), ImprovedFST())):
        one = result(tmp_path, first, lookahead_state=state)
        other = result(tmp_path, second, lookahead_state=state)
        for a, b in zip(one, other, strict=True):
            assert tiny.same(a, b)
