"""Prototypical pseudo-label denoising: fixed soft labels, weighted by how near features are to prototypes of classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from hf_fst.errors import UserError
from hf_fst.method.losses import IGNORE_INDEX, resize_to
from hf_fst.method.objectives.base import Objective
from hf_fst.method.options import option
from hf_fst.method.prototypes import at, class_means, cumulated, distances, features_of, followed, valid_pixels
from hf_fst.method.views import strong_view


@dataclass(frozen=True, kw_only=True, eq=False)
class ProDAObjective(Objective):
    """CE(g_θ(x_l), y_l) + λ·SCE(g_θ(x_u), ŷ) + γ_1·KL(z_φ(x_u) ‖ z_θ(x̃_u)) + γ_2·R: stage 1 of ProDA (Zhang et al., 2021)

    ŷ(x) = argmax_c w_c(x)·p_c(x) corrects the soft labels p of a fixed network by w = z_φ = softmax_c(-‖f_φ - η_c‖/τ),
    how near the teacher's features are to the prototypes η of the classes. SCE is the symmetric cross entropy, x̃_u a
    strong view of the image, and R keeps the predictions from collapsing. All maps have the size of the features. The
    prototypes start as means of the fixed network's features and then follow the teacher's. In the authors' code the
    teacher sees the whole image, here the crop.

    Args:
        num_labels: number of classes C.
        reference: the network of the warm-up, which gives p and must return features (`hf_fst.models.features`); it is
            copied and never updated.
        unlabeled_weight: λ ≥ 0.
        temperature: τ > 0.
        momentum: of the prototypes, in [0, 1].
        begin_passes: how often the unlabeled images are seen for the prototypes to start with.
        consistency_weight: γ_1 ≥ 0; its mean is over places and classes, as in the authors' code.
        regularizer_weight: γ_2 ≥ 0.
        confidence_threshold: in [0, 1], that a corrected label must reach.
        cross_entropy_weight, reverse_weight: α and β of SCE = α·CE(p_θ, ŷ) + β·CE(ŷ, p_θ).
        least_places: that a class needs in an image to move its prototype.
        most_images: counted in the means that prototypes start with.
    """

    passes: ClassVar[int] = 3
    needs_unlabeled: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    num_labels: int
    reference: nn.Module | None = None
    unlabeled_weight: float = option(1.0)
    temperature: float = option(1.0, "prototype_temperature")
    momentum: float = option(0.9999, "prototype_momentum")
    begin_passes: float = option(4.0, "prototype_passes")
    consistency_weight: float = option(10.0)
    regularizer_weight: float = option(0.1)
    confidence_threshold: float = option(0.0)
    cross_entropy_weight: float = 0.1  # these four: the authors' code
    reverse_weight: float = 1.0
    least_places: int = 10
    most_images: int = 3000
    feature_distance: None = field(default=None, init=False)  # `reference` is the network of the warm-up

    def __post_init__(self):
        super().__post_init__()
        if self.reference is None:
            raise UserError(
                f"{type(self).__name__} has no reference; give the network of the warm-up, whose labels it corrects."
            )
        object.__setattr__(self, "reference", deepcopy(self.reference).requires_grad_(False).eval())

    # the prototypes

    @torch.no_grad()
    def begin(self, batches: Iterator[dict], accelerator) -> None:
        """η_c: the mean over images of the mean feature where the fixed network predicts c."""
        prototypes, counts = 0.0, torch.zeros(self.num_labels, device=accelerator.device)
        places = counts
        for batch in batches:
            output = self.reference(pixel_values=batch["unlabeled_pixel_values"])
            means, found = accelerator.gather(self.seen(output, valid_pixels(batch)))
            present = found >= self.least_places
            prototypes, counts = cumulated(prototypes, counts.to(means.dtype), means, present, self.most_images)
            places = places + found.sum(dim=0)
        self.memory.update(prototypes=prototypes, counts=counts, shares=places / places.sum().clamp(min=1))

    def seen(self, output, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean features of the classes that an output predicts, see `class_means`; `valid` (B,H,W) leaves padding out."""
        features = features_of(output)
        labels = resize_to(output.logits, features.shape[-2:], self.align_corners).argmax(dim=1)
        labels = labels.masked_fill(~at(valid, labels.shape[-2:]), IGNORE_INDEX)
        return class_means(features, labels, self.num_labels)

    def advance(self, group: list[dict], accelerator, learning_rate: float) -> None:
        """η_c ← λ η_c + (1-λ) f_c, image after image, f_c being the teacher's mean feature where it predicts c."""
        for batch in group:
            means, found = accelerator.gather((batch["class_means"], batch["class_places"]))
            present = found >= self.least_places
            prototypes, counts = followed(
                self.memory["prototypes"], self.memory["counts"], means, present, self.momentum
            )
            self.memory.update(prototypes=prototypes, counts=counts)

    # the labels

    def prepare(self, teacher, batch: dict) -> dict:
        """Adds corrected labels (B,h,w), the strong view, and what the teacher says of it."""
        batch = super().prepare(teacher, batch)
        images = batch["unlabeled_pixel_values"]
        output = teacher(images)
        features = features_of(output)
        size = features.shape[-2:]
        valid = valid_pixels(batch)
        # w_c(x) = softmax_c(-‖f_φ(x) - η_c‖ / τ)
        weights = self.assignment(features)
        # ŷ(x) = argmax_c w_c(x)·p_c(x)
        soft = resize_to(self.reference(pixel_values=images).logits.softmax(dim=1), size, self.align_corners)
        corrected = weights * soft.to(weights.dtype)
        confidence, labels = (corrected / corrected.sum(dim=1, keepdim=True)).max(dim=1)
        batch |= self.labels(labels, confidence, valid, size)
        view = strong_view(images, self.image_mean, self.image_std)
        batch |= {
            "weak_pixel_values": images,
            "strong_pixel_values": view.images,
            "assignment": self.assignment(view.move(features)),
        }
        batch["consistent"] = view.shows(at(valid, size))
        batch["class_means"], batch["class_places"] = self.seen(output, valid)
        batch |= {"teacher_features": features, "teacher_logits": resize_to(output.logits, size, self.align_corners)}
        return batch

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """-‖f(x) - η_c‖ / τ, (B,C,h,w)."""
        return -distances(features, self.memory["prototypes"]) / self.temperature

    def assignment(self, features: torch.Tensor) -> torch.Tensor:
        """z(x), the softmax of the scores over classes, (B,C,h,w)."""
        return self.scores(features).softmax(dim=1)

    def labels(self, labels: torch.Tensor, confidence: torch.Tensor, valid: torch.Tensor, size) -> dict:
        """The labels (B,h,w) that are learned, `corrected_labels`, and all of them at the size of the images."""
        kept = at(valid, size) & (confidence >= self.confidence_threshold)
        image_size = valid.shape[-2:]
        return {
            "corrected_labels": labels.masked_fill(~kept, IGNORE_INDEX),
            "pseudo_labels": at(labels, image_size).masked_fill(~valid, IGNORE_INDEX),
            "pseudo_confidence": at(confidence, image_size).masked_fill(~valid, 0),
            "places": at(valid, size),
        }

    # the losses

    def counts(self, batch: dict) -> dict[str, torch.Tensor]:
        """Labeled pixels; places with a corrected label, those that are no padding, those that the strong view shows."""
        return {
            **super().counts(batch),
            "corrected": (batch["corrected_labels"] != IGNORE_INDEX).sum(),
            "places": batch["places"].sum(),
            "consistent": batch["consistent"].sum(),
        }

    def terms(self, student, teacher, batch: dict, totals: dict) -> Iterator[dict[str, torch.Tensor]]:
        """CE on labels; consistency on the strong view; symmetric cross entropy and regularizer on the image itself."""
        yield self.labeled_term(student, batch, totals)
        yield {"consistency_loss": self.consistency_weight * self.consistency(student, batch, totals)}
        yield self.weak_losses(student(pixel_values=batch["weak_pixel_values"]), batch, totals)

    def weak_losses(self, output, batch: dict, totals: dict) -> dict[str, torch.Tensor]:
        """The named losses of the student's output on the image itself."""
        labels = batch["corrected_labels"]
        logits = resize_to(output.logits, labels.shape[-2:], self.align_corners)
        loss = self.symmetric_cross_entropy(logits, labels, totals["corrected"])
        return {
            "unlabeled_loss": self.unlabeled_weight * loss + unused(output, "auxiliary_logits"),
            "regularizer": self.regularizer_weight * self.regularizer(logits, batch["places"], totals["places"]),
        }

    def consistency(self, student, batch: dict, totals: dict) -> torch.Tensor:
        """Mean over places and classes of KL(z_φ(x) ‖ z_θ(x̃)), z_φ moved as the strong view was."""
        output = student(pixel_values=batch["strong_pixel_values"])
        log_z = self.scores(features_of(output)).log_softmax(dim=1)
        target = batch["assignment"]
        divergence = (torch.special.xlogy(target, target) - target * log_z).sum(dim=1) * batch["consistent"]
        mean = divergence.sum() / (totals["consistent"].clamp(min=1) * self.num_labels)
        return mean + unused(output, "logits", "auxiliary_logits")

    def symmetric_cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """α·CE(p, ŷ) + β·CE(ŷ, p) (Wang et al., 2019), log 0 being log 1e-4.

        Args:
            logits: (B,C,h,w).
            labels: ŷ (B,h,w), 255 is ignored.
            total: what the sums are divided by.
        """
        kept = labels != IGNORE_INDEX
        right = labels.masked_fill(~kept, 0).unsqueeze(1)
        direct = -logits.log_softmax(dim=1).gather(1, right).squeeze(1)
        p = logits.softmax(dim=1).clamp(min=1e-7)
        reverse = -math.log(1e-4) * (p.sum(dim=1) - p.gather(1, right).squeeze(1))
        loss = self.cross_entropy_weight * direct + self.reverse_weight * reverse
        return (loss * kept).sum() / total.clamp(min=1)

    @staticmethod
    def regularizer(logits: torch.Tensor, places: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """R = -(1/C)·Σ_c log p_c, the mean over places (Zou et al., 2019, MRKLD)."""
        return -(logits.log_softmax(dim=1).mean(dim=1) * places).sum() / total.clamp(min=1)


def unused(output, *names: str) -> torch.Tensor:
    """0 with a gradient of 0 for parts of an output that a loss does not use: DDP waits for that of every weight."""
    parts = [output.get(name) for name in names]
    tensors = [t for part in parts if part is not None for t in (part.values() if isinstance(part, dict) else [part])]
    return sum(0 * tensor.sum() for tensor in tensors) if tensors else output.logits.new_zeros(())
