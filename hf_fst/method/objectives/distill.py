"""Distillation: hard labels and probabilities of a finished network on strong views."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from hf_fst.errors import UserError
from hf_fst.method.losses import IGNORE_INDEX, output_cross_entropy, resize_to
from hf_fst.method.objectives.base import Objective
from hf_fst.method.options import option
from hf_fst.method.prototypes import at, valid_pixels
from hf_fst.method.views import strong_view


@dataclass(frozen=True, kw_only=True, eq=False)
class DistillObjective(Objective):
    """CE(g_θ(x_l), y_l) + λ·CE(g_θ(x̃_u), ŷ) + β·KL(q(x̃_u) ‖ p_θ(x̃_u)): stages 2 and 3 of ProDA (Zhang et al., 2021).

    q are the probabilities of a fixed network, the outcome of the stage before. ŷ is the class of the mean of q on the
    image and on its mirror image, where it is above the threshold; x̃_u is a strong view, along with which ŷ moves.

    Args:
        reference: the fixed network; it is copied and never updated.
        unlabeled_weight: λ ≥ 0.
        confidence_threshold: in [0, 1], that labels must exceed.
        distillation_weight: β ≥ 0.
        distillation: `"kl"`, the mean over places of Σ_c q_c·(log q_c - log p_c); `"coded"`, as in their code, has
            p_c instead of log p_c and a mean over classes too.
    """

    passes: ClassVar[int] = 2
    needs_unlabeled: ClassVar[bool] = True
    fixed_labels: ClassVar[bool] = True

    reference: nn.Module | None = None
    unlabeled_weight: float = option(1.0)
    confidence_threshold: float = option(0.95)
    distillation_weight: float = option(1.0)
    distillation: str = option("kl")
    feature_distance: None = field(default=None, init=False)  # `reference` is the network that is distilled

    def __post_init__(self):
        super().__post_init__()
        if self.reference is None:
            raise UserError("DistillObjective has no reference; give the network that labels.")
        object.__setattr__(self, "reference", deepcopy(self.reference).requires_grad_(False).eval())

    def prepare(self, teacher, batch: dict) -> dict:
        """Adds the strong view, `mixed_pixel_values`, its `mixed_labels` (B,H,W), and the reference's logits on it."""
        batch = super().prepare(teacher, batch)
        images, valid = batch["unlabeled_pixel_values"], valid_pixels(batch)
        straight, mirror = (self.probabilities(x) for x in (images, images.flip(-1)))
        confidence, labels = ((straight + mirror.flip(-1)) / 2).max(dim=1)
        view = strong_view(images, self.image_mean, self.image_std)
        moved = view.move(labels.unsqueeze(1).to(images.dtype), "nearest").squeeze(1).long()
        shown = view.shows(valid & (confidence > self.confidence_threshold))
        logits = self.reference(pixel_values=view.images).logits
        padding = view.move((~valid).unsqueeze(1).to(images.dtype), "nearest").squeeze(1)
        return batch | {
            "pseudo_labels": labels.masked_fill(~valid, IGNORE_INDEX),
            "pseudo_confidence": confidence.masked_fill(~valid, 0),
            "mixed_pixel_values": view.images,
            "mixed_labels": moved.masked_fill(~shown, IGNORE_INDEX),
            "mixed_weight": shown.to(confidence.dtype),
            "reference_logits": logits,
            "distilled": at(padding, logits.shape[-2:]) < 0.5,
        }

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """q (B,C,H,W) on images (B,3,H,W)."""
        return resize_to(self.reference(pixel_values=images).logits, images.shape[-2:], self.align_corners).softmax(
            dim=1
        )

    def counts(self, batch: dict) -> dict[str, torch.Tensor]:
        """Labeled pixels, pixels with ŷ, and places of the fixed network's logits that are no padding."""
        return {
            **super().counts(batch),
            "mixed": self.pixels(batch["mixed_labels"]),
            "places": batch["distilled"].sum(),
        }

    def terms(self, student, teacher, batch: dict, totals: dict) -> Iterator[dict[str, torch.Tensor]]:
        """CE on labels; CE on ŷ and distillation on the strong view."""
        yield self.labeled_term(student, batch, totals)
        output = student(pixel_values=batch["mixed_pixel_values"])
        loss = output_cross_entropy(
            output, batch["mixed_labels"], totals["mixed"], None, self.auxiliary_loss_weight, self.align_corners
        )
        yield {
            "unlabeled_loss": self.unlabeled_weight * loss,
            "distillation_loss": self.distillation_weight * self.divergence(output.logits, batch, totals["places"]),
        }

    def divergence(self, logits: torch.Tensor, batch: dict, total: torch.Tensor) -> torch.Tensor:
        """KL(q ‖ p), or what the authors compute in its place, of logits (B,C,h,w); a sum over `total`."""
        target = batch["reference_logits"].softmax(dim=1)
        logits = resize_to(logits, target.shape[-2:], self.align_corners)
        coded = self.distillation == "coded"
        p = logits.softmax(dim=1) if coded else logits.log_softmax(dim=1)
        divergence = (torch.special.xlogy(target, target) - target * p) * batch["distilled"].unsqueeze(1)
        return (divergence.mean(dim=1) if coded else divergence).sum() / total.clamp(min=1)
