"""Boundary IoU, against maps worked by hand and the erosion of its definition."""

import math

import numpy as np
import pytest
from scipy import ndimage

from hf_fst.evaluation.boundary import BoundaryIoU, boundary_width, near_boundary


def definition(predictions, labels, num_labels, ratio):
    """Each class's mask is eroded by itself, one pixel d times, with nothing of the class outside the image."""
    inter, union = np.zeros(num_labels), np.zeros(num_labels)
    for prediction, label in zip(predictions, labels, strict=True):
        distance = max(1, int(round(ratio * math.hypot(*label.shape))))
        void = label == 255
        for index in range(num_labels):
            rims = []
            for index_map in (prediction, label):
                mask = (index_map == index) & ~void
                eroded = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)
                rims.append(mask & ~eroded)
            inter[index] += (rims[0] & rims[1]).sum()
            union[index] += (rims[0] | rims[1]).sum()
    return [i / u if u else math.nan for i, u in zip(inter, union, strict=True)]


@pytest.mark.parametrize("height, width, expected", [(1024, 2048, 46), (10, 10, 1), (30, 40, 1), (75, 100, 2)])
def test_width_is_two_percent_of_the_diagonal(height, width, expected):
    # 0.02 x 2289.7 = 45.8; 0.02 x 14.1 = 0.3; 0.02 x 50 = 1; 0.02 x 125 = 2.5, rounded to even
    assert boundary_width(height, width) == expected


def test_rim_by_hand():
    index_map = np.array([
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 1, 1],
    ])  # fmt: skip
    expected = np.array([
        [1, 1, 1, 1, 1],
        [1, 0, 0, 0, 1],
        [1, 0, 0, 1, 1],
        [1, 0, 1, 1, 1],
        [1, 1, 1, 1, 1],
    ])  # fmt: skip
    assert np.array_equal(near_boundary(index_map, 1), expected.astype(bool))


def test_iou_by_hand():
    # d = 1. Label: class 1 fills 5x5. Its rim is 16 pixels. Prediction: the last column is class 0, so class 1 is 5x4
    # with a rim of 14 pixels: three sides and column 3. Common: rows 0 and 4 of columns 0-3 (8) and column 0 (3) = 11.
    label = np.ones((5, 5), dtype=np.uint8)
    prediction = label.copy()
    prediction[:, 4] = 0
    metric = BoundaryIoU(2)
    metric.update(prediction[None], label[None])
    result = metric.compute()
    assert result["per_category_boundary_iou"] == [0, 11 / (16 + 14 - 11)]
    assert result["mean_boundary_iou"] == pytest.approx(11 / 19 / 2, abs=1e-15)
    assert metric.compute(classes=[1])["mean_boundary_iou"] == 11 / 19


@pytest.mark.parametrize("ratio", [0.02, 0.1])
@pytest.mark.parametrize("void", [False, True])
def test_equals_the_definition(ratio, void):
    random = np.random.default_rng(0)
    blocks = random.integers(0, 4, (2, 3, 6, 7))
    predictions, labels = np.kron(blocks, np.ones((1, 1, 7, 6), dtype=int))
    labels = np.roll(labels, 2, axis=1)
    labels[labels == 3] = 255 if void else 2
    metric = BoundaryIoU(5, ratio=ratio)
    for prediction, label in zip(predictions, labels, strict=True):
        metric.update(prediction[None], label[None])
    expected = definition(predictions, labels, 5, ratio)
    assert metric.compute()["per_category_boundary_iou"] == pytest.approx(expected, abs=1e-15, nan_ok=True)
    assert math.isnan(expected[4]) and 0 < np.nanmin(expected[:3]) < 1


def test_a_perfect_prediction_scores_one_beside_pixels_without_label():
    label = np.zeros((20, 20), dtype=np.int64)
    label[:, 10:] = 1
    label[5:15, 5:15] = 255
    prediction = np.where(label == 255, 0, label)
    metric = BoundaryIoU(3, ratio=0.1)
    metric.update([prediction], [label])
    result = metric.compute()
    assert result["mean_boundary_iou"] == 1 and math.isnan(result["per_category_boundary_iou"][2])


def test_a_prediction_of_no_class_is_a_miss_only():
    label = np.zeros((3, 3), dtype=np.int64)
    prediction = label.copy()
    prediction[0] = 7
    metric = BoundaryIoU(2)
    metric.update([prediction], [label])
    # 8 rim pixels labeled; all 6 predicted ones are rim, of which the middle one is not in the label's rim: 5 / 9
    assert metric.compute()["per_category_boundary_iou"][0] == 5 / 9


@pytest.mark.parametrize("arguments, message", [
    ({"num_labels": 2, "ratio": 0}, "The boundary ratio is 0"),
    ({"num_labels": 300}, "at most 254"),
])  # fmt: skip
def test_bad_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        BoundaryIoU(**arguments)


def test_bad_maps():
    with pytest.raises(ValueError, match="The labels hold 9, but there are 2 classes"):
        BoundaryIoU(2).update([[[0, 0]]], [[[0, 9]]])
    with pytest.raises(ValueError, match=r"shape \(1, 2\) and its label \(2, 1\)"):
        BoundaryIoU(2).update([[[0, 0]]], [[[0], [0]]])
    with pytest.raises(ValueError, match="1 predictions and 0 labels"):
        BoundaryIoU(2).update([[[0, 0]]], [])


def test_the_rim_of_a_region_without_label_is_a_boundary():
    """9 x 9 pixels of class 0 around 3 x 3 without label; the boundary is one pixel wide.

    G: 32 pixels at the outside and 16 around the hole. The prediction is wrong at (2, 2), beside the hole: P has 47 of
    these pixels and the 5 neighbors of (2, 2) that are in neither ring.
    """
    labels = np.zeros((9, 9), dtype=np.int64)
    labels[3:6, 3:6] = 255
    predictions = np.zeros((9, 9), dtype=np.int64)
    predictions[2, 2] = 1
    metric = BoundaryIoU(2)
    metric.update([predictions], [labels])
    assert metric.compute()["per_category_boundary_iou"][0] == pytest.approx(47 / (48 + 52 - 47))
