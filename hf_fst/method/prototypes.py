"""Features of pixels and the prototypes of classes among them; pure tensor functions.

A network's `features` are what its classifier reads (`hf_fst.models.features`), (B,D,h,w).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hf_fst.errors import UserError
from hf_fst.method.losses import IGNORE_INDEX


def features_of(output) -> torch.Tensor:
    """The `features` (B,D,h,w) of a model's output, in full precision. Raises `UserError` where it has none."""
    if output.get("features") is None:
        raise UserError("The model's output has no features; call hf_fst.models.features.return_features on it first.")
    features = output.features
    return features if features.dtype == torch.float64 else features.float()


def valid_pixels(batch: dict) -> torch.Tensor:
    """Where unlabeled images are images and not padding, (B,H,W) bool; everywhere if the batch does not say."""
    images = batch["unlabeled_pixel_values"]
    return batch.get("unlabeled_valid", torch.ones_like(images[:, 0], dtype=torch.bool))


def at(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Labels or masks (B,H,W) at `size` (h,w) by nearest neighbor."""
    return F.interpolate(maps.unsqueeze(1).float(), size=tuple(size), mode="nearest").squeeze(1).to(maps.dtype)


def class_means(features: torch.Tensor, labels: torch.Tensor, num_labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean feature of each class in each image.

    Args:
        features: (B,D,h,w).
        labels: (B,h,w), 255 is ignored.
        num_labels: number of classes C.

    Returns:
        means (B,C,D), and of how many places, (B,C).
    """
    ids = labels.masked_fill(labels == IGNORE_INDEX, num_labels)
    ones = F.one_hot(ids, num_labels + 1)[..., :num_labels].to(features.dtype).flatten(1, 2)
    counts = ones.sum(dim=1)
    means = torch.einsum("bnc,bdn->bcd", ones, features.flatten(2)) / counts.clamp(min=1).unsqueeze(-1)
    return means, counts


def cumulated(
    prototypes: torch.Tensor, counts: torch.Tensor, means: torch.Tensor, present: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """η_c ← (n_c η_c + f_c) / (n_c + 1) for one image after the other, n_c counting up to `most`.

    Args:
        prototypes: η (C,D).
        counts: n (C,).
        means, present: f (B,C,D), see `class_means`, and where it counts (B,C) bool.
    """
    for mean, has in zip(means, present, strict=True):
        n = counts.unsqueeze(1)
        prototypes = torch.where(has.unsqueeze(1), (n * prototypes + mean) / (n + 1), prototypes)
        counts = (counts + has).clamp(max=most)
    return prototypes, counts


def followed(
    prototypes: torch.Tensor, counts: torch.Tensor, means: torch.Tensor, present: torch.Tensor, momentum: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """η_c ← λ η_c + (1-λ) f_c for one image after the other; a class without prototype takes its first f_c whole.

    Args as of `cumulated`, and `momentum` λ in [0, 1].
    """
    for mean, has in zip(means, present, strict=True):
        kept = momentum * (counts > 0).to(mean.dtype).unsqueeze(1)
        prototypes = torch.where(has.unsqueeze(1), kept * prototypes + (1 - kept) * mean, prototypes)
        counts = counts.maximum(has.to(counts.dtype))
    return prototypes, counts


def distances(features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """‖f(x) - η_c‖₂ (B,C,h,w) of features (B,D,h,w) from prototypes (C,D)."""
    batch, _, height, width = features.shape
    places = features.flatten(2).transpose(1, 2)
    # not by matrix products, which cancel where a place is near its prototype
    found = torch.cdist(places, prototypes.to(places.dtype), compute_mode="donot_use_mm_for_euclid_dist")
    return found.transpose(1, 2).reshape(batch, -1, height, width)
