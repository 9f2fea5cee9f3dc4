"""The terms of each objective on images of four pixels whose losses are worked by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_fst.method.objectives import (
    OBJECTIVES,
    ClassMixObjective,
    CutMixObjective,
    EntropyDropObjective,
    PseudoLabelObjective,
    SupervisedObjective,
)
from hf_fst.method.teacher import EMATeacher
from hf_fst.models.features import return_features
from hf_fst.training.settings import make_objective, resolve
from tests import tiny
from tests.device import DEVICE, on_device

# the student gives class 0 probability 3/4 everywhere: CE ln(4/3) for class 0, ln 4 for class 1
ZERO, ONE = math.log(4 / 3), math.log(4)


def student(pixel_values):
    logits = torch.tensor([math.log(3), 0.0], dtype=torch.float64).view(1, 2, 1, 1)
    return SemanticSegmenterOutput(logits=logits.expand(len(pixel_values), 2, *pixel_values.shape[-2:]))


def teacher(pixel_values):
    """Where the first channel is x > 0, class 1 with odds x; where it is negative, class 0 with odds -x."""
    x = pixel_values[:, :1]
    logits = torch.cat([(-x).clamp(min=1).log(), x.clamp(min=1).log()], dim=1)
    return SemanticSegmenterOutput(logits=logits)


def image(*rows):
    """(1,3,H,W) whose first channel is given."""
    values = torch.tensor([rows], dtype=torch.float64)
    return torch.stack([values, values * 0, values * 0], dim=1)


# without augmentation, every pixel with weight λ
PLAIN = {"weighting": "constant", "jitter_probability": 0.0, "blur_probability": 0.0}
QUIET = {"jitter_probability": 0.0, "blur_probability": 0.0}

# pseudo-labels 0 1 / 1 0 with confidences 3/4, 9/10, 19/20, 1/2
UNLABELED = image([-3, 9], [19, -1])
BATCH = {
    "pixel_values": image([1, 1], [1, 1]),
    "labels": torch.tensor([[[0, 1], [-100, 255]]]),
    "unlabeled_pixel_values": UNLABELED,
}


def losses(objective, batch=BATCH, more=()):
    """Terms of `batch`, totals being counted over it and `more`."""
    group = [objective.prepare(teacher, b) for b in (batch, *more)]
    counts = [objective.counts(b) for b in group]
    totals = {key: sum(count[key] for count in counts) for key in counts[0]}
    passes = list(objective.terms(student, teacher, group[0], totals))
    assert len(passes) == objective.passes
    return {name: loss.item() for losses in passes for name, loss in losses.items()}


def test_labelled_term_is_the_mean_over_valid_pixels():
    assert losses(SupervisedObjective())["labeled_loss"] == pytest.approx((ZERO + ONE) / 2, abs=1e-15)


def test_labelled_term_over_all_pixels_divides_by_the_ignored_ones_too():
    objective = SupervisedObjective(loss_reduction="all")
    assert losses(objective)["labeled_loss"] == pytest.approx((ZERO + ONE) / 4, abs=1e-15)


def test_means_are_taken_over_the_whole_group():
    other = {**BATCH, "labels": torch.tensor([[[0, 0], [0, 1]]])}
    objective = PseudoLabelObjective()
    first, second = losses(objective, BATCH, [other]), losses(objective, other, [BATCH])
    assert first["labeled_loss"] == pytest.approx((ZERO + ONE) / 6, abs=1e-15)
    assert second["labeled_loss"] == pytest.approx((3 * ZERO + ONE) / 6, abs=1e-15)
    assert first["unlabeled_loss"] == pytest.approx((2 * ZERO + 2 * ONE) / 8, abs=1e-15)


def test_pseudo_labels_count_by_lambda():
    objective = PseudoLabelObjective(unlabeled_weight=0.3)
    assert losses(objective)["unlabeled_loss"] == pytest.approx(0.3 * (2 * ZERO + 2 * ONE) / 4, abs=1e-15)


def test_quality_is_the_share_of_confident_pixels_of_the_group():
    objective = PseudoLabelObjective(weighting="quality", confidence_threshold=0.85, unlabeled_weight=0.5)
    # two of four pixels
    assert losses(objective)["unlabeled_loss"] == pytest.approx(0.5 * 0.5 * (ZERO + ONE) / 2, abs=1e-15)
    sure = {**BATCH, "unlabeled_pixel_values": image([-99, -99], [-99, -99])}
    # six of eight
    assert losses(objective, BATCH, [sure])["unlabeled_loss"] == pytest.approx(
        0.5 * 0.75 * (2 * ZERO + 2 * ONE) / 8, abs=1e-15
    )


def test_threshold_keeps_confident_pixels_alone_and_still_divides_by_all():
    objective = PseudoLabelObjective(weighting="threshold", confidence_threshold=0.8)
    assert losses(objective)["unlabeled_loss"] == pytest.approx(2 * ONE / 4, abs=1e-15)


@pytest.mark.parametrize(
    "top, bottom, expected",
    [(1, 0, (ONE + ZERO) / 4), (0, 1, (ZERO + ONE) / 4), (1, 1, 0), (0, 3, 0), (5, 0, 0), (0, 2, 0)],
)
def test_ignored_rows_weigh_nothing_though_more_than_there_are(top, bottom, expected):
    objective = PseudoLabelObjective(ignore_top=top, ignore_bottom=bottom)
    assert losses(objective)["unlabeled_loss"] == pytest.approx(expected, abs=1e-15)


def test_ignored_rows_still_count_in_the_quality():
    objective = PseudoLabelObjective(weighting="quality", confidence_threshold=0.85, ignore_top=1)
    assert losses(objective)["unlabeled_loss"] == pytest.approx(0.5 * (ONE + ZERO) / 4, abs=1e-15)


def test_class_mix_pastes_labels_with_weight_one_onto_pseudo_labels_with_weight_q():
    # one class: it is pasted whole; the void pixels stay the unlabelled image's
    batch = {**BATCH, "labels": torch.tensor([[[1, 1], [255, 255]]])}
    objective = ClassMixObjective(num_labels=2, confidence_threshold=0.85, unlabeled_weight=0.5, **QUIET)
    prepared = objective.prepare(teacher, batch)
    assert torch.equal(prepared["mixed_pixel_values"], image([1, 1], [19, -1]))
    assert prepared["mixed_labels"].tolist() == [[[1, 1], [1, 0]]]
    assert prepared["mixed_is_pseudo"].tolist() == [[[False, False], [True, True]]]
    expected = 0.5 * (2 * ONE + 0.5 * (ONE + ZERO)) / 4
    assert losses(objective, batch)["unlabeled_loss"] == pytest.approx(expected, abs=1e-15)


def test_class_mix_pastes_over_ignored_rows():
    batch = {**BATCH, "labels": torch.tensor([[[1, 255], [255, 255]]])}
    objective = ClassMixObjective(num_labels=2, ignore_top=1, **PLAIN)
    assert objective.prepare(teacher, batch)["mixed_weight"].tolist() == [[[1, 0], [1, 1]]]


def test_class_mix_pastes_a_labelled_image_onto_each_of_its_unlabelled_ones():
    labels = torch.tensor([[[0, 255], [255, 255]], [[255, 255], [255, 1]]])
    batch = {
        "pixel_values": torch.cat([image([5, 5], [5, 5]), image([6, 6], [6, 6])]),
        "labels": labels,
        "unlabeled_pixel_values": UNLABELED.repeat(4, 1, 1, 1),
    }
    mixed = ClassMixObjective(num_labels=2, **PLAIN).prepare(teacher, batch)["mixed_pixel_values"][:, 0]
    pasted = [[5, 9], [19, -1]], [[-3, 9], [19, 6]]
    assert mixed[0].tolist() in pasted and sorted(m.tolist() for m in mixed) == sorted([*pasted, *pasted])


def test_class_mix_wants_crops_of_one_size():
    with pytest.raises(ValueError) as error:
        ClassMixObjective(num_labels=2).prepare(teacher, {**BATCH, "unlabeled_pixel_values": image([1, 1, 1])})
    assert str(error.value) == (
        "class_mix got labeled crops of (2, 2) and unlabeled ones of (1, 3) pixels; give both the same crop size."
    )


def test_cut_mix_pastes_the_next_image_with_its_labels_and_weights():
    # of three images the next one is not the previous one; classes 0, 1, 0 with confidences 3/4, 99/100, 39/40
    values = torch.tensor([-3, 99, -39], dtype=torch.float64).view(3, 1, 1)
    unlabeled = torch.cat([image(*value.expand(8, 8).tolist()) for value in values.unbind()])
    objective = CutMixObjective(cut_probability=1.0, **QUIET)
    torch.manual_seed(0)
    prepared = objective.prepare(teacher, {**BATCH, "unlabeled_pixel_values": unlabeled})
    mixed = prepared["mixed_pixel_values"][:, 0]
    pasted = mixed == values[[1, 2, 0]]
    assert torch.equal(mixed == values, ~pasted) and pasted.any((1, 2)).all() and (~pasted).any((1, 2)).all()
    assert torch.equal(prepared["mixed_labels"], (mixed > 0).long())
    assert torch.equal(prepared["mixed_weight"], (mixed.abs() > 19).double())  # a threshold of 19/20
    assert prepared["mixed_is_pseudo"].all()


def test_cut_mix_that_never_cuts_is_the_plain_pseudo_label():
    plain = losses(PseudoLabelObjective())
    assert losses(CutMixObjective(cut_probability=0.0, **PLAIN)) == plain


def ready(name, batch, **network):
    """The objective by its name with its defaults, and a teacher that can label for it."""
    student = tiny.network_of(name, **network)
    if OBJECTIVES[name].needs_features:
        return_features(student)
    args = tiny.config("unused", objective=name, rule="mean_teacher")
    objective = make_objective(resolve(args), tiny.CLASSES, reference=student)
    objective.begin(iter([batch]), SimpleNamespace(gather=lambda found: found, device=DEVICE))
    return objective, EMATeacher(student)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_teachers_batch_is_not_changed(name):
    batch = on_device({key: value.clone() for key, value in BATCH.items()})
    objective, teacher = ready(name, batch)
    assert isinstance(objective, OBJECTIVES[name])
    batch["progress"] = 0.0
    objective.prepare(teacher, batch)
    assert batch.keys() == {*BATCH, "progress"}
    assert all(torch.equal(batch[key].cpu(), BATCH[key]) for key in BATCH)


def test_only_what_the_student_sees_is_augmented_strongly():
    seen = []

    def looking(pixel_values):
        seen.append(pixel_values)
        return teacher(pixel_values)

    objective = PseudoLabelObjective(jitter_probability=1.0, jitter_strength=0.5)
    torch.manual_seed(0)
    prepared = objective.prepare(looking, BATCH)
    assert len(seen) == 1 and torch.equal(seen[0], UNLABELED)
    assert not torch.equal(prepared["mixed_pixel_values"], UNLABELED)
    assert torch.equal(prepared["pixel_values"], BATCH["pixel_values"])


@pytest.mark.parametrize("ohem", [{}, {"ohem_threshold": 0.5, "ohem_min_kept": 1}])
def test_entropy_drop_teaches_auxiliary_heads_labels_alone(ohem):
    def two_heads(pixel_values):
        output = student(pixel_values)
        output["auxiliary_logits"] = {"auxiliary_head": -output.logits}  # class 0 with probability 1/4
        return output

    objective = EntropyDropObjective(unlabeled_weight=0.5, auxiliary_loss_weight=0.4, **ohem)
    batch = {
        "pixel_values": image([1, 1]),
        "labels": torch.tensor([[[0, 0]]]),
        "mixed_pixel_values": image([1, 1]),
        "mixed_labels": torch.tensor([[[0, 255]]]),
        "mixed_valid": torch.tensor([[[True, True]]]),
    }
    [losses] = objective.terms(two_heads, None, batch, objective.counts(batch))
    assert losses["labeled_loss"].item() == pytest.approx(ZERO + 0.4 * ONE)
    assert losses["unlabeled_loss"].item() == pytest.approx(0.5 * (2 / 1) * ZERO)  # λ · P / n · CE


@pytest.mark.parametrize("weighs", [True, False])
def test_whether_auxiliary_heads_weigh_pseudo_labels_is_an_option(weighs):
    args = tiny.config("unused", objective="class_mix", rule="mean_teacher", auxiliary_pseudo_weight=weighs)
    assert make_objective(resolve(args), 2).weigh_auxiliary is weighs


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_teacher_that_has_labeled_is_in_evaluation_mode_again(name):
    objective, teacher = ready(name, on_device(BATCH), batch_norm=True, dropout=0.5)
    objective.prepare(teacher, {**on_device(BATCH), "progress": 0.0})
    assert not any(module.training for module in teacher.model.modules())
