"""What the student learns from a batch and a teacher."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hf_fst.losses import IGNORE_INDEX, ignore_as_255, output_cross_entropy


class Objective:
    """Base of the objectives: the labelled cross entropy, and the three calls that the gradient path makes.

    For each micro-batch of a group `prepare` runs first, without gradient: the teacher labels and images are mixed. What
    `counts` gives is then summed over the group and over the processes. `terms` finally yields the loss terms, each
    already divided by the totals, so that they add up to the loss of the group; each is backpropagated as it comes.
    """

    #: the terms that `terms` yields, in order
    names: tuple[str, ...] = ("labeled_loss",)
    #: whether batches need unlabelled images
    needs_unlabeled = False
    #: confidence in [0, 1] above which a pseudo-label counts as confident in what is logged
    confidence_threshold = 0.968

    def __init__(
        self, *, loss_reduction: str = "valid", auxiliary_loss_weight: float = 0.4, align_corners: bool = False
    ):
        self.loss_reduction = loss_reduction
        self.auxiliary_loss_weight = auxiliary_loss_weight
        #: how the network wants its logits resized (`config.align_corners` of some architectures)
        self.align_corners = align_corners

    def prepare(self, teacher, batch: dict) -> dict:
        """The batch with whatever `terms` needs; labels (B,H,W) have 255 where they are ignored."""
        return {**batch, "labels": ignore_as_255(batch["labels"])}

    def counts(self, batch: dict) -> dict[str, torch.Tensor]:
        """What normalises the terms: `labeled` pixels, scalars on the batch's device."""
        return {"labeled": self.pixels(batch["labels"])}

    def pixels(self, labels: torch.Tensor) -> torch.Tensor:
        """Number of pixels a mean is taken over: valid ones, or all (`loss_reduction`)."""
        if self.loss_reduction == "all":
            return torch.tensor(labels.numel(), device=labels.device)
        return (labels != IGNORE_INDEX).sum()

    def terms(self, student, teacher, batch: dict, totals: dict) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, loss) in the order of `names`; the labelled term first.

        Args:
            student: the wrapped model, called as `student(pixel_values=…)`.
            teacher: the `EMATeacher`, called alike, without gradient.
            batch: what `prepare` returned.
            totals: the counts, summed over the group and the processes.
        """
        yield "labeled_loss", self.labeled_loss(student, batch, totals)

    def labeled_loss(self, student, batch: dict, totals: dict) -> torch.Tensor:
        """CE(g_θ(x_l), y_l), the mean over the labelled pixels of the group."""
        output = student(pixel_values=batch["pixel_values"])
        return output_cross_entropy(
            output, batch["labels"], totals["labeled"], None, self.auxiliary_loss_weight, self.align_corners
        )
