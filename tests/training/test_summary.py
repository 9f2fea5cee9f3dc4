"""Which evaluation is told as that of the weights that a run kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hf_fst.publishing.facts import DatasetFacts
from hf_fst.training.summary import best_step, evaluations_of

DATA = DatasetFacts("street", "street", "validation", 3)
# scores at steps that were evaluated; 0 and 6 were never saved
TEACHER = {0: 0.5, 2: 0.1, 4: 0.3, 6: 0.4, 8: 0.2}


@pytest.mark.parametrize(
    ("loads", "loaded", "told"),
    [
        (True, "out/checkpoint-4", [("best", 4, 0.3), ("last", 8, 0.2)]),
        (True, None, [("last", 8, 0.2)]),  # the best step had no checkpoint, so nothing was loaded
        (False, "out/checkpoint-4", [("last", 8, 0.2)]),
    ],
)
def test_best_is_what_was_loaded_not_the_highest_score(loads, loaded, told):
    entries = [
        {"step": step, "eval_teacher_mean_iou": score, "eval_student_mean_iou": 0.0} for step, score in TEACHER.items()
    ]
    trainer = SimpleNamespace(
        has_teacher=True,
        class_names=[],
        args=SimpleNamespace(load_best_model_at_end=loads),
        state=SimpleNamespace(log_history=entries, best_model_checkpoint=loaded, best_global_step=6, global_step=8),
    )
    assert [(e.weights, e.step, e.teacher.mean_iou) for e in evaluations_of(trainer, DATA)] == told
    assert best_step(trainer) == (4 if told[0][0] == "best" else None)
