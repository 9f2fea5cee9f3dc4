"""What is logged of the pseudo-labels, and that looking changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_fst.method.rules import DeepFST, NaiveFST, Supervised, WideFST
from tests import tiny


def logged(tmp_path, **options):
    unlabeled = tiny.images(8, 2)  # with labels, for diagnostics
    trainer = tiny.trainer(
        tmp_path,
        tiny.model(batch_norm=True, dropout=0.3),
        sets=(tiny.images(6, 1), unlabeled),
        **{
            "rule": "fst_d",
            "objective": "class_mix",
            "confidence_threshold": 0.4,
            "max_steps": 4,
            "learning_rate": 0.1,
            "teacher_momentum": 0.5,
            "logging_strategy": "steps",
            "logging_steps": 1,
            **options,
        },
    )
    trainer.train()
    return trainer


SHARES = ["pseudo_confidence", "pseudo_above_threshold", "pseudo_disagreement", "pseudo_changed"]
TRUTH = ["pseudo_accuracy", "pseudo_mean_iou"]


def test_terms_and_health_of_the_pseudo_labels_are_logged(tmp_path):
    trainer = logged(tmp_path)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 4
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["labeled_loss"] + entry["unlabeled_loss"], abs=1e-5)
        assert all(0 <= entry[key] <= 1 for key in SHARES + TRUTH)
        assert sum(entry[f"pseudo_share_LABEL_{c}"] for c in range(3)) == pytest.approx(1, abs=1e-12)
    assert any(entry["pseudo_changed"] > 0 for entry in entries)


def test_truth_about_pseudo_labels_is_over_the_classes_that_are_evaluated(tmp_path):
    trainer = logged(tmp_path, eval_classes=[1])
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    # with one class the mIoU is that class's IoU, the accuracy the share of its pixels that is found: never below it
    assert all(entry["pseudo_mean_iou"] <= entry["pseudo_accuracy"] for entry in entries)
    everything = [entry for entry in logged(tmp_path).state.log_history if "loss" in entry]
    assert [e["pseudo_mean_iou"] for e in entries] != [e["pseudo_mean_iou"] for e in everything]


def test_truth_about_pseudo_labels_is_told_only_where_there_are_labels(tmp_path):
    trainer = tiny.trainer(tmp_path, rule="fst_d", logging_strategy="steps", logging_steps=1)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert all(key in entry for key in SHARES) and not any(key in entry for key in TRUTH)


@pytest.mark.parametrize("rule", [DeepFST(2), NaiveFST(), WideFST(2, "different", "present")], ids=repr)
@pytest.mark.parametrize("buffers", ["copy", "batch"])
def test_looking_at_health_does_not_change_the_run(tmp_path, rule, buffers):
    networks = []
    for strategy in ("steps", "no"):
        trainer = tiny.trainer(
            tmp_path,
            tiny.model(batch_norm=True, dropout=0.3),
            sets=(tiny.images(6, 1), tiny.images(8, 2)),
            trainer_options={"rule": rule},
            objective="class_mix",
            learning_rate=0.1,
            teacher_momentum=0.5,
            logging_strategy=strategy,
            logging_steps=1,
            teacher_buffers=buffers,
        )
        trainer.train()
        networks.append((tiny.weights(trainer.model), tiny.weights(trainer.teacher.model)))
    for with_health, without in zip(*networks, strict=True):
        assert tiny.same(with_health, without)


@pytest.mark.parametrize("rule", [NaiveFST(), DeepFST(3)], ids=repr)
def test_changed_is_the_share_of_pixels_that_the_look_ahead_relabelled(tmp_path, rule):
    """Counted anew: labels of the teacher before and after the rule's look-ahead, on the same images."""
    trainer = tiny.trainer(
        tmp_path,
        sets=(tiny.images(6, 1), tiny.images(8, 2, labels=False)),
        trainer_options={"rule": rule},
        learning_rate=0.3,
        momentum_warmup=False,
        teacher_momentum=0.3,
        logging_strategy="steps",
        logging_steps=1,
    )
    expected = []

    def labels(images):
        coarse = trainer.teacher(images).logits
        return nn.functional.interpolate(coarse, images.shape[-2:], mode="bilinear").argmax(1)

    class Counted:
        def look_ahead(self, step):
            images, kept = step.group[0]["unlabeled_pixel_values"], tiny.weights(trainer.teacher.model)
            if not isinstance(rule, NaiveFST):  # the present is followed first
                trainer.teacher.follow(list(trainer.model.parameters()), [], 0.3)
            before = labels(images)
            with torch.no_grad():
                for now, then in zip(trainer.teacher.model.parameters(), kept, strict=True):
                    now.copy_(then)
            rule.look_ahead(step)
            expected.append((labels(images) != before).double().mean().item())

    trainer.rule = Counted()
    trainer.train()
    found = [entry["pseudo_changed"] for entry in trainer.state.log_history if "loss" in entry]
    assert found == pytest.approx(expected, abs=1e-12) and max(found) > 0


def test_a_run_without_labels_for_the_teacher_has_no_health(tmp_path):
    trainer = tiny.trainer(tmp_path, rule="supervised", logging_strategy="steps", logging_steps=1)
    trainer.train()
    assert isinstance(trainer.rule, Supervised) and not trainer.has_teacher
    assert not any(key.startswith("pseudo_") for entry in trainer.state.log_history for key in entry)
