"""What UniMatch and UniMatch V2 share: the teacher labels a weak view, the student learns from two strong ones of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from hf_fst.method.augmentation import StrongAugmentation
from hf_fst.method.features import refuse_without_head
from hf_fst.method.losses import IGNORE_INDEX, output_cross_entropy
from hf_fst.method.mixing import mix, small_cut_mask
from hf_fst.method.objectives.base import Objective
from hf_fst.method.options import option


@dataclass(frozen=True, kw_only=True, eq=False)
class WeakToStrongObjective(Objective):
    """Base of both: the weak view's labels ŷ and confidences, and the strong views s1, s2 with CutMix boxes of their own.

    ℓ(v) = Σ 1[conf ≥ τ]·CE(g_θ(v), ŷ) / (number of pixels that are no padding): pixels below τ stay in the divisor.

    Args:
        unlabeled_weight: weight of all unlabeled streams together, besides the ½ of the total loss.
        confidence_threshold: τ in [0, 1] (VOC 0.95).
        cut_probability: with which a view is cut at all (authors' code: 0.5).
        cut_partner: what is pasted into a view: the `"next"` image of the batch, or another view of the `"same"` image,
            which is what the code of UniMatch does.
        jitter_probability, jitter_strength, gray_probability, blur_probability, augmentation_draw: strong augmentation of
            each view (authors' code: 0.8, 0.5 with half of it for the hue, 0.2, 0.5).
    """

    passes: ClassVar[int] = 2
    needs_unlabeled: ClassVar[bool] = True
    perturbs_features: ClassVar[bool] = True
    name: ClassVar[str]

    unlabeled_weight: float = option(1.0)
    confidence_threshold: float = option(0.95)
    cut_probability: float = option(0.5)
    cut_partner: str = option("next")
    jitter_probability: float = option(0.8)
    jitter_strength: float = option(0.5)
    gray_probability: float = option(0.2)
    blur_probability: float = option(0.5)
    augmentation_draw: str = option("image")

    def fits(self, network) -> None:
        """Refuse a network whose features cannot be perturbed."""
        super().fits(network)
        refuse_without_head(network, self.name)

    @property
    def needs_partner(self) -> bool:
        """Whether batches need another view of each unlabeled image."""
        return self.cut_partner == "same"

    @cached_property
    def augment(self) -> StrongAugmentation:
        """Strong augmentation of a view."""
        return StrongAugmentation(
            self.jitter_probability,
            self.jitter_strength,
            self.blur_probability,
            self.augmentation_draw,
            self.gray_probability,
            "unimatch",
            self.image_mean,
            self.image_std,
        )

    def prepare(self, teacher, batch: dict) -> dict:
        """Adds `pseudo_labels`, `pseudo_confidence` (B,H,W), and both strong views, one behind the other: `mixed_*`
        (2B,...)."""
        batch = super().prepare(teacher, batch)
        images = batch["unlabeled_pixel_values"]
        valid, others_valid = batch.get("unlabeled_valid"), batch.get("unlabeled_partner_valid")
        labels, confidence = self.label(teacher, images, valid)
        if self.needs_partner:
            others = batch["unlabeled_partner_pixel_values"]
            others_labels = self.label(teacher, others, others_valid)
        views = []
        for _ in range(2):
            own = self.augment(images, valid), labels, confidence
            if self.needs_partner:
                pasted = (self.augment(others, others_valid), *others_labels)
            else:
                pasted = [x.roll(-1, dims=0) for x in own]
            mask = small_cut_mask(
                len(images), images.shape[-2:], images.device, self.cut_probability, self.augmentation_draw
            )
            mask |= (pasted[1] == IGNORE_INDEX).unsqueeze(1)  # padding is not pasted
            views.append([mix(mask, *pair) for pair in zip(own, pasted, strict=True)])
        mixed, mixed_labels, mixed_confidence = (torch.cat(parts) for parts in zip(*views, strict=True))
        return batch | {
            "pseudo_labels": labels,
            "pseudo_confidence": confidence,
            "mixed_pixel_values": mixed,
            "mixed_labels": mixed_labels,
            "mixed_weight": self.confident(mixed_confidence),
        }

    def confident(self, confidence: torch.Tensor) -> torch.Tensor:
        """1[conf ≥ τ]."""
        return (confidence >= self.confidence_threshold).to(confidence.dtype)

    def counts(self, batch: dict) -> dict[str, torch.Tensor]:
        """Labeled pixels, and the divisor of ℓ for the weak view and for each strong one."""
        first, second = batch["mixed_labels"].chunk(2)
        views = {"weak": batch["pseudo_labels"], "first": first, "second": second}
        return super().counts(batch) | {name: self.pixels(labels) for name, labels in views.items()}

    def strong_loss(self, output, batch: dict, totals: dict) -> torch.Tensor:
        """½·(ℓ(s1) + ℓ(s2)) of the student's output for both strong views."""
        divisor = torch.stack([totals["first"], totals["second"]]).clamp(min=1)
        weight = batch["mixed_weight"] / divisor.repeat_interleave(len(batch["mixed_labels"]) // 2)[:, None, None]
        loss = output_cross_entropy(
            output, batch["mixed_labels"], 1, weight, self.auxiliary_loss_weight, self.align_corners
        )
        return loss / 2
