"""UniMatch V2: two strong views that see complementary feature channels (Yang et al., 2024, arXiv 2410.10777)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_fst.method.features import ComplementaryDropout, perturbed_features
from hf_fst.method.objectives.weak_to_strong import WeakToStrongObjective


@dataclass(frozen=True, kw_only=True, eq=False)
class UniMatchV2Objective(WeakToStrongObjective):
    """½·[CE(g_θ(x_l), y_l) + ½·(ℓ(s1; M) + ℓ(s2; 2-M))]: M masks the channels of the features of the strong views, see
    `hf_fst.method.features.ComplementaryDropout`. Both views pass the network in one batch.

    Args:
        kept_share: in [0, 1], of the pairs of views whose features stay whole (authors' code: half, rounded down).
    """

    name: ClassVar[str] = "unimatch_v2"

    kept_share: float = 0.5

    def terms(self, student, teacher, batch: dict, totals: dict) -> Iterator[dict[str, torch.Tensor]]:
        """½·CE, then ½·½·(ℓ(s1; M) + ℓ(s2; 2-M))."""
        losses = self.labeled_term(student, batch, totals)
        yield losses | {"labeled_loss": losses["labeled_loss"] / 2}
        with perturbed_features(student, ComplementaryDropout(self.kept_share)):
            output = student(pixel_values=batch["mixed_pixel_values"])
        yield {"unlabeled_loss": self.unlabeled_weight / 2 * self.strong_loss(output, batch, totals)}
