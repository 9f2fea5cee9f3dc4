"""UniMatch: two strong views and a feature-perturbed stream (Yang et al., CVPR 2023, arXiv 2208.09910)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch

from hf_fst.method.features import beside_dropped, perturbed_features
from hf_fst.method.losses import cross_entropy
from hf_fst.method.objectives.base import refuse_two_sizes
from hf_fst.method.objectives.weak_to_strong import WeakToStrongObjective
from hf_fst.method.options import option


@dataclass(frozen=True, kw_only=True, eq=False)
class UniMatchObjective(WeakToStrongObjective):
    """½·[CE(g_θ(x_l), y_l) + λ·ℓ(fp) + μ·½·(ℓ(s1) + ℓ(s2))]: fp is the weak view with dropped feature channels.

    As in the authors' code, labeled and weak unlabeled images pass the encoder in one batch, and the decode head takes
    their features clean and perturbed together, so that its BatchNorm statistics are those of both; the strong views
    follow in a second pass. Labels are the teacher's; with `teacher_follows` "live" that is the student itself, as
    published.

    Args:
        feature_weight: λ ≥ 0 (paper: 0.5).
        view_weight: μ ≥ 0 (paper: 0.5).
        feature_dropout: probability in [0, 1) that a channel is dropped (paper: 0.5).
    """

    name: ClassVar[str] = "unimatch"

    feature_weight: float = option(0.5, "feature_stream_weight")
    view_weight: float = option(0.5, "strong_views_weight")
    feature_dropout: float = option(0.5)
    feature_distance: None = field(default=None, init=False)  # labeled images have no forward pass of their own

    def prepare(self, teacher, batch: dict) -> dict:
        """See the base; labeled and unlabeled crops must have one size."""
        refuse_two_sizes(self.name, batch)
        return super().prepare(teacher, batch)

    def terms(self, student, teacher, batch: dict, totals: dict) -> Iterator[dict[str, torch.Tensor]]:
        """½·CE and ½·λ·ℓ(fp) of one pass, then ½·μ·½·(ℓ(s1) + ℓ(s2))."""
        weight, labels = self.unlabeled_weight / 2, batch["pseudo_labels"]
        joint = torch.cat([batch["pixel_values"], batch["unlabeled_pixel_values"]])
        with perturbed_features(student, partial(beside_dropped, probability=self.feature_dropout)):
            output = student(pixel_values=joint)
        # rows of the logits: labeled, unlabeled, and both once more with dropped features
        perturbed, confident = output.logits[-len(labels) :], self.confident(batch["pseudo_confidence"])
        stream = cross_entropy(perturbed, labels, totals["weak"], confident, self.align_corners)
        yield {
            "labeled_loss": self.labeled_loss(output, batch["labels"], totals) / 2,
            "feature_loss": weight * self.feature_weight * stream,
        }
        output = student(pixel_values=batch["mixed_pixel_values"])
        yield {"unlabeled_loss": weight * self.view_weight * self.strong_loss(output, batch, totals)}
