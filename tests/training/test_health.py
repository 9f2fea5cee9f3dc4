"""What is logged of pseudo-labels, from counts worked by hand."""

import pytest
import torch

from hf_fst.training.health import PseudoLabelHealth

SUMS = {
    "pixels": torch.tensor(8),
    "confidence": torch.tensor(6.0),
    "above_threshold": torch.tensor(2),
    "disagreement": torch.tensor(4),
    "changed": torch.tensor(1),
    "histogram": torch.tensor([5, 2, 1]),
    # rows are the truth: 4 of 5 pixels of class 0 found, 1 of 2 of class 1, the one of class 2 taken for class 1
    "confusion": torch.tensor([[4, 0, 1], [1, 1, 0], [0, 1, 0]]),
}


def logs(scored=None):
    return PseudoLabelHealth(torch.zeros(1, 3, 2, 4), ["sky", "road", "car"], 0.9, scored=scored).logs(SUMS)


def test_shares_are_of_all_pixels():
    found = logs()
    assert found["pseudo_confidence"] == 0.75 and found["pseudo_above_threshold"] == 0.25
    assert found["pseudo_disagreement"] == 0.5 and found["pseudo_changed"] == 0.125
    assert [found[f"pseudo_share_{name}"] for name in ("sky", "road", "car")] == [0.625, 0.25, 0.125]
    assert found["pseudo_accuracy"] == 5 / 8
    assert found["pseudo_mean_iou"] == pytest.approx((4 / 6 + 1 / 3 + 0) / 3)


def test_truth_is_over_the_scored_classes():
    found = logs(scored=[0, 1])
    assert found["pseudo_accuracy"] == 5 / 7 and found["pseudo_mean_iou"] == pytest.approx((4 / 6 + 1 / 3) / 2)
    assert found["pseudo_share_car"] == 0.125
