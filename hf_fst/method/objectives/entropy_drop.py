"""The authors' semi-supervised loop: pseudo-labels whose pixels of highest entropy are dropped, with joint batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch

from hf_fst.method.augmentation import StrongAugmentation
from hf_fst.method.losses import IGNORE_INDEX, cross_entropy, entropy, ignore_as_255, percentile
from hf_fst.method.objectives.base import Objective, refuse_two_sizes
from hf_fst.method.objectives.cut_mix import cut_mixed
from hf_fst.method.options import option


@dataclass(frozen=True, kw_only=True, eq=False)
class EntropyDropObjective(Objective):
    """CE(g_θ(x_l), y_l) + λ·(P / n)·CE(g_θ(x_u), ŷ_u), a mean over the n of P pixels whose entropy is low (U2PL, Wang et
    al., 2022, without its contrastive branch).

    The teacher labels in evaluation mode, then sees labeled and (cut) unlabeled images in training mode: that moves its
    BatchNorm statistics and gives the entropies. The student sees both kinds in one batch, so that its BatchNorm
    statistics are joint. The percentile is taken over a micro-batch of a process, as in the authors' code: it is not the
    same for another split of a batch.

    Args:
        drop_percent: percentile in [0, 100]; pixels of at least that entropy are dropped (80 for VOC; 100 drops the
            largest alone).
        cut_probability: with which images are cut (`hf_fst.method.mixing.cut_mask`); 0 for none.
        confidence_threshold: in [0, 1]; only for what is logged.
        jitter_probability, jitter_strength, blur_probability, augmentation_draw: strong augmentation of the unlabeled
            images (`hf_fst.method.augmentation`).
    """

    needs_unlabeled: ClassVar[bool] = True
    replayable: ClassVar[bool] = True

    unlabeled_weight: float = option(1.0)
    drop_percent: float = option(80.0, "entropy_drop_percent")
    cut_probability: float = option(0.5)
    confidence_threshold: float = option(0.95)
    jitter_probability: float = option(0.0)
    jitter_strength: float = option(0.2)
    blur_probability: float = option(0.0)
    augmentation_draw: str = option("image")
    feature_distance: None = field(default=None, init=False)  # labeled images have no forward pass of their own

    @cached_property
    def augment(self) -> StrongAugmentation:
        """Strong augmentation of the unlabeled images."""
        numbers = self.jitter_probability, self.jitter_strength, self.blur_probability, self.augmentation_draw
        return StrongAugmentation(*numbers, mean=self.image_mean, std=self.image_std)

    def prepare(self, teacher, batch: dict) -> dict:
        """Adds `pseudo_labels`, `pseudo_confidence` (B,H,W) and `mixed_*`, dropped pixels 255 in `mixed_labels`."""
        batch = {**batch, "labels": ignore_as_255(batch["labels"])}
        images = batch["unlabeled_pixel_values"]
        size = images.shape[-2:]
        refuse_two_sizes("entropy_drop", batch)
        teacher.model.eval()
        labels, confidence = self.label(teacher, images, batch.get("unlabeled_valid"))
        batch |= {"pseudo_labels": labels, "pseudo_confidence": confidence}
        batch |= cut_mixed(images, labels, torch.ones_like(confidence), self.cut_probability, self.augmentation_draw)
        batch["mixed_pixel_values"] = self.augment(batch["mixed_pixel_values"])
        teacher.model.train()
        joint = torch.cat([batch["pixel_values"], batch["mixed_pixel_values"]])
        output = teacher(joint)
        uncertainty = entropy(output.logits[-len(images) :], size, self.align_corners)
        teacher.label_mode()
        batch |= self.looked(batch, output, uncertainty)
        batch["mixed_valid"] = batch["mixed_labels"] != IGNORE_INDEX
        if batch["mixed_valid"].any():
            limit = percentile(uncertainty[batch["mixed_valid"]], self.percent(batch))
            batch["mixed_labels"] = batch["mixed_labels"].masked_fill(uncertainty >= limit, IGNORE_INDEX)
        return batch

    def percent(self, batch: dict) -> float:
        """The percentile from which pixels are dropped."""
        return self.drop_percent

    def looked(self, batch: dict, output, uncertainty: torch.Tensor) -> dict:
        """What else is taken of the teacher's second look, before pixels are dropped.

        Args:
            batch: with `mixed_labels` (B,H,W), 255 on padding.
            output: the teacher's, of labeled and mixed images.
            uncertainty: its entropy (B,H,W) on the mixed images.
        """
        return {}

    def counts(self, batch: dict) -> dict[str, torch.Tensor]:
        """Labeled pixels, and of the unlabeled images pixels `P` and `kept` ones `n`."""
        labels = batch["mixed_labels"]
        return {
            **super().counts(batch),
            "pixels": batch["mixed_valid"].sum(),
            "kept": (labels != IGNORE_INDEX).sum(),
        }

    def terms(self, student, teacher, batch: dict, totals: dict) -> Iterator[dict[str, torch.Tensor]]:
        """Both terms of one forward pass: CE on labels, λ·(P / n)·CE on the labels that are kept."""
        joint = torch.cat([batch["pixel_values"], batch["mixed_pixel_values"]])
        yield self.losses(student(pixel_values=joint), batch, totals)

    def losses(self, output, batch: dict, totals: dict) -> dict[str, torch.Tensor]:
        """The named losses of the student's output on labeled and mixed images."""
        count = len(batch["pixel_values"])
        labeled = self.labeled_loss(output, batch["labels"], totals)
        mixed = batch["mixed_labels"]
        unlabeled = cross_entropy(output.logits[count:], mixed, totals["kept"], align_corners=self.align_corners)
        factor = (totals["pixels"] / totals["kept"].clamp(min=1)).to(unlabeled.dtype)
        return {"labeled_loss": labeled, "unlabeled_loss": self.unlabeled_weight * factor * unlabeled}
