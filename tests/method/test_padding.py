"""Padding of unlabeled crops has no pseudo-label, counts nowhere and is not pasted; numbers worked by hand."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import pytest
import torch

from hf_fst.method.objectives import ClassMixObjective, CutMixObjective, EntropyDropObjective, PseudoLabelObjective
from hf_fst.training.health import Health
from tests import tiny
from tests.device import on_device
from tests.method.test_terms import BATCH, ONE, PLAIN, QUIET, ZERO, image, losses, teacher

# pseudo-labels 0 1 / 1 0 with confidences 3/4, 9/10, 19/20, 1/2; the last pixel is padding
PADDED = {**BATCH, "unlabeled_valid": torch.tensor([[[True, True], [True, False]]])}


def test_padding_is_neither_labeled_nor_part_of_a_mean():
    objective = PseudoLabelObjective()
    prepared = objective.prepare(teacher, PADDED)
    assert prepared["pseudo_labels"].tolist() == prepared["mixed_labels"].tolist() == [[[0, 1], [1, 255]]]
    assert prepared["pseudo_confidence"][0, 1, 1] == 0
    assert losses(objective, PADDED)["unlabeled_loss"] == pytest.approx((ZERO + 2 * ONE) / 3, abs=1e-15)


def test_padding_is_no_part_of_the_quality_ratio():
    objective = PseudoLabelObjective(weighting="quality", confidence_threshold=0.85)
    expected = 2 / 3 * (ZERO + 2 * ONE) / 3  # two of three pixels are confident, not two of four
    # the ratio of counts is float32
    assert losses(objective, PADDED)["unlabeled_loss"] == pytest.approx(expected, rel=1e-7)


def test_a_batch_of_padding_alone_has_no_unlabeled_loss():
    nothing = {**BATCH, "unlabeled_valid": torch.zeros(1, 2, 2, dtype=torch.bool)}
    for weighting in ("constant", "quality", "threshold"):
        assert losses(PseudoLabelObjective(weighting=weighting), nothing)["unlabeled_loss"] == 0


def test_class_mix_pastes_onto_padding_and_leaves_the_rest_of_it_ignored():
    batch = {**PADDED, "labels": torch.tensor([[[1, 255], [255, 255]]])}
    prepared = ClassMixObjective(num_labels=2, **PLAIN).prepare(teacher, batch)
    assert prepared["mixed_labels"].tolist() == [[[1, 1], [1, 255]]]


def test_padding_of_the_labeled_image_is_not_pasted_where_ignored_pixels_are():
    valid = torch.tensor([[[True, True], [True, False]]])
    batch = {**BATCH, "labels": torch.full((1, 2, 2), 255), "valid": valid}
    prepared = ClassMixObjective(num_labels=2, classes_from="batch", **PLAIN).prepare(teacher, batch)
    assert torch.equal(prepared["mixed_pixel_values"], image([1, 1], [1, -1]))
    assert prepared["mixed_labels"].tolist() == [[[255, 255], [255, 0]]]


def test_cut_mix_does_not_paste_padding():
    unlabeled = torch.cat([image(*[[value] * 8] * 8) for value in (-3, 5, -3)])
    valid = torch.ones(3, 8, 8, dtype=torch.bool)
    valid[1] = False  # all of the second image, the next of the first alone
    batch = {**BATCH, "unlabeled_pixel_values": unlabeled, "unlabeled_valid": valid}
    torch.manual_seed(0)
    prepared = CutMixObjective(cut_probability=1.0, **QUIET).prepare(teacher, batch)
    assert torch.equal(prepared["mixed_pixel_values"][0], unlabeled[0]) and (prepared["mixed_labels"][0] == 0).all()
    pasted = prepared["mixed_pixel_values"][1, 0] == -3
    assert pasted.any() and torch.equal(prepared["mixed_labels"][1] == 0, pasted)
    assert torch.equal(prepared["mixed_pixel_values"][2], unlabeled[0])  # the next image, of the same value


def test_entropy_drop_ranks_and_counts_pixels_of_images_alone():
    class Teacher:
        """Its entropies are those of the first channel's odds."""

        model = tiny.model()

        def __call__(self, pixel_values):
            return teacher(pixel_values)

        def label_mode(self):
            """Nothing to do."""

    objective = EntropyDropObjective(drop_percent=100.0, cut_probability=0.0)
    # without its padding, the least sure pixel is the one with confidence 3/4
    prepared = objective.prepare(Teacher(), PADDED)
    assert prepared["mixed_labels"].tolist() == [[[255, 1], [1, 255]]]
    counts = objective.counts(prepared)
    assert (counts["pixels"].item(), counts["kept"].item()) == (3, 2)


def test_health_is_a_share_of_the_pixels_of_images():
    objective = SimpleNamespace(confidence_threshold=0.9, align_corners=False)
    settings = SimpleNamespace(eval_classes=None)
    health = Health(SimpleNamespace(class_names=["a", "b", "c"], learning_objective=objective, settings=settings))
    health.images = on_device(torch.zeros(1, 3, 1, 4))
    health.labels_before = on_device(torch.tensor([[[0, 0, 1, 1]]]))
    batch = {
        "pseudo_labels": torch.tensor([[[0, 1, 1, 255]]]),
        "pseudo_confidence": torch.tensor([[[0.95, 0.5, 0.95, 0.0]]]),
        "unlabeled_labels": torch.tensor([[[0, 1, 0, 2]]]),
    }
    found = health.logs(health.sums(tiny.model(dtype=torch.float32), on_device(batch)))
    assert found["pseudo_changed"] == pytest.approx(1 / 3) and found["pseudo_above_threshold"] == pytest.approx(2 / 3)
    assert found["pseudo_confidence"] == pytest.approx(2.4 / 3) and found["pseudo_accuracy"] == pytest.approx(2 / 3)
    assert math.isclose(sum(found[f"pseudo_share_{name}"] for name in "abc"), 1)


@pytest.mark.parametrize("padded", [True, False])
def test_the_share_of_padding_is_said_once(tmp_path, caplog, padded):
    images = tiny.images(4, 2, labels=False)
    for item in images:
        item["valid"] = torch.ones(8, 8, dtype=torch.bool)
        item["valid"][:4] = not padded
    logging.getLogger("transformers").propagate = True
    tiny.trainer(tmp_path, sets=(tiny.images(4), images), rule="mean_teacher", max_steps=2).train()
    found = [record.message for record in caplog.records if "are padding" in record.message]
    assert found == (["50%" + found[0][3:]] if padded else [])
