"""Student and teacher are scored in one pass; the best model is the one with the best teacher."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import EvalPrediction, TrainerCallback
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_fst.errors import UserError
from hf_fst.evaluation.counting import LABEL_FREE, StreamingScores
from hf_fst.evaluation.inference import WHOLE
from hf_fst.training.summary import evaluations_of
from tests import tiny
from tests.architectures import make


def photos(dtype=torch.float32):
    """Two labelled and two unlabelled images of 32 by 32 pixels."""
    size = (32, 32)
    return tiny.images(2, 1, size, dtype=dtype), tiny.images(2, 2, size, labels=False, dtype=dtype)


def logits(network, pixels):
    with torch.no_grad():
        return network.eval()(pixel_values=pixels.to(network.device)).logits.cpu()


def mixed_sizes(count=5):
    """Images of one size with labels of another, and of sizes that differ."""
    items = []
    for i in range(count):
        size = (8 + 4 * (i % 3), 12)
        pixels = tiny.images(1, 10 + i, size, labels=False)[0]["pixel_values"]
        labels = tiny.images(1, 20 + i, (2 * size[0] + 1, 30))[0]["labels"]
        items.append({"pixel_values": pixels, "labels": labels})
    items[0]["labels"][0, :3] = -100
    return items


def counted(network, items):
    """Confusion matrix by a loop over images in numpy."""
    matrix = np.zeros((3, 3), dtype=int)
    for item in items:
        coarse = logits(network, item["pixel_values"][None]).float()
        full = nn.functional.interpolate(coarse, item["labels"].shape, mode="bilinear", align_corners=False)
        prediction, labels = full.argmax(1)[0].numpy(), item["labels"].numpy()
        for c in range(3):
            for d in range(3):
                matrix[c, d] += ((labels == c) & (prediction == d)).sum()
    return matrix


def expected_metrics(name, matrix):
    hits, rows, columns = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore"):
        iou, accuracy = hits / (rows + columns - hits), hits / rows
    result = {
        f"eval_{name}_mean_iou": np.nanmean(iou),
        f"eval_{name}_mean_accuracy": np.nanmean(accuracy),
        f"eval_{name}_overall_accuracy": hits.sum() / rows.sum(),
    }
    return result | {f"eval_{name}_iou_LABEL_{c}": iou[c] for c in range(3)}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("rule", ["supervised", "mean_teacher"])
def test_student_and_teacher_are_scored_on_labels_of_full_size(tmp_path, rule, batch_size):
    trainer = tiny.trainer(
        tmp_path,
        tiny.model(batch_norm=True),
        rule=rule,
        per_device_eval_batch_size=batch_size,
        learning_rate=0.1,
        momentum_warmup=False,
        trainer_options={"eval_dataset": mixed_sizes()},
    )
    trainer.train()
    trainer.model.train()
    metrics = trainer.evaluate()
    expected = expected_metrics("student", counted(trainer.model, mixed_sizes()))
    if rule != "supervised":
        expected |= expected_metrics("teacher", counted(trainer.teacher.model, mixed_sizes()))
    scores = {key: value for key, value in metrics.items() if "student" in key or "teacher" in key}
    assert scores == pytest.approx(expected, abs=1e-12, nan_ok=True)
    again = trainer.evaluate()  # counts do not add up over calls
    assert {key: again[key] for key in scores} == pytest.approx(scores, abs=0, nan_ok=True)


def test_the_best_model_is_the_one_with_the_best_teacher(tmp_path):
    network = make("segformer")
    trainer = tiny.trainer(
        tmp_path,
        network,
        sets=photos(),
        rule="fst_d",
        max_steps=4,
        learning_rate=0.02,
        teacher_momentum=0.5,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        trainer_options={"eval_dataset": photos()[0]},
    )
    trainer.train()
    history = [e for e in trainer.state.log_history if "eval_teacher_mean_iou" in e]
    best = max(history, key=lambda e: e["eval_teacher_mean_iou"])
    assert trainer.state.best_global_step == best["step"]
    now = trainer.evaluate()
    for key in ("eval_student_mean_iou", "eval_teacher_mean_iou"):
        assert now[key] == best[key]


def test_predict_gives_the_students_logits_and_evaluation_still_scores(tmp_path):
    items = photos()[0]
    trainer = tiny.trainer(
        tmp_path, make("segformer"), sets=photos(), rule="mean_teacher", trainer_options={"eval_dataset": items}
    )
    pixels = torch.stack([item["pixel_values"] for item in items])
    found = trainer.predict(items).predictions
    assert np.allclose(found, logits(trainer.model, pixels).numpy(), atol=1e-6)
    assert "eval_teacher_mean_iou" in trainer.evaluate()


class Overflows(TrainerCallback):
    """Makes the student's logits infinite at one evaluation, as half precision may."""

    def __init__(self, network, step):
        self.network, self.step = network, step

    def on_step_end(self, args, state, control, **others):
        self.handle = None
        if state.global_step == self.step:
            self.handle = self.network.head.register_forward_hook(lambda *given: given[-1] / 0)

    def on_evaluate(self, args, state, control, **others):
        if self.handle is not None:
            self.handle.remove()


@pytest.mark.parametrize("step", [1, 2])
def test_an_evaluation_that_fails_does_not_end_the_run_and_is_not_the_best(tmp_path, caplog, step):
    network = tiny.model(dtype=torch.float32)
    run = tiny.trainer(
        tmp_path,
        network,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="student_mean_iou",
        callbacks=[Overflows(network, step)],
        trainer_options={"eval_dataset": tiny.images(2, dtype=torch.float32)},
    )
    run.train()
    scores = {entry["step"]: entry for entry in run.state.log_history if "eval_student_mean_iou" in entry}
    assert math.isnan(scores[step]["eval_student_mean_iou"]) and math.isnan(scores[step]["eval_student_iou_LABEL_0"])
    assert math.isfinite(scores[3 - step]["eval_student_mean_iou"])
    assert all(math.isfinite(entry["eval_teacher_mean_iou"]) for entry in scores.values())
    assert run.state.best_model_checkpoint.endswith(f"checkpoint-{3 - step}")
    assert (evaluations_of(run, None)[-1].student.mean_iou is None) == (step == 2)
    said = [record.message for record in caplog.records if "were not finite" in record.message]
    assert said == [
        "The logits of the student were not finite, so its scores are nan; the run continues, and these weights are not "
        "chosen as the best."
    ]
    network.head.register_forward_hook(lambda *given: given[-1] / 0)
    with pytest.raises(UserError, match="are not finite"):  # after the run it is what was asked for
        run.evaluate()


def test_the_score_without_labels_is_nan_where_logits_are_not_finite():
    def broken(pixel_values):
        return SemanticSegmenterOutput(logits=torch.full((1, 3, 4, 4), math.nan))

    network = nn.Module()
    network.forward = broken
    scores = StreamingScores(lambda: (["student"], ["a", "b", "c"]), best=LABEL_FREE)
    counts, sums = scores.count(
        {"student": network}, {"pixel_values": torch.zeros(1, 3, 8, 8)}, 3, WHOLE, goes_on=True
    )
    assert math.isnan(scores(EvalPrediction((counts, sums), None))[LABEL_FREE])
