"""Class-balanced pixel-level self-labeling: ProDA with prototypes that are learned, and compared by their direction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from hf_fst.method.contrast import enqueued
from hf_fst.method.losses import IGNORE_INDEX
from hf_fst.method.mixing import cut_mask, mix
from hf_fst.method.objectives.base import refuse_two_sizes
from hf_fst.method.objectives.proda import ProDAObjective
from hf_fst.method.options import option
from hf_fst.method.prototypes import at, features_of
from hf_fst.method.self_labeling import label_contrast, self_labeling_loss


@dataclass(frozen=True, kw_only=True, eq=False)
class CPSLObjective(ProDAObjective):
    """CE(g_θ(x_l), y_l) + λ·SCE(g_θ(x_u), ŷ) + γ·KL(z_φ ‖ z_θ) + λ_c·L_c: the first stage of CPSL (Li et al., 2022).

    As in ProDA, ŷ(x) = argmax_c w_c(x)·p_c(x), but w = z_φ = softmax_c(cos(f_φ, c_φ)/τ), and the prototypes c learn. At
    each real step SGD moves them along the gradient of the self-labeling loss, whose labels give each class its share of
    the pixels (`hf_fst.method.self_labeling`), and c_φ follows c. The network gets no gradient from it. L_c contrasts the
    student's pixels with remembered ones of the teacher, once enough are. Now and then a rectangle of a labeled image is
    pasted onto the image.

    Args:
        momentum: with which c_φ follows c, in [0, 1].
        cut_probability: with which the images of a batch get rectangles of labeled ones; there is no contrast then.
        self_labeling_weight: of the gradient that moves the prototypes.
        self_labeling: `"paper"`, or as it is `"coded"` by the authors: remembered pixels meet prototypes that are not
            normalized, and have labels of other pixels.
        contrast_weight: λ_c ≥ 0.
        bank_size: remembered pixels.
        samples: pixels drawn of an image for each step.
        rate, inertia, decay: of the prototypes' SGD: learning rate over that of the step, momentum and weight decay.
    """

    temperature: float = option(0.08, "prototype_temperature")
    momentum: float = option(0.999, "prototype_momentum")
    consistency_weight: float = option(5.0)
    regularizer_weight: float = option(0.0)
    cut_probability: float = option(0.5)
    self_labeling_weight: float = option(0.1)
    self_labeling: str = option("paper")
    contrast_weight: float = option(0.001)
    bank_size: int = option(65_536)
    samples: int = 256  # from here on: the authors' code
    rate: float = 5.0
    inertia: float = 0.9
    decay: float = 2e-4

    @torch.no_grad()
    def begin(self, batches: Iterator[dict], accelerator) -> None:
        """ProDA's prototypes, normalized, and the share of each class in what the fixed network predicts."""
        super().begin(batches, accelerator)
        prototypes = F.normalize(self.memory["prototypes"], dim=1)
        self.memory.update(prototypes=prototypes, followed=prototypes.clone(), velocity=torch.zeros_like(prototypes))

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """cos(f, c_φ) / τ, (B,C,h,w)."""
        directions = F.normalize(self.memory["followed"], dim=1).to(features.dtype)
        return torch.einsum("bdhw,cd->bchw", F.normalize(features, dim=1), directions) / self.temperature

    def prepare(self, teacher, batch: dict) -> dict:
        """Adds to ProDA's what the prototypes learn from, and pastes rectangles of labeled images."""
        refuse_two_sizes("cpsl", batch)
        batch = super().prepare(teacher, batch)
        features, logits = batch["teacher_features"], batch["teacher_logits"]
        drawn = drawn_places(batch["places"], self.samples)
        labels = batch["corrected_labels"].flatten(1)
        batch["drawn_features"] = F.normalize(picked(features, drawn), dim=2)
        batch["drawn_outputs"] = F.normalize(picked(logits, drawn), dim=2)
        coded = self.self_labeling == "coded"
        batch["drawn_labels"] = labels[:, : drawn.shape[1]] if coded else labels.gather(1, drawn)
        batch["anchors"] = drawn_places(batch["corrected_labels"] != IGNORE_INDEX, self.samples)
        return batch | self.pasted(batch)

    def pasted(self, batch: dict) -> dict:
        """Rectangles of labeled images, without padding, with their labels, on the images that the student sees."""
        images, size = batch["weak_pixel_values"], batch["corrected_labels"].shape[-2:]
        rows = torch.arange(len(images), device=images.device) % len(batch["labels"])
        mask = cut_mask(len(images), images.shape[-2:], images.device, self.cut_probability, "batch")
        if "valid" in batch:
            mask = mask | ~batch["valid"][rows].unsqueeze(1)
        return {
            "weak_pixel_values": mix(mask, images, batch["pixel_values"][rows]),
            "corrected_labels": mix(
                at(mask[:, 0], size)[:, None], batch["corrected_labels"], at(batch["labels"], size)[rows]
            ),
            "uncut": mask.all(),
        }

    def counts(self, batch: dict) -> dict[str, torch.Tensor]:
        """As ProDA, and pixels of the student that are contrasted."""
        anchors = batch["anchors"]
        return {**super().counts(batch), "anchors": torch.tensor(anchors.numel(), device=anchors.device)}

    def weak_losses(self, output, batch: dict, totals: dict) -> dict[str, torch.Tensor]:
        """Adds λ_c·L_c, once the memory is full."""
        found = super().weak_losses(output, batch, totals)
        if not self.contrast_weight or len(self.memory.get("labels", ())) < self.bank_size:
            return found
        anchors = F.normalize(picked(features_of(output), batch["anchors"]), dim=2).flatten(0, 1)
        labels = batch["corrected_labels"].flatten(1).gather(1, batch["anchors"]).flatten()
        remembered = self.memory["features"], self.memory["labels"]
        loss = label_contrast(anchors, labels, *remembered, self.temperature) / totals["anchors"]
        return found | {"contrast_loss": self.contrast_weight * loss * batch["uncut"]}

    def advance(self, group: list[dict], accelerator, learning_rate: float) -> None:
        """c learns from the images of all processes, each of which is then remembered; c_φ follows."""
        memory, coded = self.memory, self.self_labeling == "coded"
        prototypes = memory["prototypes"].clone().requires_grad_()
        shares = memory["shares"].to(prototypes.dtype)
        losses = []
        for batch in group:
            seen = accelerator.gather(tuple(batch[f"drawn_{key}"] for key in ("features", "outputs", "labels")))
            for features, outputs, labels in zip(*seen, strict=True):
                full = len(memory.get("labels", ())) >= self.bank_size
                remembered = (memory["features"], memory["outputs"]) if full else None
                with torch.enable_grad():
                    losses.append(
                        self_labeling_loss(features, outputs, prototypes, shares, remembered, self.temperature, coded)
                    )
                for key, rows in (("features", features), ("outputs", outputs), ("labels", labels)):
                    memory[key] = enqueued(memory.get(key), rows, self.bank_size)
        with torch.enable_grad():
            loss = self.self_labeling_weight * torch.stack(losses).mean()
        [gradient] = torch.autograd.grad(loss, prototypes)
        # c ← c - γ·v, v ← inertia·v + ∇ + decay·c
        prototypes = prototypes.detach()
        velocity = self.inertia * memory["velocity"] + gradient + self.decay * prototypes
        prototypes = prototypes - self.rate * learning_rate * velocity
        followed = self.momentum * memory["followed"] + (1 - self.momentum) * prototypes
        memory.update(prototypes=prototypes, velocity=velocity, followed=followed)


def drawn_places(allowed: torch.Tensor, count: int) -> torch.Tensor:
    """`count` places (B,n) drawn of those of each map (B,h,w) that are allowed, flat; of all where none is."""
    weights = allowed.flatten(1).float()
    weights[weights.sum(dim=1) == 0] = 1
    count = min(count, weights.shape[1])
    few = weights.sum(dim=1) < count
    return torch.stack(
        [torch.multinomial(row, count, replacement=bool(rare)) for row, rare in zip(weights, few, strict=True)]
    )


def picked(maps: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Of maps (B,D,h,w) the vectors (B,n,D) at flat places (B,n)."""
    return maps.flatten(2).transpose(1, 2).gather(1, places.unsqueeze(2).expand(-1, -1, maps.shape[1]))
