"""Keeps what a pretrained backbone knows: the distance of the student's features from those of a frozen network."""

from __future__ import annotations

import inspect
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from hf_fst.errors import UserError
from hf_fst.method.losses import IGNORE_INDEX
from hf_fst.method.options import check, option

NO_FEATURES = (
    "feature_distance_weight is set, but the model gives no feature maps (B,D,h,w) as hidden_states; set it to 0 or use "
    "one of hf_fst.models or SegFormer."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureDistance:
    """λ · mean ‖f_θ(x_l) - f_ref(x_l)‖₂ over the places of the last feature map where one class rules (DAFormer, Hoyer et
    al., 2022).

    Args:
        reference: the frozen network, usually with ImageNet weights; labels nothing and is never updated. It is copied.
        weight: λ ≥ 0 (DAFormer and the authors' code: 0.005).
        num_labels: number of classes C.
        classes: ids of the classes whose places count, all if None (DAFormer: Cityscapes' things).
        min_share: in [0, 1]; a place counts if one class has at least this share of its pixels.
    """

    reference: nn.Module
    weight: float = option(0.0, "feature_distance_weight")
    num_labels: int
    classes: list[int] | None = option(None, "feature_distance_classes")
    min_share: float = 0.75

    def __post_init__(self):
        check(self)
        takes = inspect.signature(self.reference.forward).parameters.values()
        if not any(p.name == "output_hidden_states" or p.kind is p.VAR_KEYWORD for p in takes):
            raise UserError(NO_FEATURES)
        object.__setattr__(self, "reference", deepcopy(self.reference).requires_grad_(False).eval())

    def prepare(self, batch: dict) -> dict:
        """Adds `reference_features` (B,D,h,w) and `distance_places` (B,h,w) bool."""
        with torch.no_grad():
            output = self.reference(pixel_values=batch["pixel_values"], output_hidden_states=True)
        features = last_features(output)
        return {
            **batch,
            "reference_features": features,
            "distance_places": self.places(batch["labels"], features.shape[-2:]),
        }

    def places(self, labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Places (B,h,w) bool of a feature map of `size` (h,w) that count, by average-pooled one-hot labels (B,H,W)."""
        ids = labels.masked_fill(labels == IGNORE_INDEX, self.num_labels)
        shares = F.one_hot(ids, self.num_labels + 1).permute(0, 3, 1, 2).float()
        share, ruling = F.adaptive_avg_pool2d(shares, size).max(dim=1)
        classes = range(self.num_labels) if self.classes is None else self.classes
        # one comparison a class: a list would be copied to the device, which the host would wait for
        return torch.stack([ruling == each for each in classes]).any(dim=0) & (share >= self.min_share)

    def counts(self, batch: dict) -> dict[str, torch.Tensor]:
        """`places` that the mean is over."""
        return {"places": batch["distance_places"].sum()}

    def loss(self, output, batch: dict, totals: dict) -> torch.Tensor:
        """λ times the mean distance, (); 0 where no place counts.

        Args:
            output: of the student, with `hidden_states`; its first rows belong to the labeled images.
            batch: what `prepare` returned.
            totals: the counts, summed over the group and the processes.
        """
        reference = batch["reference_features"]
        distance = torch.linalg.vector_norm(last_features(output)[: len(reference)] - reference, dim=1)
        return self.weight * (distance * batch["distance_places"]).sum() / totals["places"].clamp(min=1)


def last_features(output) -> torch.Tensor:
    """The last of a model's `hidden_states`, (B,D,h,w). Raises `ValueError` for a model that gives no feature maps."""
    states = output.get("hidden_states")
    if not states or states[-1].dim() != 4:
        raise UserError(NO_FEATURES)
    return states[-1]
