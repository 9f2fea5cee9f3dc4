"""Logits of a whole image: at once, in sliding windows, over several scales, and mirrored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from hf_fst.data.images import MAX_SIDE
from hf_fst.errors import NotFiniteError, UserError, in_a_line
from hf_fst.method.losses import resize_to

MOST = 100  # times that a view may be larger than the image
AT_ONCE = {"cpu": 1, "cuda": 4}  # windows in one pass; a CPU gains nothing from more than one
CLASSES_AT_ONCE = 16  # that are resized to the full size


def _pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, Real) else tuple(value)
    if len(pair) != 2 or not all(isinstance(side, Integral) and side > 0 for side in pair):
        raise UserError(f"{name} is {value}; give one positive number of pixels, or two as (height, width).")
    return int(pair[0]), int(pair[1])


@dataclass(frozen=True)
class Look:
    """How a model looks at an image. Sizes are in pixels, as (height, width) or one number for a square.

    Args:
        window: size of the windows that slide over each scaled image, kept as a pair; None for the whole image.
        stride: distance from one window to the next, at most the window; two thirds of the window by default.
        scales: factors by which the image is resized; the views are averaged.
        flip: whether to average with the mirrored image.
        resize: size that the image is resized to fit into first, keeping its ratio; "model" for the size that the image
            processor makes, None for full size. The longer side bounds the image's longer side, so the order does not
            matter; kept as (shorter, longer).

    Raises:
        UserError: A number is out of range, a stride has no window, or it would leave gaps between windows.
    """

    window: int | Sequence[int] | None = None
    stride: int | Sequence[int] | None = None
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    resize: Sequence[int] | str | None = None

    def __post_init__(self) -> None:
        scales = tuple(self.scales)
        if not scales or not all(isinstance(scale, Real) and 0 < scale <= MOST for scale in scales):
            raise UserError(f"scales is {scales}; give one or more positive numbers, up to {MOST}.")
        window, stride, resize = self.window, self.stride, self.resize
        if window is not None:
            window = _pair(window, "window")
            stride = tuple(max(1, side * 2 // 3) for side in window) if stride is None else _pair(stride, "stride")
            if stride[0] > window[0] or stride[1] > window[1]:
                raise UserError(
                    f"stride {stride} is larger than window {window}, which leaves pixels out; give at most the window."
                )
        elif stride is not None:
            raise UserError(f"stride is {stride}, but there is no window to slide; give a window too.")
        if isinstance(resize, str) and resize != "model":
            raise UserError(f"resize is {resize!r}; give None, (height, width) or 'model'.")
        if resize is not None and resize != "model":
            resize = tuple(sorted(_pair(resize, "resize")))
            if resize[1] > MAX_SIDE:
                raise UserError(f"resize is {self.resize}; give sides of {MAX_SIDE} pixels at most.")
        for name, value in (("window", window), ("stride", stride), ("scales", scales), ("resize", resize)):
            object.__setattr__(self, name, value)

    @property
    def protocol(self) -> str:
        """In words, such as "full size, windows of 769 every 513, scales 0.75 1, mirrored too"."""
        words = ["full size"]
        if self.resize is not None:
            words = [
                "the model's own size" if self.resize == "model" else "resized into {1} x {0}".format(*self.resize)
            ]
        if self.window is not None:
            window, stride = (
                f"{pair[0]}" if pair[0] == pair[1] else f"{pair[0]} x {pair[1]}" for pair in (self.window, self.stride)
            )
            words.append(f"windows of {window} every {stride}")
        if self.scales != (1.0,):
            words.append("scales " + " ".join(f"{scale:g}" for scale in self.scales))
        if self.flip:
            words.append("mirrored too")
        return ", ".join(words)


WHOLE = Look()


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Inside, a network is in evaluation mode; the mode of each part is restored."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one side; the last window is shifted inside, as in mmsegmentation."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def aligns_corners(model: nn.Module) -> bool:
    """Whether a network wants its logits resized with aligned corners (`config.align_corners`, False if it has none)."""
    return getattr(getattr(model, "config", None), "align_corners", False)


# architectures and backbones whose position embedding fits images of `config.image_size` alone, as does that of a hybrid
# DPT, and those that take squares alone
FIXED, SQUARE = ("eomt", "eomt_dinov3", "data2vec-vision", "hiera"), ("dpt",)


def fixed_size(config: Any, kinds: Sequence[str] = FIXED) -> tuple[int, int] | None:
    """The only size (height, width) of images that a network takes, by its configuration; None where it takes others."""
    config = vars(config).get("segmenter_config") or config  # of a `UniversalSegmenter`
    for part in (config, vars(config).get("backbone_config")):
        if part is not None and (part.model_type in kinds or vars(part).get("is_hybrid")):
            return _pair(part.image_size, "image_size")
    return None


# what a backbone cuts each side of its patches into, so that sides must be multiples of patches times that
WINDOWED = {
    "rf_detr_dinov2": lambda config: config.num_windows,
    "lw_detr_vit": lambda config: config.num_windows_side,
}


def unit(config: Any) -> int:
    """The number of pixels that the sides of an image must be multiples of, by a network's configuration; 1 for any."""
    for part in (config, vars(config).get("backbone_config")):
        if part is not None and part.model_type in WINDOWED:
            return part.patch_size * WINDOWED[part.model_type](part)
    return 1


@torch.no_grad()
def explain_size(network: nn.Module, pixels: torch.Tensor, error: Exception, cure: str) -> None:
    """Explains a failure of a network that does not accept images of this size or with so many channels, or at all.

    Args:
        network: as it was when it failed.
        pixels: images (B,channels,H,W).
        error: with which it failed.
        cure: what to do with a size that fits, for the sentence.

    Raises:
        UserError: with a size that fits, the channels, or a backbone that no size helps. Otherwise nothing is raised.
    """
    if isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in ("CUDA", "CUBLAS", "cuDNN")):
        return  # the device's fault: a smaller image would pass
    given, channels = tuple(pixels.shape[-2:]), pixels.shape[1]
    rounded = [tuple(-(-side // multiple) * multiple for side in given) for multiple in (32, 64)]
    sizes = [given, *rounded, *((max(size), max(size)) for size in rounded)]
    parts = (vars(network.config).get(name) for name in ("image_size", "backbone_config"))
    for own in (vars(part).get("image_size") if isinstance(part, PreTrainedConfig) else part for part in parts):
        sizes += [] if own is None else [_pair(own, "image_size")]
    sizes += [(224, 224), (256, 256), (512, 512)]
    with evaluation_mode(network):
        for size, count in dict.fromkeys([*((size, channels) for size in sizes), (given, 3)]):
            try:
                network(pixel_values=pixels.new_zeros(len(pixels), count, *size))
            except torch.OutOfMemoryError:
                return
            except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                continue
            if size == given and count == channels:
                return
            if count != channels:
                raise UserError(
                    f"The pixel_values of a batch have {channels} channels, but {type(network).__name__} takes {count}; "
                    f"give (images, {count}, height, width)."
                ) from error
            raise UserError(
                f"{type(network).__name__} does not take images of {given[0]}x{given[1]} pixels ({in_a_line(error)}), "
                f"but takes {size[0]}x{size[1]}; {cure}."
            ) from error
        dtype = next(network.parameters(), pixels).dtype  # another one is the caller's fault
        if vars(network.config).get("backbone_config") is not None and dtype == pixels.dtype:
            raise UserError(
                f"{type(network).__name__} takes images of no size that was tried ({in_a_line(error)}): its head does "
                f"not go with its backbone, {network.config.backbone_config.model_type}; choose another backbone."
            ) from error


def _logits(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Logits (B, C, h, w) of images of any size: those whose sides do not fit are padded, and come at their own size."""
    height, width = pixel_values.shape[-2:]
    multiple = unit(model.config) if isinstance(model, PreTrainedModel) else 1
    if height % multiple == width % multiple == 0:
        try:
            return model(pixel_values=pixel_values).logits
        except (AssertionError, RuntimeError, ValueError) as error:
            if isinstance(model, PreTrainedModel):
                cure = (
                    "give windows of it, or for smaller images a size (--window, --resize; eval_window, eval_resize)"
                )
                explain_size(model, pixel_values, error, cure)
            raise
    padded = F.pad(pixel_values, (0, -width % multiple, 0, -height % multiple))
    logits = resize_logits(model(pixel_values=padded).logits, padded.shape[-2:], aligns_corners(model))
    return logits[..., :height, :width]


def fitting(model: nn.Module, look: Look) -> Look:
    """The look, with windows of its own where a network takes images of one size alone. Raises `UserError` where
    `look` has windows of another size."""
    size = fixed_size(model.config) if isinstance(model, PreTrainedModel) else None
    if size is None or look.window == size:
        return look
    if look.window is not None:
        raise UserError(
            f"window is {look.window}, but {type(model).__name__} takes images of {size} alone; leave it out."
        )
    return replace(look, window=size)


def resize_logits(logits: torch.Tensor, size: Sequence[int], align_corners: bool = False) -> torch.Tensor:
    """Resizes logits (B, C, h, w) to float32 (B, C, *size), bilinear."""
    return resize_to(logits.float(), size, align_corners)


def _slide(model: nn.Module, pixel_values: torch.Tensor, look: Look, whole: bool = False) -> torch.Tensor:
    """Logits (B, C, H, W), means over the windows; `whole`: an image smaller than a window is padded up to it."""
    height, width = pixel_values.shape[-2:]
    if whole and (height < look.window[0] or width < look.window[1]):
        missing = [max(window - side, 0) for window, side in zip(look.window, (height, width), strict=True)]
        padded = F.pad(pixel_values, (0, missing[1], 0, missing[0]))
        return _slide(model, padded, look)[..., :height, :width]
    window_height, window_width = min(look.window[0], height), min(look.window[1], width)
    tops, lefts = (window_starts(*sides) for sides in zip((height, width), look.window, look.stride, strict=True))
    starts, at_once = list(product(tops, lefts)), AT_ONCE.get(pixel_values.device.type, 1)
    total, seen = None, pixel_values.new_zeros(height, width, dtype=torch.float32)
    for some in (starts[i : i + at_once] for i in range(0, len(starts), at_once)):
        places = [(slice(top, top + window_height), slice(left, left + window_width)) for top, left in some]
        crops = torch.cat([pixel_values[..., rows, columns] for rows, columns in places])
        logits = resize_logits(_logits(model, crops), crops.shape[-2:], aligns_corners(model))
        if total is None:
            total = logits.new_zeros((len(pixel_values), logits.shape[1], height, width))
        for (rows, columns), part in zip(places, logits.split(len(pixel_values)), strict=True):
            total[..., rows, columns] += part
            seen[rows, columns] += 1
    return total.div_(seen)


def _views(model: nn.Module, pixel_values: torch.Tensor, look: Look) -> Iterator[torch.Tensor]:
    """Yields the logits of each scaled and mirrored view, turned back, at the size they come in."""
    height, width = pixel_values.shape[-2:]
    look, config = fitting(model, look), model.config if isinstance(model, PreTrainedModel) else None
    whole = config is not None and fixed_size(config) is not None
    if config is not None and look.window is None and height != width and (square := fixed_size(config, SQUARE)):
        look, whole = replace(look, window=square), True
    for scale in look.scales:
        view = pixel_values
        if scale != 1:
            sides = (max(1, round(height * scale)), max(1, round(width * scale)))
            view = F.interpolate(view, size=sides, mode="bilinear", align_corners=False, antialias=scale < 1)
        for mirrored in (False, True) if look.flip else (False,):
            pixels = view.flip(-1) if mirrored else view
            logits = _logits(model, pixels) if look.window is None else _slide(model, pixels, look, whole)
            if not logits.isfinite().all():  # -inf too: resizing makes nan of it, which argmax prefers
                if not pixels.isfinite().all():
                    raise UserError(
                        "The pixels of an image are nan or infinite; correct the image or its normalization."
                    )
                raise NotFiniteError(
                    f"The logits of {type(model).__name__} are not finite, so that they tell no class: its weights or "
                    f"the pixels are too large for {str(pixels.dtype).removeprefix('torch.')}; use an earlier "
                    "checkpoint, or one of float32, and rule out a class by a large negative number."
                )
            yield logits.flip(-1) if mirrored else logits


@torch.no_grad()
def segment(
    model: nn.Module, pixel_values: torch.Tensor, size: Sequence[int] | None = None, look: Look = WHOLE
) -> torch.Tensor:
    """Computes the logits of images at the wanted size, without gradient.

    Windows of one view overlap in the same image at the same scale, so their logits are averaged, as in
    mmsegmentation. The logits of different scales have different spread, so the probabilities of the views are averaged
    (no view outvotes the others by its scale alone), and the result is the logarithm of the mean.

    Args:
        model: A segmentation model whose output has `logits` (B, C, h, w) at any stride; its mode is left as it is.
        pixel_values: normalized images (B, 3, H, W), already resized if `look` asks for it.
        size: (height, width) of the result, that of the labels; (H, W) by default.
        look: windows, scales and mirroring.

    Returns:
        float32 (B, C, *size): logits, or the logarithm of the mean probabilities of several views.
    """
    size = tuple(pixel_values.shape[-2:] if size is None else size)
    count = len(look.scales) * (2 if look.flip else 1)
    views = _views(model, pixel_values, look)
    if count == 1:
        return resize_logits(next(views), size, aligns_corners(model))
    total = sum(resize_logits(logits, size, aligns_corners(model)).softmax(dim=1) for logits in views)
    return total.div_(count).clamp_min_(torch.finfo(total.dtype).tiny).log_()


@torch.no_grad()
def argmax_at(logits: torch.Tensor, size: Sequence[int], align_corners: bool = False) -> torch.Tensor:
    """Class indices int64 (B, *size): `resize_logits(logits, size, align_corners).argmax(1)` without holding all
    classes at the full size at any time."""
    best, chosen = None, None
    for first in range(0, logits.shape[1], CLASSES_AT_ONCE):
        values, indices = resize_logits(logits[:, first : first + CLASSES_AT_ONCE], size, align_corners).max(dim=1)
        if best is None:
            best, chosen = values, indices
        else:
            better = values > best
            best, chosen = torch.where(better, values, best), torch.where(better, indices + first, chosen)
    return chosen


@torch.no_grad()
def predict(
    model: nn.Module, pixel_values: torch.Tensor, size: Sequence[int] | None = None, look: Look = WHOLE
) -> torch.Tensor:
    """Predicts the class of each pixel, int64 (B, *size): the argmax of `segment`, in less memory. Arguments as there."""
    if len(look.scales) > 1 or look.flip:
        return segment(model, pixel_values, size, look).argmax(dim=1)
    size = pixel_values.shape[-2:] if size is None else size
    return argmax_at(next(_views(model, pixel_values, look)), size, aligns_corners(model))
