"""Where predictions are wrong, as guided collaborative training sees it (Ke et al., ECCV 2020, their code); pure tensor
functions. Flaw maps are (B,1,H,W), their blurs as wide as a share of the shorter side of the image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from hf_fst.method.losses import IGNORE_INDEX


def flaw_truth(
    probabilities: torch.Tensor, labels: torch.Tensor, ignored_are_half: bool = False, spread: int = 1
) -> torch.Tensor:
    """What a flaw detector learns: e = ½·Σ_c|y_c - p_c|, blurred, `spread` times widened and blurred, from 0 to 1.

    Args:
        probabilities: p (B,C,H,W).
        labels: (B,H,W), 255 is ignored and has no error.
        ignored_are_half: it has the error ½, as in the authors' code.
        spread: ν.
    """
    known = labels != IGNORE_INDEX
    truth = F.one_hot(labels.masked_fill(~known, 0), probabilities.shape[1]).permute(0, 3, 1, 2) * known.unsqueeze(1)
    error = 0.5 * (truth - probabilities).abs().sum(dim=1, keepdim=True)
    if not ignored_are_half:
        error = error * known.unsqueeze(1)
    side = min(labels.shape[-2:])
    error = blurred(error, side // 8)
    for _ in range(spread):
        error = blurred(F.max_pool2d(error, 3, 1, 1), side // 4)
    return _spread_out(error, error)


def handled(maps: torch.Tensor, least: float = 0.1) -> torch.Tensor:
    """Flaw maps (B,1,H,W) of a detector made comparable: no negatives, blurred, from 0 to 1 in each image; where nothing
    exceeds `least`, no more than 0."""
    maps = blurred(maps.clamp(min=0), min(maps.shape[-2:]) // 16)
    return _spread_out(maps * (maps.amax(dim=(2, 3), keepdim=True) > least), maps)


def _spread_out(maps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    low, high = like.amin(dim=(2, 3), keepdim=True), like.amax(dim=(2, 3), keepdim=True)
    return (maps - low) / (high - low + 1e-9)


def dynamic_consistency(
    first: torch.Tensor, second: torch.Tensor, flaws: tuple[torch.Tensor, torch.Tensor], threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each of two predictions (B,C,H,W) learns: the other one where that has fewer flaws, (2,B,C,H,W); and where
    both are flawed, (B,1,H,W) bool.

    Args:
        first, second: probabilities.
        flaws: their handled flaw maps; above `threshold` there is no better one.
        threshold: ξ.
    """
    one, two = (torch.where(maps > threshold, 1, maps) for maps in flaws)
    both = (one > threshold) & (two > threshold)
    return torch.stack([torch.where(two >= one, first, second), torch.where(one >= two, second, first)]), both


def blurred(maps: torch.Tensor, width: int) -> torch.Tensor:
    """Maps (B,1,H,W), mirrored at the edges, under a window of `width` pixels, or one more where that is even."""
    row = blur_row(width + 1 - width % 2).to(maps)
    half = len(row) // 2
    with torch.autocast(maps.device.type, enabled=False):
        maps = F.pad(maps, (half,) * 4, mode="reflect")
        return F.conv2d(F.conv2d(maps, row.view(1, 1, 1, -1)), row.view(1, 1, -1, 1))


def blur_row(width: int) -> torch.Tensor:
    """One row of the blur, (width,), float64: a peak under scipy's Gaussian filter, which is cut at 4σ and mirrored."""
    sigma = 0.3 * ((width - 1) / 2 - 1) + 0.8
    offsets = torch.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
    weights = torch.exp(-offsets.double().square() / (2 * math.pow(sigma, 2)))
    places = (width // 2 + offsets) % (2 * width)  # of what falls outside, mirrored
    places = torch.where(places < width, places, 2 * width - 1 - places)
    return torch.zeros(width, dtype=torch.float64).index_add(0, places, weights / weights.sum())
