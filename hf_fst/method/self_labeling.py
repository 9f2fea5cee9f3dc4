"""Prototypes that are learned by labeling themselves, as in CPSL (Li et al., 2022); pure tensor functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def sinkhorn(
    similarities: torch.Tensor, shares: torch.Tensor, epsilon: float = 0.05, iterations: int = 3
) -> torch.Tensor:
    """Soft labels (n,C) of n pixels whose classes have given shares, by Sinkhorn and Knopp's iterations.

    Q = exp(S / ε), then, alternating, each class has its share of the mass and each pixel 1/n of it; at last a row is 1.

    Args:
        similarities: S (n,C) of pixels with classes.
        shares: δ (C,), sums to 1; a class of share 0 labels nothing.
        epsilon: ε > 0.
        iterations: of both steps.
    """
    mass = torch.exp(similarities / epsilon)
    mass = mass / mass.sum()
    for _ in range(iterations):
        mass = mass / mass.sum(dim=0).clamp(min=torch.finfo(mass.dtype).tiny) * shares
        mass = mass / mass.sum(dim=1, keepdim=True) / len(mass)
    return mass * len(mass)


def self_labeling_loss(
    features: torch.Tensor,
    outputs: torch.Tensor,
    prototypes: torch.Tensor,
    shares: torch.Tensor,
    remembered: tuple[torch.Tensor, torch.Tensor] | None,
    temperature: float,
    coded: bool = False,
) -> torch.Tensor:
    """-(1/n)·Σ q·log softmax(f·c / τ) for labels q from the features and from the outputs, summed, ().

    Gradient flows through the prototypes alone.

    Args:
        features: f (n,D) of pixels of an image, of length 1.
        outputs: logits (n,C) of the same pixels, of length 1.
        prototypes: c (C,D), of any length.
        shares: δ (C,), see `sinkhorn`.
        remembered: features (m,D) and outputs (m,C) of earlier pixels that are labeled along, None for none.
        temperature: τ.
        coded: as in the authors' code, remembered features are compared with prototypes that are not normalized.
    """
    directions = F.normalize(prototypes, dim=1)
    similarities = features @ directions.t()
    with torch.no_grad():
        by_features, by_outputs = similarities, outputs
        if remembered is not None:
            earlier = remembered[0] @ (prototypes if coded else directions).t()
            by_features, by_outputs = torch.cat([by_features, earlier]), torch.cat([by_outputs, remembered[1]])
        labels = [sinkhorn(each, shares)[: len(features)] for each in (by_features, by_outputs)]
    log_p = (similarities / temperature).log_softmax(dim=1)
    return -(sum(labels) * log_p).sum(dim=1).mean()


def label_contrast(
    anchors: torch.Tensor,
    labels: torch.Tensor,
    remembered: torch.Tensor,
    remembered_labels: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """For each anchor -mean over positives of [l - log(e^l + Σ_negatives e^l)], l = f·f' / τ, summed over anchors, ().

    Args:
        anchors: f (n,D) of length 1.
        labels: (n,), those of 255 are left out.
        remembered: f' (m,D) of length 1; positives have the label of the anchor, negatives another one.
        remembered_labels: (m,), those of 255 are neither.
        temperature: τ.
    """
    logits = anchors @ remembered.t() / temperature
    known = (remembered_labels != 255).unsqueeze(0)
    positive = (labels.unsqueeze(1) == remembered_labels) & known
    negative = (labels.unsqueeze(1) != remembered_labels) & known
    against = logits.masked_fill(~negative, -torch.inf).logsumexp(dim=1, keepdim=True)
    terms = (logits - torch.logaddexp(logits, against)) * positive
    means = -terms.sum(dim=1) / (positive.sum(dim=1) + 1e-5)
    return (means * (labels != 255)).sum()
