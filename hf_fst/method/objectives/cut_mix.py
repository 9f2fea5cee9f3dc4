"""Semi-supervised CutMix: a rectangle of one unlabeled image pasted into another."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_fst.method.losses import IGNORE_INDEX
from hf_fst.method.mixing import cut_mask, mix
from hf_fst.method.objectives.pseudo_label import PseudoLabelObjective
from hf_fst.method.options import option


@dataclass(frozen=True, kw_only=True, eq=False)
class CutMixObjective(PseudoLabelObjective):
    """CE(g_θ(x_l), y_l) + λ·CE(g_θ(cut(x_u, x_u')), cut(ŷ_u, ŷ_u')), x_u' being the next unlabeled image of the batch
    (French et al., 2020; the CutMix recipes of the authors' semi-supervised code).

    Args:
        cut_probability: with which an image is cut at all.
    """

    cut_probability: float = option(0.5)
    weighting: str = option("threshold", "unlabeled_weighting")
    confidence_threshold: float = option(0.95)
    jitter_probability: float = option(0.8)
    blur_probability: float = option(0.5)

    def mix(self, batch: dict, images: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> dict:
        """See `cut_mixed`."""
        return cut_mixed(images, labels, weight, self.cut_probability, self.augmentation_draw)


def cut_mixed(
    images: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, probability: float, draw: str
) -> dict[str, torch.Tensor]:
    """Image i outside the rectangle, image i + 1 (cyclic) inside; labels and weights alike. Padding is not pasted.

    Args:
        images: (B,3,H,W).
        labels: pseudo-labels (B,H,W), 255 on padding.
        weight: of each pseudo-label (B,H,W).
        probability, draw: see `hf_fst.method.mixing.cut_mask`.
    """
    mask = cut_mask(len(images), images.shape[-2:], images.device, probability, draw)
    mask = mask | (labels.roll(-1, dims=0) == IGNORE_INDEX).unsqueeze(1)
    return {
        "mixed_pixel_values": mix(mask, images, images.roll(-1, dims=0)),
        "mixed_labels": mix(mask, labels, labels.roll(-1, dims=0)),
        "mixed_weight": mix(mask, weight, weight.roll(-1, dims=0)),
        "mixed_is_pseudo": torch.ones_like(labels, dtype=torch.bool),
    }
