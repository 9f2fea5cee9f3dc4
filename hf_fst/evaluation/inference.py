"""Logits of a whole image: at once, in sliding windows, over several scales, and mirrored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from hf_fst.errors import UserError

AVERAGES = ("probabilities", "logits")
WEIGHTINGS = ("uniform", "gaussian")


def _pair(value: int | Sequence[int], what: str) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(int(side) for side in value)
    if len(pair) != 2 or min(pair) < 1:
        raise UserError(f"{what} is {value}, but one positive number of pixels or (height, width) is needed.")
    return pair


def check_views(
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    scales: Sequence[float] = (1.0,),
    average: str = "probabilities",
    weighting: str = "uniform",
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Checks the options of `segment` and gives window and stride as (height, width); stride is 2/3 of the window
    where it is not given.

    Raises:
        ValueError: for an option out of range, a stride without a window, or one that leaves gaps between windows.
    """
    if not scales or min(scales) <= 0:
        raise UserError(f"scales is {tuple(scales)}, but one or more positive factors are needed.")
    if average not in AVERAGES:
        raise UserError(f"average is {average!r}, but it is one of {', '.join(AVERAGES)}.")
    if weighting not in WEIGHTINGS:
        raise UserError(f"weighting is {weighting!r}, but it is one of {', '.join(WEIGHTINGS)}.")
    if window is None:
        if stride is not None:
            raise UserError(f"stride is {stride}, but without a window there is nothing to slide: give a window too.")
        return None, None
    window = _pair(window, "window")
    stride = tuple(max(1, side * 2 // 3) for side in window) if stride is None else _pair(stride, "stride")
    if stride[0] > window[0] or stride[1] > window[1]:
        raise UserError(
            f"stride {stride} is larger than window {window}, which leaves pixels out: make it at most the window."
        )
    return window, stride


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one side; the last window is shifted inside, as in mmsegmentation."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def gaussian_weights(height: int, width: int) -> torch.Tensor:
    """Weights (height, width) in (0, 1] that fall off to a window's rim: a Gaussian with a standard deviation of 1/8
    of each side (the importance weighting of nnU-Net, Isensee et al. 2021)."""

    def side(length: int) -> torch.Tensor:
        distance = torch.arange(length, dtype=torch.float32) - (length - 1) / 2
        return torch.exp(-0.5 * (distance / (length / 8)) ** 2)

    weights = torch.outer(side(height), side(width))
    return (weights / weights.max()).clamp_min(1e-4)  # the corners too must have a weight


def aligns_corners(model: nn.Module) -> bool:
    """Whether a network wants its logits resized with aligned corners (`config.align_corners`, False if it has none)."""
    return getattr(getattr(model, "config", None), "align_corners", False)


def resize_logits(logits: torch.Tensor, size: Sequence[int], align_corners: bool = False) -> torch.Tensor:
    """Resizes logits (B, C, h, w) to float32 (B, C, *size), bilinear."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits.float()
    return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=align_corners)


def _slide(
    model: nn.Module,
    pixel_values: torch.Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    weighting: str,
    accumulate_on: torch.device,
) -> torch.Tensor:
    height, width = pixel_values.shape[-2:]
    window_height, window_width = min(window[0], height), min(window[1], width)
    weights = torch.ones(window_height, window_width)
    if weighting == "gaussian":
        weights = gaussian_weights(window_height, window_width)
    weights = weights.to(accumulate_on)
    total, seen = None, torch.zeros(height, width, device=accumulate_on)
    for top in window_starts(height, window[0], stride[0]):
        for left in window_starts(width, window[1], stride[1]):
            rows, columns = slice(top, top + window_height), slice(left, left + window_width)
            crop = pixel_values[..., rows, columns]
            logits = resize_logits(model(pixel_values=crop).logits, crop.shape[-2:], aligns_corners(model))
            logits = logits.to(accumulate_on)
            if total is None:
                total = logits.new_zeros((*logits.shape[:2], height, width))
            total[..., rows, columns] += logits * weights
            seen[rows, columns] += weights
    return total.div_(seen)


def _views(
    model: nn.Module,
    pixel_values: torch.Tensor,
    window: tuple[int, int] | None,
    stride: tuple[int, int] | None,
    scales: Sequence[float],
    flip: bool,
    weighting: str,
    accumulate_on: torch.device,
) -> Iterator[torch.Tensor]:
    """The logits of each scaled and mirrored view, turned back, at the size they come in."""
    height, width = pixel_values.shape[-2:]
    for scale in scales:
        view = pixel_values
        if scale != 1:
            sides = (max(1, round(height * scale)), max(1, round(width * scale)))
            view = F.interpolate(view, size=sides, mode="bilinear", align_corners=False, antialias=scale < 1)
        for mirrored in (False, True) if flip else (False,):
            pixels = view.flip(-1) if mirrored else view
            if window is None:
                logits = model(pixel_values=pixels).logits.to(accumulate_on)
            else:
                logits = _slide(model, pixels, window, stride, weighting, accumulate_on)
            yield logits.flip(-1) if mirrored else logits


@torch.no_grad()
def segment(
    model: nn.Module,
    pixel_values: torch.Tensor,
    size: Sequence[int] | None = None,
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    *,
    weighting: str = "uniform",
    average: str = "probabilities",
    accumulate_on: str | torch.device | None = None,
) -> torch.Tensor:
    """Gives the logits of images at the wanted size, without gradient.

    Windows of one view overlap in the same image at the same scale, so their logits are averaged, as in
    mmsegmentation. Views of different scale have logits of different spread, so their probabilities are averaged
    (a confident view does not outvote the others by its scale alone), and the result is the logarithm of the mean.

    Args:
        model: a segmentation model whose output has `logits` (B, C, h, w) at any stride; its mode is left as it is.
        pixel_values: normalized images (B, 3, H, W).
        size: (height, width) of the result, that of the labels; by default (H, W).
        window: side or (height, width) in pixels of windows that slide over each scaled image; None for whole images.
        stride: pixels from one window to the next, at most the window; 2/3 of it by default.
        scales: factors by which the images are resized.
        flip: also look at the mirrored images.
        weighting: "uniform" or "gaussian" weights of a pixel within its windows.
        average: "probabilities" or "logits" of the views.
        accumulate_on: device that holds the full-size sums, such as "cpu" where an accelerator's memory is short; by
            default the images' device.

    Returns:
        float32 (B, C, *size): logits, or log-probabilities where the probabilities of several views were averaged.

    Raises:
        ValueError: for options out of range (see `check_views`).
    """
    window, stride = check_views(window, stride, scales, average, weighting)
    device = torch.device(accumulate_on) if accumulate_on is not None else pixel_values.device
    size = tuple(size) if size is not None else tuple(pixel_values.shape[-2:])
    count = len(scales) * (2 if flip else 1)
    views = _views(model, pixel_values, window, stride, scales, flip, weighting, device)
    if count == 1:
        return resize_logits(next(views), size, aligns_corners(model))
    total = None
    for logits in views:
        logits = resize_logits(logits, size, aligns_corners(model))
        if average == "probabilities":
            logits = logits.softmax(dim=1)
        total = logits if total is None else total.add_(logits)
    total.div_(count)
    return total.clamp_min_(torch.finfo(total.dtype).tiny).log_() if average == "probabilities" else total


@torch.no_grad()
def argmax_at(
    logits: torch.Tensor, size: Sequence[int], align_corners: bool = False, classes_at_once: int = 16
) -> torch.Tensor:
    """Gives `resize_logits(logits, size, align_corners).argmax(1)` without ever holding all classes at the full size.

    Args:
        logits: (B, C, h, w).
        size: (height, width) of the labels.
        classes_at_once: how many classes are resized at a time.

    Returns:
        int64 class indices (B, *size).
    """
    best, chosen = None, None
    for first in range(0, logits.shape[1], classes_at_once):
        values, indices = resize_logits(logits[:, first : first + classes_at_once], size, align_corners).max(dim=1)
        if best is None:
            best, chosen = values, indices
        else:
            better = values > best
            best, chosen = torch.where(better, values, best), torch.where(better, indices + first, chosen)
    return chosen


@torch.no_grad()
def predict(
    model: nn.Module,
    pixel_values: torch.Tensor,
    size: Sequence[int] | None = None,
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    *,
    weighting: str = "uniform",
    average: str = "probabilities",
    accumulate_on: str | torch.device | None = None,
) -> torch.Tensor:
    """Gives the class of each pixel, int64 (B, *size): the argmax of `segment`, in less memory. Arguments as there."""
    size = tuple(size) if size is not None else tuple(pixel_values.shape[-2:])
    if len(scales) == 1 and not flip:
        window, stride = check_views(window, stride, scales, average, weighting)
        device = torch.device(accumulate_on) if accumulate_on is not None else pixel_values.device
        views = _views(model, pixel_values, window, stride, scales, False, weighting, device)
        return argmax_at(next(views), size, aligns_corners(model))
    options = {"weighting": weighting, "average": average, "accumulate_on": accumulate_on}
    return segment(model, pixel_values, size, window, stride, scales, flip, **options).argmax(dim=1)
