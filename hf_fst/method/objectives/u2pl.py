"""U2PL: pixels too uncertain to be labeled still say which classes they are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_fst.method.contrast import class_contrast, enqueued, members_of, negatives
from hf_fst.method.losses import IGNORE_INDEX, percentile, resize_to
from hf_fst.method.objectives.entropy_drop import EntropyDropObjective
from hf_fst.method.options import option
from hf_fst.method.prototypes import at, features_of


@dataclass(frozen=True, kw_only=True, eq=False)
class U2PLObjective(EntropyDropObjective):
    """L_s + λ·L_u + λ_c·L_c: `EntropyDropObjective` and a contrast with banks of unreliable pixels (Wang et al., 2022).

    L_c pulls the student's representation of a reliable pixel to the teacher's mean of its class, and pushes it from
    pixels of high entropy that are probably not of the class, which a bank for each class remembers. The share α_t of
    pixels that are dropped, reliable and unreliable falls to 0 with the steps of the run. Representations are the
    network's `features`: those of its representation head if it has one (DeepLabV3+ with `representation_size`), or what
    the classifier reads. Anchors and positives are of a micro-batch of a process, as in the authors' code; the banks take
    the pixels of all. Negatives are drawn of the bank and of the pixels at hand.

    Args:
        num_labels: number of classes C.
        drop_percent: 100 - α_0.
        contrast_weight: λ_c ≥ 0.
        contrast: `"paper"`, or as it is `"coded"` by the authors: see `hf_fst.method.contrast`.
        bank_size: pixels that the bank of a class holds.
        first_bank_size: those of class 0, the background of VOC.
        low_entropy_percent: α_0 of the contrast, in [0, 100].
        anchor_threshold: δ_p that the teacher must exceed on an anchor.
        ranks: r_l and r_h.
        queries, keys: anchors of a class, and negatives of an anchor.
        temperature: τ.
    """

    needs_features: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    num_labels: int
    contrast_weight: float = option(1.0)
    contrast: str = option("paper")
    bank_size: int = option(30_000)
    first_bank_size: int = 50_000  # from here on: the authors' code
    low_entropy_percent: float = 20.0
    anchor_threshold: float = 0.3
    ranks: tuple[int, int] = (3, 20)
    queries: int = 256
    keys: int = 50
    temperature: float = 0.5

    def percent(self, batch: dict) -> float:
        """100 - α_t, α_t = α_0·(1 - t/T)."""
        return 100 - (100 - self.drop_percent) * (1 - batch["progress"])

    def looked(self, batch: dict, output, uncertainty: torch.Tensor) -> dict:
        """What the contrast takes of the teacher's second look: representations, probabilities, masks at their size."""
        teacher = features_of(output)
        size = teacher.shape[-2:]
        coded = self.contrast == "coded"
        labels = batch["labels"], batch["mixed_labels"]
        members = torch.cat([members_of(each, self.num_labels, coded) for each in labels])
        known = labels[1] != IGNORE_INDEX
        low, high = torch.zeros_like(known), torch.zeros_like(known)
        if known.any():
            alpha = self.low_entropy_percent * (1 - batch["progress"])
            low = known & (uncertainty <= percentile(uncertainty[known], alpha))
            high = known & (uncertainty >= percentile(uncertainty[known], 100 - alpha))
        valid = labels[0] != IGNORE_INDEX
        low, high = (at(torch.cat([valid, of_unlabeled]), size) for of_unlabeled in (low, high))
        members = torch.nn.functional.interpolate(members.float(), size=size, mode="nearest").bool()
        probabilities = resize_to(output.logits, size, self.align_corners).softmax(dim=1)
        count = len(batch["pixel_values"])
        return {
            "representations": teacher,
            "members": members,
            "probabilities": probabilities,
            "reliable": low,
            "negatives": negatives(members, probabilities, high, count, self.ranks, coded),
        }

    def losses(self, output, batch: dict, totals: dict) -> dict[str, torch.Tensor]:
        """Adds λ_c·L_c, the mean over micro-batches."""
        loss = class_contrast(
            features_of(output),
            batch["representations"],
            batch["members"],
            batch["probabilities"],
            batch["reliable"],
            self.banks(batch["representations"], batch["negatives"]),
            self.anchor_threshold,
            self.queries,
            self.keys,
            self.temperature,
            self.contrast == "coded",
        )
        found = super().losses(output, batch, totals)
        return found | {"contrast_loss": self.contrast_weight * loss / totals["batches"]}

    def banks(self, representations: torch.Tensor, chosen: torch.Tensor) -> list[torch.Tensor]:
        """The bank of each class with the places at hand that are its negatives, (B,C,h,w), as its newest rows."""
        rows = representations.permute(0, 2, 3, 1)
        sizes = [self.first_bank_size, *[self.bank_size] * (self.num_labels - 1)]
        return [enqueued(self.memory.get(f"bank_{c}"), rows[chosen[:, c]], size) for c, size in enumerate(sizes)]

    def advance(self, group: list[dict], accelerator, learning_rate: float) -> None:
        """The banks take the negatives of all micro-batches and processes."""
        for batch in group:
            banks = self.banks(*accelerator.gather((batch["representations"], batch["negatives"])))
            self.memory.update((f"bank_{c}", bank) for c, bank in enumerate(banks))
