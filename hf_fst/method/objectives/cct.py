"""Cross-consistency training: decoders of perturbed features agree with the main one (Ouali et al., CVPR 2020, arXiv
2003.09005)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from hf_fst.errors import UserError
from hf_fst.method.losses import IGNORE_INDEX, heads, ramp_up, resize_to
from hf_fst.method.objectives.base import Objective, refuse_other_branches
from hf_fst.method.options import option
from hf_fst.method.perturbations import Perturbations
from hf_fst.method.prototypes import valid_pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class CCTObjective(Objective):
    """CE(g_θ(x_l), y_l) + w(t)·(1/K)·Σ_k ‖softmax g_θk(P_k(z)) - p‖², p = softmax g_φ(x_u), z what the classifier of θ
    reads on x_u; for a network with K auxiliary decoders, each with a perturbation P_k (`hf_fst.method.perturbations`).

    ‖·‖² is the mean over classes, w(t) = λ·exp(-5(1 - t/T)²). p and the labels that guide perturbations are those of the
    teacher; with `teacher_follows` "live" that is the student's main decoder, as published. The labeled CE is annealed:
    only pixels whose right class has at most the probability 1/C + (α - 1/C)·(1 - exp(-5t/T')) count, as many as there
    are images at least.

    Args:
        unlabeled_weight: λ ≥ 0 (authors' code: 30).
        ramp_share: T as a share of the run (authors' code: 0.1).
        annealed_threshold: α in [0, 1], T' being 0.4 of the run; with 0, or where `ohem_threshold` is set, not annealed.
        vat_step: ξ of the adversarial perturbation; with the authors' 1e-6 it perturbs next to nothing.
    """

    passes: ClassVar[int] = 2
    needs_unlabeled: ClassVar[bool] = True
    perturbs_features: ClassVar[bool] = True
    forward_options: ClassVar[dict[str, bool]] = {"all_branches": True}

    unlabeled_weight: float = option(30.0)
    ramp_share: float = option(0.1)
    annealed_threshold: float = option(0.9)
    vat_step: float = option(0.1)
    feature_distance: None = field(default=None, init=False)  # the whole gives no feature maps

    def fits(self, network) -> None:
        """Refuse a network without auxiliary decoders, or with a perturbation that is not known."""
        refuse_other_branches(
            network, "cct", "a network with auxiliary decoders", "hf_fst.models.AuxiliaryDecoders.of(model)"
        )
        for name in network.config.perturbations:
            if name not in Perturbations.NAMES:
                raise UserError(f"There is no perturbation {name!r}; use {', '.join(Perturbations.NAMES)}.")

    def prepare(self, teacher, batch: dict) -> dict:
        """Adds `pseudo_labels`, `pseudo_confidence` (B,H,W), and p, `target` (B,C,H,W)."""
        batch = super().prepare(teacher, batch)
        images, valid = batch["unlabeled_pixel_values"], valid_pixels(batch)
        target = resize_to(teacher(images).logits, images.shape[-2:], self.align_corners).softmax(dim=1)
        confidence, labels = target.max(dim=1)
        return batch | {
            "target": target,
            "pseudo_labels": labels.masked_fill(~valid, IGNORE_INDEX),
            "pseudo_confidence": confidence.masked_fill(~valid, 0),
        }

    def counts(self, batch: dict) -> dict[str, torch.Tensor]:
        """Labeled and unlabeled pixels."""
        return super().counts(batch) | {"unlabeled": self.pixels(batch["pseudo_labels"])}

    def terms(self, student, teacher, batch: dict, totals: dict) -> Iterator[dict[str, torch.Tensor]]:
        """CE, then the consistency."""
        output = student(pixel_values=batch["pixel_values"])
        threshold = self.threshold(batch["progress"], output.logits.shape[1])
        yield {"labeled_loss": self.labeled_loss(output, batch["labels"], totals, threshold)}
        labels, target = batch["pseudo_labels"], batch["target"]
        perturb = Perturbations(labels, self.vat_step)
        output = student(pixel_values=batch["unlabeled_pixel_values"], perturb=perturb, **self.forward_options)
        loss, decoders = 0.0, output.branches[1:]
        for decoder in decoders:
            p = resize_to(decoder.logits, target.shape[-2:], self.align_corners).softmax(dim=1)
            loss = loss + ((p - target).square().mean(dim=1) * (labels != IGNORE_INDEX)).sum()
        weight = self.unlabeled_weight * ramp_up(batch["progress"], self.ramp_share) / len(decoders)
        # with the gradients of this pass processes exchange those of all weights, the main decoder's too
        nothing = 0 * sum(logits.sum() for _, logits in heads(output, self.auxiliary_loss_weight))
        yield {"unlabeled_loss": weight * loss / totals["unlabeled"].clamp(min=1) + nothing}

    def threshold(self, progress: float, num_labels: int) -> float | None:
        """The probability above which a labeled pixel does not count; None for none."""
        if self.ohem_threshold is not None or not self.annealed_threshold:
            return self.ohem_threshold
        return 1 / num_labels + (self.annealed_threshold - 1 / num_labels) * (
            1 - math.exp(-5 * min(progress / 0.4, 1))
        )
