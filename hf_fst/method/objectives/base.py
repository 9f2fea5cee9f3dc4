"""What the student learns from a batch and a teacher."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from hf_fst.errors import UserError
from hf_fst.method.augmentation import IMAGE_MEAN, IMAGE_STD
from hf_fst.method.losses import IGNORE_INDEX, cross_entropy, hard_pixels, heads, ignore_as_255, pseudo_labels
from hf_fst.method.objectives.feature_distance import FeatureDistance
from hf_fst.method.options import check, option, part


@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """Base of the objectives: the labeled cross entropy, and the three calls that the gradient path makes.

    For each micro-batch of a group `prepare` runs first, without gradient: the teacher labels and images are mixed. What
    `counts` gives is then summed over the group and over the processes. `terms` finally yields the losses of one forward
    pass after the other, each already divided by the totals, so that they add up to the loss of the group; each pass is
    backpropagated as it comes.

    What an objective learns beside the student (prototypes, queues, banks) is tensors by name in its `memory`. They move
    in `advance` alone, which real steps call and virtual steps do not, and are saved in checkpoints.

    Args:
        loss_reduction: means over `"valid"` pixels or over `"all"`.
        auxiliary_loss_weight: weight of each auxiliary head.
        align_corners: how the network wants its logits resized (`config.align_corners` of some architectures).
        image_mean, image_std: with which the images are normalized, for strong augmentation.
        ohem_threshold: in [0, 1]; where set, the labeled loss is over hard pixels alone (Cityscapes recipes: 0.7),
            which are chosen in a micro-batch of a process, as in the authors' codes: another split of a batch has others.
        ohem_min_kept: number of pixels of a micro-batch that are kept at least.
        feature_distance: keeps the features on labeled images near those of another network.
    """

    #: number of forward passes of the student, the length of `terms`
    passes: ClassVar[int] = 1
    #: whether `terms` does the same at every step, so that it can be replayed (`hf_fst.method.capture`)
    replayable: ClassVar[bool] = False
    #: whether batches need unlabeled images
    needs_unlabeled: ClassVar[bool] = False
    #: what `forward` of the student is given besides images
    forward_options: ClassVar[dict[str, bool]] = {}
    #: whether it changes what the encoder of the student hands to the decode head (`hf_fst.method.features`)
    perturbs_features: ClassVar[bool] = False
    #: whether batches need a second view of each unlabeled image, `unlabeled_partner_pixel_values`
    needs_partner: ClassVar[bool] = False
    #: whether the networks must return `features` (`hf_fst.models.features`)
    needs_features: ClassVar[bool] = False
    #: whether its labels are those of a frozen network, so that it needs no teacher
    fixed_labels: ClassVar[bool] = False
    #: whether it keeps a memory, without which no run can be resumed
    remembers: ClassVar[bool] = False
    #: how often `begin` wants to see the unlabeled images
    begin_passes: ClassVar[float] = 0.0
    #: confidence in [0, 1] from which a pseudo-label counts as confident in what is logged
    confidence_threshold: ClassVar[float] = 0.968

    loss_reduction: str = option("valid")
    auxiliary_loss_weight: float = option(0.4)
    align_corners: bool = False
    image_mean: Sequence[float] = IMAGE_MEAN
    image_std: Sequence[float] = IMAGE_STD
    ohem_threshold: float | None = option(None)
    ohem_min_kept: int = option(100_000)
    feature_distance: FeatureDistance | None = part(FeatureDistance, switch="feature_distance_weight")
    memory: dict[str, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        check(self)

    def fits(self, network: nn.Module) -> None:
        """Refuse a network that the objective cannot train.

        Args:
            network: the student, not wrapped.

        Raises:
            UserError: with what to use instead.
        """
        if labels_itself(network):
            raise UserError(
                f"The {type(network).__name__} has several branches, which {type(self).__name__} does not train; use "
                f"objective {network.trained_by!r}, or the network of one branch."
            )

    def prepare(self, teacher, batch: dict) -> dict:
        """The batch with whatever `terms` needs; labels (B,H,W) have 255 where they are ignored.

        `batch["progress"]` is the share of the run's steps that are done, in virtual steps that of the real one.
        """
        batch = {**batch, "labels": ignore_as_255(batch["labels"])}
        return batch if self.feature_distance is None else self.feature_distance.prepare(batch)

    def label(self, teacher, images: torch.Tensor, valid: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels (B,H,W) of the teacher and its confidence in [0, 1]; padding gets 255 and 0.

        Args:
            teacher: the `EMATeacher`.
            images: (B,3,H,W).
            valid: where these are images and not padding, (B,H,W) bool; everywhere if None.
        """
        labels, confidence = pseudo_labels(teacher(images).logits, images.shape[-2:], self.align_corners)
        if valid is None:
            return labels, confidence
        return labels.masked_fill(~valid, IGNORE_INDEX), confidence.masked_fill(~valid, 0)

    def counts(self, batch: dict) -> dict[str, torch.Tensor]:
        """What normalizes the terms: `labeled` pixels and the number of `batches`, scalars on the batch's device."""
        labels = batch["labels"]
        counts = {"labeled": self.pixels(labels), "batches": labels.new_ones(())}
        return counts if self.feature_distance is None else counts | self.feature_distance.counts(batch)

    def pixels(self, labels: torch.Tensor) -> torch.Tensor:
        """Number of pixels a mean is taken over: valid ones, or all (`loss_reduction`)."""
        if self.loss_reduction == "all":
            return labels.new_full((), labels.numel())  # filled on the device, which need not be waited for
        return (labels != IGNORE_INDEX).sum()

    def terms(self, student, teacher, batch: dict, totals: dict) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the named losses of each forward pass, the labeled ones first.

        Args:
            student: the wrapped model, called as `student(pixel_values=…)`.
            teacher: the `EMATeacher`, called alike, without gradient.
            batch: what `prepare` returned.
            totals: the counts, summed over the group and the processes.
        """
        yield self.labeled_term(student, batch, totals)

    def begin(self, batches: Iterator[dict], accelerator) -> None:
        """Fill the memory before the first step of a run.

        Args:
            batches: micro-batches of this process, as many as `begin_passes` asks for.
            accelerator: gathers what the processes see.
        """

    def advance(self, group: list[dict], accelerator, learning_rate: float) -> None:
        """Move the memory on, after the gradient of a real step; the same on all processes.

        Args:
            group: the prepared micro-batches of this process.
            accelerator: gathers what the processes see.
            learning_rate: of the step, that of the optimizer's first group.
        """

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The memory, to be saved."""
        return dict(self.memory)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a saved memory."""
        self.memory.clear()
        self.memory.update(state)

    def labeled_term(self, student, batch: dict, totals: dict) -> dict[str, torch.Tensor]:
        """The terms of a forward pass of the labeled images alone."""
        return self.labeled_terms(self.look(student, batch["pixel_values"]), batch, totals)

    def look(self, student, images: torch.Tensor):
        """The student's output for `images` (B,3,H,W), the labeled ones first; with features where they are kept near."""
        features = {} if self.feature_distance is None else {"output_hidden_states": True}
        return student(pixel_values=images, **features)

    def labeled_terms(self, output, batch: dict, totals: dict) -> dict[str, torch.Tensor]:
        """CE(g_θ(x_l), y_l), the mean over the labeled pixels of the group; and the feature distance where set."""
        loss = self.labeled_loss(output, batch["labels"], totals)
        if self.feature_distance is None:
            return {"labeled_loss": loss}
        return {"labeled_loss": loss, "feature_distance": self.feature_distance.loss(output, batch, totals)}

    def labeled_loss(self, output, labels: torch.Tensor, totals: dict, annealed: float | None = None) -> torch.Tensor:
        """Cross entropy of all heads over the labeled pixels of the group, or over the hard ones of this micro-batch.

        Args:
            output: of the student; of its rows the first belong to `labels`.
            labels: (B,H,W), 255 is ignored.
            totals: the counts, summed over the group and the processes.
            annealed: replaces `ohem_threshold`; then at least one pixel per image is kept.
        """
        threshold, kept = self.ohem_threshold, self.ohem_min_kept
        if annealed is not None:
            threshold, kept = annealed, len(labels)
        loss = 0.0
        for weight, logits in heads(output, self.auxiliary_loss_weight):
            logits, own, total = logits[: len(labels)], labels, totals["labeled"]
            if threshold is not None:
                hard = hard_pixels(logits, labels, threshold, kept, self.align_corners)
                own, total = labels.masked_fill(~hard, IGNORE_INDEX), hard.sum() * totals["batches"]
            loss = loss + weight * cross_entropy(logits, own, total, align_corners=self.align_corners)
        return loss


def labels_itself(network: nn.Module) -> bool:
    """Whether a network has several branches, whose outputs `forward` gives with `all_branches`."""
    return "all_branches" in inspect.signature(network.forward).parameters


def refuse_other_branches(network: nn.Module, objective: str, trains: str, give: str) -> None:
    """Refuse a network without the branches that an objective trains.

    Args:
        network: the student, not wrapped.
        objective: name of the objective.
        trains: what it trains.
        give: how to make such a network in Python.

    Raises:
        UserError: with both.
    """
    if not labels_itself(network) or network.trained_by != objective:
        raise UserError(
            f"objective {objective!r} trains {trains}, but {type(network).__name__} is no such network; name the "
            f"objective in the recipe, which then makes one, or give {give}."
        )


def refuse_two_sizes(objective: str, batch: dict) -> None:
    """Refuse labeled and unlabeled crops of different size where they go through the network together.

    Raises:
        UserError: with both sizes.
    """
    labeled, unlabeled = (tuple(batch[key].shape[-2:]) for key in ("pixel_values", "unlabeled_pixel_values"))
    if labeled != unlabeled:
        raise UserError(
            f"{objective} got labeled crops of {labeled} and unlabeled ones of {unlabeled} pixels, which go through the "
            "network together; give both the same crop size."
        )
