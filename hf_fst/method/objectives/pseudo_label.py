"""Hard pseudo-labels of the teacher on the image that the student sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from hf_fst.method.augmentation import StrongAugmentation
from hf_fst.method.losses import IGNORE_INDEX, output_cross_entropy
from hf_fst.method.objectives.base import Objective
from hf_fst.method.options import option


@dataclass(frozen=True, kw_only=True, eq=False)
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
        joint: whether labeled and mixed images go through the student in one pass, which is equal to rounding but for
            BatchNorm, whose statistics are then joint, and for noise, which is drawn otherwise (`joint_forward`).
    """

    needs_unlabeled: ClassVar[bool] = True
    replayable: ClassVar[bool] = True

    unlabeled_weight: float = option(1.0)
    weighting: str = option("constant", "unlabeled_weighting")
    confidence_threshold: float = option(0.968)
    ignore_top: int = option(0, "pseudo_ignore_top")
    ignore_bottom: int = option(0, "pseudo_ignore_bottom")
    jitter_probability: float = option(0.0)
    jitter_strength: float = option(0.2)
    blur_probability: float = option(0.0)
    augmentation_draw: str = option("image")
    weigh_auxiliary: bool = option(True, "auxiliary_pseudo_weight")
    joint: bool = False

    @property
    def passes(self) -> int:
        """One if the images go through the student together, else two."""
        return 1 if self.joint else 2

    @cached_property
    def augment(self) -> StrongAugmentation:
        """Strong augmentation of what the student sees."""
        numbers = self.jitter_probability, self.jitter_strength, self.blur_probability, self.augmentation_draw
        return StrongAugmentation(*numbers, mean=self.image_mean, std=self.image_std)

    def prepare(self, teacher, batch: dict) -> dict:
        """Adds `pseudo_labels`, `pseudo_confidence` (B,H,W) and what the student sees: `mixed_*`."""
        batch = super().prepare(teacher, batch)
        images = batch["unlabeled_pixel_values"]
        labels, confidence = self.label(teacher, images, batch.get("unlabeled_valid"))
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
        confidence, valid = batch["pseudo_confidence"], batch["pseudo_labels"] != IGNORE_INDEX
        return {
            **super().counts(batch),
            "mixed": self.pixels(batch["mixed_labels"]),
            "confident": (valid & (confidence >= self.confidence_threshold)).sum(),
            "pseudo": valid.sum(),
        }

    def terms(self, student, teacher, batch: dict, totals: dict) -> Iterator[dict[str, torch.Tensor]]:
        """CE on labels, then λ·CE on pseudo-labels."""
        labeled, mixed = batch["pixel_values"], batch["mixed_pixel_values"]
        # crops of two sizes make no batch: then the passes are two, with one backward pass
        together = self.joint and labeled.shape[1:] == mixed.shape[1:]
        output = self.look(student, torch.cat([labeled, mixed]) if together else labeled)
        losses = self.labeled_terms(output, batch, totals)
        if not self.joint:
            yield losses
            losses = {}
        if not together:
            output = None  # frees it
            output = student(pixel_values=mixed)
        weight = batch["mixed_weight"]
        if self.weighting == "quality":
            quality = (totals["confident"] / totals["pseudo"].clamp(min=1)).to(weight.dtype)
            weight = torch.where(batch["mixed_is_pseudo"], weight * quality, weight)
        loss = output_cross_entropy(
            output,
            batch["mixed_labels"],
            totals["mixed"],
            weight,
            self.auxiliary_loss_weight,
            self.align_corners,
            self.weigh_auxiliary,
            first=len(labeled) if together else 0,
        )
        yield losses | {"unlabeled_loss": self.unlabeled_weight * loss}
