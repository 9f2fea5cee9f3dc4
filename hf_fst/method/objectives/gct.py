"""Guided collaborative training: two branches and a detector of their flaws (Ke et al., ECCV 2020, arXiv 2008.05258)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from hf_fst.method.flaws import dynamic_consistency, flaw_truth, handled
from hf_fst.method.losses import IGNORE_INDEX, pseudo_labels, ramp_up, resize_to
from hf_fst.method.objectives.base import Objective, refuse_other_branches, refuse_two_sizes
from hf_fst.method.options import option
from hf_fst.method.prototypes import valid_pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class GCTObjective(Objective):
    """Σ_k [CE(g_k(x_l), y_l) + r(t)·α·‖p_k - p̃_k‖² + β·m·F(x, p_k)²] + 10·½·Σ_k (F(x_l, p_k) - flaws of p_k)², for a
    network of two branches g_k and a flaw detector F; p_k = softmax g_k(x), x labeled and unlabeled images together.

    p̃_k is, at each pixel, the prediction of the branch in which F sees fewer flaws (dynamic consistency); m = 1 where
    those of both exceed ξ (flaw correction). Both come from the teacher's branches and its F; with `teacher_follows`
    "live" these are the student's, as published. Gradients of the first sum reach the branches alone, of the second F
    alone. ‖·‖² is the mean over classes, r(t) = exp(-5(1 - t/T)²).

    Args:
        consistency_weight: α ≥ 0 (authors' code: 100).
        ramp_share: T as a share of the run (authors' code: 3 of 20 to 40 epochs of DeepLabV2, 5 of 45 to 80 of PSPNet).
        flaw_correction_weight: β ≥ 0 (authors' code: 1).
        flaw_threshold: ξ in [0, 1] (authors' code: 0.6).
        loss_reduction: with `"all"`, as in the authors' code, pixels that are ignored count as half flawed.
    """

    needs_unlabeled: ClassVar[bool] = True
    forward_options: ClassVar[dict[str, bool]] = {"all_branches": True}

    consistency_weight: float = option(100.0)
    ramp_share: float = option(0.15)
    flaw_correction_weight: float = option(1.0)
    flaw_threshold: float = option(0.6)
    feature_distance: None = field(default=None, init=False)  # a pair of branches gives no feature maps

    def fits(self, network) -> None:
        """Refuse a network without a flaw detector."""
        give = "hf_fst.models.TwoBranches.of(model, flaw_detector=64)"
        refuse_other_branches(network, "gct", "two branches and a flaw detector", give)

    def prepare(self, teacher, batch: dict) -> dict:
        """Adds `seen_pixel_values` (2B,3,H,W), `seen` (2B,H,W), where they are images, p̃, `targets` (2,2B,C,H,W), and m,
        `both_flawed` (2B,H,W)."""
        refuse_two_sizes("gct", batch)
        batch = super().prepare(teacher, batch)
        labeled, unlabeled = batch["pixel_values"], batch["unlabeled_pixel_values"]
        images, valid, size = torch.cat([labeled, unlabeled]), valid_pixels(batch), labeled.shape[-2:]
        output = teacher(images, **self.forward_options)
        seen = torch.cat([batch.get("valid", torch.ones_like(labeled[:, 0], dtype=torch.bool)), valid])
        flaws = tuple(handled(maps * seen.unsqueeze(1)) for maps in output.flaw_maps)
        targets, both = dynamic_consistency(*self.probabilities(output, size), flaws, self.flaw_threshold)
        labels, confidence = pseudo_labels(output.logits[len(labeled) :], size, self.align_corners)
        return batch | {
            "seen_pixel_values": images,
            "seen": seen,
            "targets": targets,
            "both_flawed": both.squeeze(1),
            "pseudo_labels": labels.masked_fill(~valid, IGNORE_INDEX),
            "pseudo_confidence": confidence.masked_fill(~valid, 0),
        }

    def probabilities(self, output, size: tuple[int, int]) -> torch.Tensor:
        """p_k (2,B,C,H,W) of both branches."""
        both = [resize_to(own.logits, size, self.align_corners).softmax(dim=1) for own in output.branches]
        return torch.stack(both)

    def counts(self, batch: dict) -> dict[str, torch.Tensor]:
        """Labeled pixels, and those of all images."""
        return super().counts(batch) | {"seen": batch["seen"].sum()}

    def terms(self, student, teacher, batch: dict, totals: dict) -> Iterator[dict[str, torch.Tensor]]:
        """All terms of one pass."""
        labels, seen = batch["labels"], batch["seen"]
        output = student(pixel_values=batch["seen_pixel_values"], **self.forward_options)
        p = self.probabilities(output, labels.shape[-2:])
        apart = (p - batch["targets"]).square().mean(dim=2) * seen
        flaws = torch.stack(output.flaw_maps).squeeze(2).square() * (batch["both_flawed"] & seen)
        pixels = totals["seen"].clamp(min=1)
        ramp = self.consistency_weight * ramp_up(batch["progress"], self.ramp_share)
        yield {
            "labeled_loss": sum(self.labeled_loss(own, labels, totals) for own in output.branches),
            "consistency_loss": ramp * apart.sum() / pixels,
            "flaw_correction_loss": self.flaw_correction_weight * flaws.sum() / pixels,
            "detector_loss": self.detector_error(p.detach(), output.detected, labels) / totals["labeled"].clamp(min=1),
        }

    def detector_error(
        self, p: torch.Tensor, detected: tuple[torch.Tensor, ...], labels: torch.Tensor
    ) -> torch.Tensor:
        """10·½·Σ_k Σ_pixels (F(x_l, p_k) - flaws of p_k)²."""
        with_ignored = self.loss_reduction == "all"
        counted = torch.ones_like(labels, dtype=torch.bool) if with_ignored else labels != IGNORE_INDEX
        errors = [
            ((maps - flaw_truth(own, labels, with_ignored)).squeeze(1).square() * counted).sum()
            for own, maps in zip(p[:, : len(labels)], (maps[: len(labels)] for maps in detected), strict=True)
        ]
        return 10 * sum(errors) / 2
