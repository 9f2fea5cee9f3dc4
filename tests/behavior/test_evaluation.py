"""evaluate, predict, and metrics of the user's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import tiny
from tests.behavior.both import accuracy, images, make

SPEED = {"runtime", "samples_per_second", "steps_per_second"}


def logits(trainer, items):
    with torch.no_grad():
        return trainer.model.eval()(torch.stack([item["pixel_values"] for item in items])).logits.cpu().numpy()


def test_keys_have_the_prefix(tmp_path, kind):
    trainer = make(kind, tmp_path, evaluation=images(3))
    metrics = trainer.evaluate(metric_key_prefix="mine")
    assert {f"mine_{key}" for key in SPEED} <= metrics.keys()
    assert all(key.startswith("mine_") or key == "epoch" for key in metrics)


def test_exception_fst_trainer_scores_the_student_instead_of_giving_the_models_own_loss(tmp_path, kind):
    metrics = make(kind, tmp_path, evaluation=images(3)).evaluate()
    speed = {f"eval_{key}" for key in SPEED} | {"eval_model_preparation_time", "epoch"}
    scores = {f"eval_student_{key}" for key in ("mean_iou", "mean_accuracy", "overall_accuracy")}
    scores |= {f"eval_student_iou_LABEL_{c}" for c in range(3)}
    assert metrics.keys() == speed | ({"eval_loss"} if kind == "Trainer" else scores)


def test_several_datasets_are_evaluated_by_name(tmp_path, kind):
    trainer = make(kind, tmp_path, evaluation={"a": images(2), "b": images(3)})
    metrics = trainer.evaluate()
    assert {"eval_a_runtime", "eval_b_runtime"} <= metrics.keys()


def test_another_dataset_may_be_given(tmp_path, kind):
    items = images(6, seed=9)
    trainer = make(
        kind,
        tmp_path,
        evaluation=images(2),
        trainer_options={"compute_metrics": accuracy},
        batch_eval_metrics=False,
    )
    expected = logits(trainer, items).argmax(1) == torch.stack([i["labels"] for i in items])[:, ::2, ::2].numpy()
    assert trainer.evaluate(items)["eval_cells"] == pytest.approx(expected.mean())


def test_a_users_metric_gets_logits_labels_and_the_models_loss_is_told(tmp_path, kind):
    items, seen = images(3), []

    def metric(prediction):
        seen.append((prediction.predictions, prediction.label_ids))
        return {"mine": 1.5}

    trainer = make(
        kind, tmp_path, evaluation=items, trainer_options={"compute_metrics": metric}, batch_eval_metrics=False
    )
    metrics = trainer.evaluate()
    assert metrics["eval_mine"] == 1.5 and np.isfinite(metrics["eval_loss"])
    assert np.allclose(seen[0][0], logits(trainer, items), atol=1e-12)
    assert np.array_equal(seen[0][1], torch.stack([item["labels"] for item in items]).numpy())


def test_a_users_metric_may_count_batch_by_batch(tmp_path, kind):
    calls = []

    def metric(prediction, compute_result):
        calls.append((len(prediction.predictions), compute_result))
        return {"batches": len(calls)} if compute_result else {}

    trainer = make(
        kind, tmp_path, evaluation=images(3), trainer_options={"compute_metrics": metric}, batch_eval_metrics=True
    )
    assert trainer.evaluate()["eval_batches"] == 2 and calls == [(2, False), (1, True)]


def test_exception_a_metric_of_fst_trainer_counts_batch_by_batch_unless_told_otherwise(tmp_path, kind):
    """Whole label maps of a dataset need not fit into memory."""
    options = {"evaluation": images(2), "trainer_options": {"compute_metrics": lambda prediction: {"mine": 1.0}}}
    if kind == "Trainer":
        assert make(kind, tmp_path, **options).evaluate()["eval_mine"] == 1
        return
    with pytest.raises(ValueError, match="compute_result"):
        make(kind, tmp_path, **options)


def test_logits_are_preprocessed_for_a_users_metric(tmp_path, kind):
    def classes(logits, labels):
        return logits.argmax(1)

    seen = []

    def metric(prediction):
        seen.append(prediction.predictions)
        return {}

    items = images(3)
    trainer = make(
        kind,
        tmp_path,
        evaluation=items,
        trainer_options={"compute_metrics": metric, "preprocess_logits_for_metrics": classes},
        batch_eval_metrics=False,
    )
    trainer.evaluate()
    assert np.array_equal(seen[0], logits(trainer, items).argmax(1))


def test_predictions_are_the_logits_in_order(tmp_path, kind):
    items = images(5)
    trainer = make(kind, tmp_path)
    output = trainer.predict(items, metric_key_prefix="mine")
    assert np.allclose(output.predictions, logits(trainer, items), atol=1e-12)
    assert np.array_equal(output.label_ids, torch.stack([item["labels"] for item in items]).numpy())
    assert {f"mine_{key}" for key in (*SPEED, "loss")} <= output.metrics.keys()


def test_predictions_need_no_labels(tmp_path, kind):
    items = [{"pixel_values": item["pixel_values"]} for item in images(3)]
    trainer = make(kind, tmp_path)
    output = trainer.predict(items)
    assert np.allclose(output.predictions, logits(trainer, items), atol=1e-12)
    assert output.label_ids is None and "test_loss" not in output.metrics


def test_an_evaluation_changes_nothing(tmp_path, kind):
    networks = []
    for strategy in ("no", "steps"):
        trainer = make(
            kind,
            tmp_path,
            network=tiny.model(batch_norm=True),
            evaluation=images(3),
            max_steps=3,
            eval_strategy=strategy,
            eval_steps=1,
        )
        trainer.train()
        networks.append(tiny.weights(trainer.model))
    assert tiny.same(*networks)
