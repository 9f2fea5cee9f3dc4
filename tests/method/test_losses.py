"""Per-pixel losses against numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_fst.method.losses import (
    cross_entropy,
    ignore_as_255,
    output_cross_entropy,
    percentile,
    pseudo_labels,
    resize_to,
)

# probabilities 3/4 and 1/4 everywhere: CE is ln(4/3) for class 0 and ln 4 for class 1
LOGITS = torch.tensor([math.log(3), 0.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 2, 2)
LABELS = torch.tensor([[[0, 1], [255, 1]]])
ZERO, ONE = math.log(4 / 3), math.log(4)


def test_cross_entropy_is_the_sum_over_valid_pixels_by_the_given_total():
    assert cross_entropy(LOGITS, LABELS, 3).item() == pytest.approx((ZERO + 2 * ONE) / 3, abs=1e-15)
    assert cross_entropy(LOGITS, LABELS, torch.tensor(6)).item() == pytest.approx((ZERO + 2 * ONE) / 6, abs=1e-15)


def test_cross_entropy_weighs_each_pixel():
    weight = torch.tensor([[[0.5, 2.0], [7.0, 0.0]]], dtype=torch.float64)
    assert cross_entropy(LOGITS, LABELS, 4, weight).item() == pytest.approx((0.5 * ZERO + 2 * ONE) / 4, abs=1e-15)


def test_nothing_to_learn_from_gives_zero_and_no_gradient_instead_of_nan():
    logits = LOGITS.clone().requires_grad_()
    loss = cross_entropy(logits, torch.full_like(LABELS, 255), torch.tensor(0))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_logits_are_resized_to_the_labels_without_aligned_corners():
    logits = torch.tensor([[[[0.0, 4.0]]]])
    assert torch.equal(resize_to(logits, (1, 4)), torch.tensor([[[[0.0, 1.0, 3.0, 4.0]]]]))
    assert resize_to(logits, (1, 2)) is logits
    coarse = LOGITS[..., :1, :1]
    assert cross_entropy(coarse, LABELS, 3).item() == pytest.approx((ZERO + 2 * ONE) / 3, abs=1e-15)


def test_auxiliary_heads_count_by_their_weight():
    output = SemanticSegmenterOutput(logits=LOGITS)
    main = cross_entropy(LOGITS, LABELS, 3)
    assert torch.equal(output_cross_entropy(output, LABELS, 3, auxiliary_weight=0.4), main)
    flipped = LOGITS.flip(1)  # CE is ln 4 for class 0, ln(4/3) for class 1
    output["auxiliary_logits"] = {"a": flipped, "b": LOGITS}
    expected = main + 0.5 * (ONE + 2 * ZERO) / 3 + 0.5 * main
    assert torch.allclose(output_cross_entropy(output, LABELS, 3, auxiliary_weight=0.5), expected, rtol=0, atol=1e-15)
    assert torch.equal(output_cross_entropy(output, LABELS, 3, auxiliary_weight=0), main)


def test_pseudo_labels_are_the_most_probable_class_at_image_size():
    logits = torch.tensor([[[[math.log(3), 0.0]], [[0.0, math.log(9)]]]])  # 3/4 for class 0, 9/10 for class 1
    labels, confidence = pseudo_labels(logits, (1, 2))
    assert labels.tolist() == [[[0, 1]]]
    assert confidence.flatten().tolist() == pytest.approx([0.75, 0.9], abs=1e-6)
    labels, confidence = pseudo_labels(logits, (2, 4))
    assert labels.shape == confidence.shape == (1, 2, 4) and labels.dtype == torch.int64


def test_both_ways_of_writing_ignored_pixels_become_one():
    assert ignore_as_255(torch.tensor([0, -100, 255, 2])).tolist() == [0, 255, 255, 2]


def test_logits_are_resized_with_aligned_corners_where_the_network_wants_it():
    # two pixels to three: with aligned corners the middle one is their mean, and the outer ones are kept
    row = torch.tensor([[[[0.0, 4.0]]]])
    assert torch.equal(resize_to(row, (1, 3), align_corners=True), torch.tensor([[[[0.0, 2.0, 4.0]]]]))
    assert not torch.equal(resize_to(row, (1, 4), align_corners=False), resize_to(row, (1, 4), align_corners=True))
    logits = torch.cat([row, 3 - row], dim=1)
    labels, _ = pseudo_labels(logits, (1, 3), align_corners=True)
    assert torch.equal(labels, torch.tensor([[[1, 0, 0]]]))


@pytest.mark.parametrize("percent", [0, 12.5, 50, 80, 99.9, 100])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_a_percentile_is_numpys(percent, count):
    values = torch.rand(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    assert percentile(values, percent).item() == pytest.approx(np.percentile(values.numpy(), percent), abs=1e-15)


def test_pixels_of_auxiliary_heads_are_weighted_where_wanted():
    output = SemanticSegmenterOutput(logits=LOGITS)
    output["auxiliary_logits"] = {"a": LOGITS}
    weight = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]], dtype=torch.float64)  # of class 0, 1, ignored, 1
    weighted = output_cross_entropy(output, LABELS, 3, weight, auxiliary_weight=0.5)
    assert weighted.item() == pytest.approx(1.5 * ONE / 3)
    plain = output_cross_entropy(output, LABELS, 3, weight, auxiliary_weight=0.5, weigh_auxiliary=False)
    assert plain.item() == pytest.approx(ONE / 3 + 0.5 * (ZERO + 2 * ONE) / 3)
