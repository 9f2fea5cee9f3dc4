"""Per-pixel losses and what they are divided by; pure tensor functions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

IGNORE_INDEX = 255


def ignore_as_255(labels: torch.Tensor) -> torch.Tensor:
    """`labels` (…) int64 with the other common ignore value, -100, written as 255."""
    return labels.masked_fill(labels == -100, IGNORE_INDEX)


def resize_to(logits: torch.Tensor, size: tuple[int, int], align_corners: bool = False) -> torch.Tensor:
    """`logits` (B,C,h,w) at `size` (H,W), bilinear; untouched if they have it already."""
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=align_corners)


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    total: torch.Tensor | float,
    weight: torch.Tensor | None = None,
    align_corners: bool = False,
) -> torch.Tensor:
    """Σ_pixels weight · CE / total, a share of a mean whose count was taken over a whole group.

    Args:
        logits: (B,C,h,w), resized to the labels' size.
        labels: (B,H,W) int64, 255 is ignored.
        total: what the sum is divided by; 0 gives loss 0, not NaN.
        weight: (B,H,W), 1 everywhere if None.
        align_corners: how the network wants its logits resized.
    """
    logits = resize_to(logits, labels.shape[-2:], align_corners)
    pixels = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    if weight is not None:
        pixels = pixels * weight
    return pixels.sum() / torch.as_tensor(total, device=pixels.device).clamp(min=1)


def heads(output, auxiliary_weight: float) -> list[tuple[float, torch.Tensor]]:
    """The logits of a model's output with their weights: `logits` 1, each of `auxiliary_logits` `auxiliary_weight`."""
    auxiliary = (output.get("auxiliary_logits") or {}).values() if auxiliary_weight else ()
    return [(1.0, output.logits), *((auxiliary_weight, logits) for logits in auxiliary)]


def output_cross_entropy(
    output,
    labels: torch.Tensor,
    total,
    weight: torch.Tensor | None = None,
    auxiliary_weight: float = 0.0,
    align_corners: bool = False,
    weigh_auxiliary: bool = True,
    first: int = 0,
) -> torch.Tensor:
    """`cross_entropy` of a model's output from row `first` on, auxiliary heads included.

    `output.logits` counts once; each of `output.auxiliary_logits` (a dict, where the model gives one) counts
    `auxiliary_weight` times, its pixels weighted too if `weigh_auxiliary`.
    """
    (_, logits), *auxiliary = heads(output, auxiliary_weight)
    loss = cross_entropy(logits[first:], labels, total, weight, align_corners)
    weight = weight if weigh_auxiliary else None
    for share, logits in auxiliary:
        loss = loss + share * cross_entropy(logits[first:], labels, total, weight, align_corners)
    return loss


def hard_pixels(
    logits: torch.Tensor, labels: torch.Tensor, threshold: float, min_kept: int, align_corners: bool = False
) -> torch.Tensor:
    """OHEM: the pixels (B,H,W) bool whose right class has at most probability `threshold`, at least `min_kept` of them.

    If fewer than `min_kept` are that hard, the `min_kept` hardest are kept; if fewer have labels, all that have (the
    authors' semi-supervised code for Cityscapes: 0.7 and 100000).

    Args:
        logits: (B,C,h,w), resized to the labels' size.
        labels: (B,H,W) int64, 255 is ignored.
    """
    valid = labels != IGNORE_INDEX
    if valid.sum() <= min_kept:
        return valid
    probabilities = resize_to(logits.detach(), labels.shape[-2:], align_corners).softmax(dim=1)
    right = probabilities.gather(1, labels.masked_fill(~valid, 0).unsqueeze(1)).squeeze(1)
    kept = right[valid].kthvalue(min_kept).values if min_kept else right.new_tensor(0)
    return valid & (right <= kept.clamp(min=threshold))


def ramp_up(progress: float, share: float) -> float:
    """exp(-5(1 - t/T)²), which rises from 0.007 to 1 within the first `share` of a run, `progress` being that done."""
    return math.exp(-5 * (1 - min(progress / share, 1)) ** 2) if share else 1.0


def entropy(logits: torch.Tensor, size: tuple[int, int], align_corners: bool = False) -> torch.Tensor:
    """-Σ_c p_c log p_c (B,H,W) in nats of the softmax of `logits` (B,C,h,w) at `size`."""
    probabilities = resize_to(logits, size, align_corners).softmax(dim=1)
    return -(probabilities * torch.log(probabilities + 1e-10)).sum(dim=1)


def percentile(values: torch.Tensor, percent: float) -> torch.Tensor:
    """The percentile of `values` (…), `percent` in [0, 100], linear between the two values around it, (), float64."""
    values = values.double().flatten()
    place = percent / 100 * (len(values) - 1)
    below = math.floor(place)
    # not torch.quantile, which takes at most 16 million values
    first = values.kthvalue(below + 1).values
    second = values.kthvalue(min(below + 2, len(values))).values
    return torch.lerp(first, second, place - below)


def pseudo_labels(
    logits: torch.Tensor, size: tuple[int, int], align_corners: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hard labels (B,H,W) int64 and their confidence (B,H,W) in [0,1]: maximum of the softmax at image size."""
    confidence, labels = resize_to(logits, size, align_corners).softmax(dim=1).max(dim=1)
    return labels, confidence
