"""Semi-supervised CutMix: a rectangle of one unlabeled image pasted into another."""

from __future__ import annotations

import torch

from hf_fst.method.mixing import cut_mask, mix
from hf_fst.method.objectives.pseudo_label import PseudoLabelObjective


class CutMixObjective(PseudoLabelObjective):
    """CE(g_θ(x_l), y_l) + λ·CE(g_θ(cut(x_u, x_u')), cut(ŷ_u, ŷ_u')), x_u' being the next unlabeled image of the batch
    (French et al., 2020; the CutMix recipes of the authors' semi-supervised code).

    Args:
        cut_probability: with which an image is cut at all.
    """

    def __init__(self, *, cut_probability: float = 0.5, **kwargs):
        super().__init__(**kwargs)
        self.cut_probability = cut_probability

    def mix(self, batch: dict, images: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> dict:
        """Image i outside the rectangle, image i + 1 (cyclic) inside."""
        size, device = images.shape[-2:], images.device
        mask = cut_mask(len(images), size, device, self.cut_probability, self.augmentation_draw)
        return {
            "mixed_pixel_values": mix(mask, images, images.roll(-1, dims=0)),
            "mixed_labels": mix(mask, labels, labels.roll(-1, dims=0)),
            "mixed_weight": mix(mask, weight, weight.roll(-1, dims=0)),
            "mixed_is_pseudo": torch.ones_like(labels, dtype=torch.bool),
        }
