"""Hard pseudo-labels of the teacher on the image that the student sees."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hf_fst.method.augmentation import StrongAugmentation
from hf_fst.method.losses import output_cross_entropy, pseudo_labels
from hf_fst.method.objectives.base import Objective

WEIGHTINGS = ("constant", "quality", "threshold")


class PseudoLabelObjective(Objective):
    """L(θ | φ) = CE(g_θ(x_l), y_l) + λ·CE(g_θ(x_u), ŷ_u), ŷ_u = argmax g_φ(x_u) (paper, Eq. of L and Sec. 3.1).

    Args:
        unlabeled_weight: λ ≥ 0.
        weighting: `"constant"` weighs every pixel by λ; `"quality"` by λ·q, q being the share of pixels of the group
            whose confidence reaches the threshold (DACS, DAFormer); `"threshold"` by λ where the pixel's own confidence
            reaches it and 0 elsewhere (FixMatch).
        confidence_threshold: in [0, 1].
        ignore_top, ignore_bottom: rows of the unlabeled image whose pseudo-labels get weight 0.
        jitter_probability, jitter_strength, blur_probability, augmentation_draw: strong augmentation of what the student
            sees (`hf_fst.method.augmentation`).
        weigh_auxiliary: whether the pixels of auxiliary heads are weighted as well.
    """

    names = ("labeled_loss", "unlabeled_loss")
    needs_unlabeled = True

    def __init__(
        self,
        *,
        unlabeled_weight: float = 1.0,
        weighting: str = "constant",
        confidence_threshold: float = 0.968,
        ignore_top: int = 0,
        ignore_bottom: int = 0,
        jitter_probability: float = 0.0,
        jitter_strength: float = 0.2,
        blur_probability: float = 0.0,
        augmentation_draw: str = "image",
        weigh_auxiliary: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.unlabeled_weight = unlabeled_weight
        self.weighting = weighting
        self.confidence_threshold = confidence_threshold
        self.ignore_top, self.ignore_bottom = ignore_top, ignore_bottom
        self.augmentation_draw, self.weigh_auxiliary = augmentation_draw, weigh_auxiliary
        self.augment = StrongAugmentation(jitter_probability, jitter_strength, blur_probability, augmentation_draw)

    def prepare(self, teacher, batch: dict) -> dict:
        """Adds `pseudo_labels`, `pseudo_confidence` (B,H,W) and what the student sees: `mixed_*`."""
        batch = super().prepare(teacher, batch)
        images = batch["unlabeled_pixel_values"]
        labels, confidence = pseudo_labels(teacher(images).logits, images.shape[-2:], self.align_corners)
        batch |= {"pseudo_labels": labels, "pseudo_confidence": confidence}
        batch |= self.mix(batch, images, labels, self.pixel_weight(confidence))
        batch["mixed_pixel_values"] = self.augment(batch["mixed_pixel_values"])
        return batch

    def pixel_weight(self, confidence: torch.Tensor) -> torch.Tensor:
        """Weight (B,H,W) of each pseudo-label but for λ and q."""
        weight = torch.ones_like(confidence)
        if self.weighting == "threshold":
            weight = (confidence >= self.confidence_threshold).to(confidence.dtype)
        weight[:, : self.ignore_top] = 0
        weight[:, max(confidence.shape[1] - self.ignore_bottom, 0) :] = 0
        return weight

    def mix(self, batch: dict, images: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> dict:
        """What the student learns from: images `mixed_pixel_values`, `mixed_labels`, their `mixed_weight`, and
        `mixed_is_pseudo`, True where the label is the teacher's."""
        return {
            "mixed_pixel_values": images,
            "mixed_labels": labels,
            "mixed_weight": weight,
            "mixed_is_pseudo": torch.ones_like(labels, dtype=torch.bool),
        }

    def counts(self, batch: dict) -> dict[str, torch.Tensor]:
        """Labeled pixels, mixed pixels, and the two counts behind the quality ratio q."""
        confidence = batch["pseudo_confidence"]
        return {
            **super().counts(batch),
            "mixed": self.pixels(batch["mixed_labels"]),
            "confident": (confidence >= self.confidence_threshold).sum(),
            "pseudo": torch.tensor(confidence.numel(), device=confidence.device),
        }

    def terms(self, student, teacher, batch: dict, totals: dict) -> Iterator[tuple[str, torch.Tensor]]:
        """CE on labels, then λ·CE on pseudo-labels."""
        yield self.labeled_term(student, batch, totals)
        weight = batch["mixed_weight"]
        if self.weighting == "quality":
            quality = (totals["confident"] / totals["pseudo"]).to(weight.dtype)
            weight = torch.where(batch["mixed_is_pseudo"], weight * quality, weight)
        output = student(pixel_values=batch["mixed_pixel_values"])
        loss = output_cross_entropy(
            output,
            batch["mixed_labels"],
            totals["mixed"],
            weight,
            self.auxiliary_loss_weight,
            self.align_corners,
            self.weigh_auxiliary,
        )
        yield "unlabeled_loss", self.unlabeled_weight * loss
