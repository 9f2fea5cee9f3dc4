"""Cross pseudo supervision: two branches learn each other's labels (Chen et al., CVPR 2021, arXiv 2106.01226)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from hf_fst.method.losses import IGNORE_INDEX, output_cross_entropy, pseudo_labels
from hf_fst.method.mixing import mix, toggled_cut_mask
from hf_fst.method.objectives.base import Objective, refuse_other_branches
from hf_fst.method.options import option


@dataclass(frozen=True, kw_only=True, eq=False)
class CPSObjective(Objective):
    """Σ_k CE(g_θk(x_l), y_l) + λ·[CE(g_θ1(x), ŷ2) + CE(g_θ2(x), ŷ1)], ŷk = argmax g_φk(x), for a network of two branches.

    With CutMix x are mixed unlabeled images, and ŷk are mixed like them. Without it x are the labeled and the unlabeled
    images, and the mean is over both. Each branch labels for the other one through its copy in the teacher φ; with
    `teacher_follows` "live" these are the branches themselves, as published.

    Args:
        unlabeled_weight: λ ≥ 0 (paper: 1.5 on VOC, 6 on Cityscapes; authors' code with CutMix: 1 and 5).
        cut_probability: with which an image is mixed; 0 is the method without CutMix.
        cut_partner: what is pasted: the `"next"` image of the batch, or another view of the `"same"` image, which is what
            the authors' code does.
    """

    passes: ClassVar[int] = 2
    needs_unlabeled: ClassVar[bool] = True
    forward_options: ClassVar[dict[str, bool]] = {"all_branches": True}

    unlabeled_weight: float = option(1.5)
    cut_probability: float = option(1.0)
    cut_partner: str = option("next")
    feature_distance: None = field(default=None, init=False)  # a pair of branches gives no feature maps

    def fits(self, network) -> None:
        """Refuse a network of one branch."""
        refuse_other_branches(
            network, "cps", "two branches that label each other", "hf_fst.models.TwoBranches.of(model)"
        )

    @property
    def needs_partner(self) -> bool:
        """Whether batches need another view of each unlabeled image."""
        return self.cut_partner == "same" and self.cut_probability > 0

    def prepare(self, teacher, batch: dict) -> dict:
        """Adds `pseudo_labels`, `pseudo_confidence` (B,H,W) of the branch that answers, what the branches see,
        `mixed_pixel_values` (B,3,H,W), and what each of them learns there, `peer_labels` (2,B,H,W)."""
        batch = super().prepare(teacher, batch)
        images, valid = batch["unlabeled_pixel_values"], batch.get("unlabeled_valid")
        output = teacher(images, **self.forward_options)
        labels, confidence = pseudo_labels(output.logits, images.shape[-2:], self.align_corners)
        if valid is not None:
            labels, confidence = labels.masked_fill(~valid, IGNORE_INDEX), confidence.masked_fill(~valid, 0)
        batch |= {"pseudo_labels": labels, "pseudo_confidence": confidence}
        peers = self.peer_labels(output, images, valid)
        if self.cut_probability == 0:
            labeled = batch["pixel_values"]
            labels_there = self.peer_labels(teacher(labeled, **self.forward_options), labeled, batch.get("valid"))
            batch["labeled_peer_labels"] = labels_there
        else:
            images, peers = self.mix(teacher, batch, images, peers)
        # pictures show what the first branch learns
        return batch | {
            "mixed_pixel_values": images,
            "peer_labels": peers,
            "mixed_labels": peers[0],
            "mixed_weight": (peers[0] != IGNORE_INDEX).float(),
        }

    def peer_labels(self, output, images: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """What each branch learns, (2,B,H,W): the labels of the other one; 255 on padding."""
        labels = [pseudo_labels(own.logits, images.shape[-2:], self.align_corners)[0] for own in output.branches]
        peers = torch.stack(labels[::-1])
        return peers if valid is None else peers.masked_fill(~valid, IGNORE_INDEX)

    def mix(
        self, teacher, batch: dict, images: torch.Tensor, peers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels with the boxes of their partners; padding is not pasted."""
        if self.needs_partner:
            others = batch["unlabeled_partner_pixel_values"]
            valid = batch.get("unlabeled_partner_valid")
            pasted = self.peer_labels(teacher(others, **self.forward_options), others, valid)
        else:
            others, pasted = images.roll(-1, dims=0), peers.roll(-1, dims=1)
        mask = toggled_cut_mask(len(images), images.shape[-2:], images.device, self.cut_probability)
        mask |= (pasted[0] == IGNORE_INDEX).unsqueeze(1)
        return mix(mask, images, others), torch.where(mask.squeeze(1), peers, pasted)

    def counts(self, batch: dict) -> dict[str, torch.Tensor]:
        """Labeled pixels, and the pixels over which the branches supervise each other."""
        both = [batch[key][0] for key in ("peer_labels", "labeled_peer_labels") if key in batch]
        return super().counts(batch) | {"cross": sum(self.pixels(labels) for labels in both)}

    def terms(self, student, teacher, batch: dict, totals: dict) -> Iterator[dict[str, torch.Tensor]]:
        """Σ_k CE on labeled images, there without CutMix what they learn from each other too; then λ·[...] on unlabeled
        ones."""
        output = student(pixel_values=batch["pixel_values"], **self.forward_options)
        losses = {"labeled_loss": sum(self.labeled_loss(own, batch["labels"], totals) for own in output.branches)}
        if "labeled_peer_labels" in batch:
            losses["cross_labeled_loss"] = self.cross_loss(output, batch["labeled_peer_labels"], totals)
        yield losses
        output = student(pixel_values=batch["mixed_pixel_values"], **self.forward_options)
        yield {"unlabeled_loss": self.cross_loss(output, batch["peer_labels"], totals)}

    def cross_loss(self, output, peers: torch.Tensor, totals: dict) -> torch.Tensor:
        """λ·Σ_k CE(g_θk(x), ŷ of the other branch)."""
        weights = None, self.auxiliary_loss_weight, self.align_corners
        pairs = zip(output.branches, peers, strict=True)
        return self.unlabeled_weight * sum(
            output_cross_entropy(own, labels, totals["cross"], *weights) for own, labels in pairs
        )
