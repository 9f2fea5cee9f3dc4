"""Boundary IoU (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from hf_fst.errors import UserError
from hf_fst.evaluation.confusion import ALWAYS_IGNORED, ConfusionMatrix, as_indices


def boundary_width(height: int, width: int, ratio: float = 0.02) -> int:
    """Pixels that a boundary reaches into its class: `ratio` of the image's diagonal, rounded, at least 1 (section 4)."""
    return max(1, round(ratio * (height**2 + width**2) ** 0.5))


def near_boundary(index_map: np.ndarray, distance: int) -> np.ndarray:
    """Marks the pixels (H, W) that have another class, or the outside of the image, at most `distance` rows and columns
    away: of every class the part that an erosion with a square of 2 x distance + 1 pixels takes off."""
    index_map = index_map.astype(np.int32)
    options = {"size": 2 * distance + 1, "mode": "constant", "cval": np.iinfo(np.int32).min}
    # all pixels of a window are one class where its least and its greatest index are the same
    return ndimage.minimum_filter(index_map, **options) != ndimage.maximum_filter(index_map, **options)


class BoundaryIoU:
    """IoU of the pixels of each class that lie near the class's boundary, counted over all images.

    Boundary IoU(c) = |G_d ∩ P_d| / |G_d ∪ P_d|, G_d the labeled and P_d the predicted pixels of class c within d pixels
    of their region's boundary (equation 2). Pixels without a label count in neither, and their rim is a boundary
    of both maps, so that a perfect prediction scores 1.

    Args:
        num_labels: number of classes C.
        ignore_index: label that is not counted (255 and -100 never are), or None.
        ratio: d as a part of the image's diagonal; the paper takes 0.02.
    """

    def __init__(self, num_labels: int, ignore_index: int | None = 255, ratio: float = 0.02):
        if not 0 < ratio < 1:
            raise UserError(
                f"The boundary ratio is {ratio}, but it is a part of the image's diagonal between 0 and 1."
            )
        if num_labels > 254:
            raise UserError(f"There are {num_labels} classes, but boundary IoU takes at most 254.")
        self.num_labels, self.ratio = num_labels, ratio
        self.ignored = {*ALWAYS_IGNORED, *([] if ignore_index is None else [ignore_index])}
        # one class more: the pixels far from any boundary
        self.matrix = ConfusionMatrix(num_labels + 1, ignore_index=None)

    def update(self, predictions: Any, labels: Any) -> None:
        """Counts class indices (B, H, W), or lists of B maps (H, W) of different sizes; errors as `ConfusionMatrix`."""
        if len(predictions) != len(labels):
            raise UserError(f"There are {len(predictions)} predictions and {len(labels)} labels: they must be pairs.")
        pairs = [self._rims(p, y) for p, y in zip(predictions, labels, strict=True)]
        self.matrix.update([prediction for prediction, _ in pairs], [label for _, label in pairs])

    def _rims(self, prediction: Any, label: Any) -> tuple[np.ndarray, np.ndarray]:
        prediction = as_indices(prediction, "predictions").cpu().numpy().astype(np.int64)
        label = as_indices(label, "labels").cpu().numpy().astype(np.int64)
        if prediction.shape != label.shape or label.ndim != 2:
            raise UserError(f"A prediction has shape {prediction.shape} and its label {label.shape}: both are (H, W).")
        void = np.isin(label, list(self.ignored))
        strange = np.unique(label[~void & ((label < 0) | (label >= self.num_labels))])
        if len(strange):
            raise UserError(
                f"The labels hold {strange[0]}, but there are {self.num_labels} classes and no such label."
            )
        distance = boundary_width(*label.shape, self.ratio)
        # no class, however numbered, may be taken for the class of far pixels
        prediction = np.where((prediction >= 0) & (prediction < self.num_labels), prediction, self.num_labels + 1)
        maps = []
        for index_map in (prediction, label):
            index_map = np.where(void, -100, index_map)
            maps.append(np.where(near_boundary(index_map, distance), index_map, self.num_labels))
        return maps[0], maps[1]

    def compute(self, classes: Sequence[int] | None = None) -> dict[str, Any]:
        """Gives `mean_boundary_iou`, a float in 0..1 over `classes` (all by default) that occur, and
        `per_category_boundary_iou`, a list of C floats, nan for absent classes; every process must call it."""
        chosen = list(range(self.num_labels)) if classes is None else list(classes)
        result = self.matrix.compute(chosen)
        return {"mean_boundary_iou": result["mean_iou"], "per_category_boundary_iou": result["per_category_iou"][:-1]}
