"""Training and evaluation pipelines on an image and its mask together, from torchvision v2.

Images are `tv_tensors.Image` (3,H,W) uint8 and become float32, normalized as by the network's image processor;
masks are `tv_tensors.Mask` (H,W) uint8 or None. Images are resized bilinearly, masks by nearest neighbor.
All randomness comes from torch's global CPU generator. Sizes and scales are (height, width), or one number
for a square.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from transformers.image_utils import IMAGENET_DEFAULT_MEAN as MEAN
from transformers.image_utils import IMAGENET_DEFAULT_STD as STD

from hf_fst.data.images import MAX_SIDE
from hf_fst.data.labels import IGNORED
from hf_fst.errors import UserError

SCALES = {"gta5": (720, 1280), "synthia": (760, 1280), "cityscapes": (512, 1024)}

MOST_SCALED = 100  # times that a random factor may make an image larger


class _LikeMask(type(tv_tensors.Mask)):
    """Lets the tables of torchvision's transforms (`dtype`, `fill`) find `Padding` under `tv_tensors.Mask`."""

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is tv_tensors.Mask

    def __hash__(cls) -> int:
        return hash(tv_tensors.Mask)


class Padding(tv_tensors.TVTensor, metaclass=_LikeMask):
    """Marks padding: (H,W) uint8, `INSIDE` on the image; whatever a transform fills with is different.

    It moves as a mask does, but is no `Mask`: what changes ids, such as `v2.Lambda(f, tv_tensors.Mask)`, leaves it alone.
    """

    INSIDE = 254  # nothing fills with this: the default is 0, and 255 for masks

    def __new__(cls, data: torch.Tensor) -> Padding:
        return data.as_subclass(cls)


def size_within(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """The largest size (H,W) with the ratio of `size` whose long and short sides fit those of `scale`; may be larger.

    The rounding is that of the published pipelines: 1052 x 1914 within (720, 1280) is 704 x 1280.
    """
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)


def _checked(size: int | tuple[int, int], name: str) -> tuple[int, int]:
    """Two sides. Raises `UserError` if one is no whole number, or out of range."""
    sides = (size, size) if isinstance(size, Real) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, Integral) and 1 <= side <= MAX_SIDE for side in sides):
        raise UserError(f"{name} is {size!r}; give sides of 1 to {MAX_SIDE} pixels.")
    return int(sides[0]), int(sides[1])


def _random(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


class ResizeWithin(v2.Transform):
    """Resizes into a scale (height, width), keeping the ratio (`size_within`), without antialiasing, as published."""

    def __init__(self, scale: tuple[int, int]):
        super().__init__()
        self.scale = _checked(scale, "scale")

    def make_params(self, flat_inputs: list) -> dict:
        return {"size": size_within(v2.query_size(flat_inputs), self.scale)}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        return self._call_kernel(F.resize, inpt, list(params["size"]), antialias=False)


class ResizeRandomly(v2.Transform):
    """Resizes by a random factor: half the time from U(`low`, 1), half the time from U(1, `high`)."""

    def __init__(self, low: float = 0.5, high: float = 2.0):
        super().__init__()
        if not 0 < low <= 1 <= high <= MOST_SCALED:
            raise UserError(f"The factors are {low} and {high}; give 0 < low <= 1 <= high <= {MOST_SCALED}.")
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list) -> dict:
        factor = _random(self.low, 1) if torch.rand(()) < 0.5 else _random(1, self.high)
        return {"size": [max(1, int(side * factor + 0.5)) for side in v2.query_size(flat_inputs)]}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        return self._call_kernel(F.resize, inpt, params["size"], antialias=False)


class Crop(v2.Transform):
    """Cuts out a random window, smaller if the image is (see `PadTo`).

    With `cat_max_ratio` < 1 the window is drawn again, at most `TRIES` times, while one class holds that share or more
    of its labeled pixels, or there is only one.
    """

    TRIES = 10

    def __init__(self, size: int | tuple[int, int], cat_max_ratio: float = 1.0):
        super().__init__()
        self.size, self.cat_max_ratio = _checked(size, "crop"), cat_max_ratio

    def make_params(self, flat_inputs: list) -> dict:
        height, width = v2.query_size(flat_inputs)
        masks = [entry for entry in flat_inputs if type(entry) is tv_tensors.Mask]
        window = self._draw(height, width)
        if masks and self.cat_max_ratio < 1:
            for _ in range(self.TRIES):
                if self._is_mixed(F.crop(masks[0], **window)):
                    break
                window = self._draw(height, width)
        return window

    def _draw(self, height: int, width: int) -> dict:
        h, w = min(self.size[0], height), min(self.size[1], width)
        top = int(torch.randint(height - h + 1, ()))
        left = int(torch.randint(width - w + 1, ()))
        return {"top": top, "left": left, "height": h, "width": w}

    def _is_mixed(self, mask: torch.Tensor) -> bool:
        counts = torch.bincount(mask.as_subclass(torch.Tensor).reshape(-1), minlength=256)[:IGNORED]
        return bool((counts > 0).sum() > 1 and counts.max() < self.cat_max_ratio * counts.sum())

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        return self._call_kernel(F.crop, inpt, **params)


class PadTo(v2.Transform):
    """Pads below and to the right up to a size: normalized images with 0, masks with 255 (ignored)."""

    def __init__(self, size: int | tuple[int, int]):
        super().__init__()
        self.size = _checked(size, "crop")

    def make_params(self, flat_inputs: list) -> dict:
        height, width = v2.query_size(flat_inputs)
        return {"padding": [0, 0, max(self.size[1] - width, 0), max(self.size[0] - height, 0)]}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        if not any(params["padding"]):
            return inpt
        fill = IGNORED if isinstance(inpt, tv_tensors.Mask) else 0.0
        return self._call_kernel(F.pad, inpt, params["padding"], fill=fill)


@dataclass(frozen=True)
class Normalization:
    """What an image processor does to colors: pixel_values = (color - mean) / std, for colors in 0..1.

    Args:
        mean, std: of each channel, in the network's order.
        bgr: whether blue comes first.
    """

    mean: tuple[float, ...] = tuple(MEAN)
    std: tuple[float, ...] = tuple(STD)
    bgr: bool = False

    @classmethod
    def of(cls, processor: Any) -> Normalization:
        """Reads the numbers of an image processor, its rescale factor among them (or passes a `Normalization` on).

        Raises:
            UserError: they are no numbers to divide by, or the processor does more to colors than these say.
        """
        if isinstance(processor, cls):
            return processor
        name, found = type(processor).__name__, cls.said_by(processor)
        colors = torch.arange(3 * 32 * 32).view(3, 32, 32).mul(83).remainder(256).to(torch.uint8)
        options = {"do_resize": False, "do_center_crop": False, "do_pad": False}
        seen = torch.as_tensor(processor(images=colors, return_tensors="pt", **options)["pixel_values"][0])
        ours = Normalize(found)(tv_tensors.Image(colors)).as_subclass(torch.Tensor)
        if seen.shape != ours.shape or not torch.allclose(seen.float(), ours, rtol=1e-4, atol=1e-4):
            raise UserError(
                f"The {name} does more to colors than a rescale factor, mean and deviation say, which cannot be repeated "
                "while training; give a processor that does these alone, such as a SegformerImageProcessor."
            )
        return found

    @classmethod
    def said_by(cls, processor: Any) -> Normalization:
        """The mean and deviation of an image processor, whatever else it does to colors. Raises `UserError` where they
        are no numbers to divide by."""
        name, settings = type(processor).__name__, processor.to_dict()
        given = {key: settings.get(key) for key in ("rescale_factor", "image_mean", "image_std")}
        try:
            unit = 255 * given["rescale_factor"] if settings.get("do_rescale") else 255
            mean, std = (given["image_mean"], given["image_std"]) if settings.get("do_normalize") else (0.0, 1.0)
            mean, std = ([float(n) / unit for n in np.broadcast_to(numbers, 3).tolist()] for numbers in (mean, std))
            readable = np.isfinite([*mean, *std]).all() and min(std) > 0
        except (TypeError, ValueError, ZeroDivisionError):
            readable = False
        if not readable:
            raise UserError(
                f"The {name} says {', '.join(f'{key}: {value}' for key, value in given.items())}, which is no "
                "normalization; give one or three finite numbers each, the deviations and the factor above 0."
            )
        return cls(tuple(mean), tuple(std), bool(settings.get("do_flip_channel_order")))

    def colors(self, pixel_values: torch.Tensor) -> np.ndarray:
        """The image (H,W,3), RGB in uint8, of a network's input (3,H,W)."""
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (self.mean, self.std))
        image = (pixel_values.float().cpu() * std + mean).clamp(0, 1) * 255
        image = image.round().byte().permute(1, 2, 0).numpy()
        return image[..., ::-1].copy() if self.bgr else image


class Normalize(v2.Transform):
    """Turns a uint8 image into a normalized float32 one; masks stay as they are.

    Without a processor it uses the statistics of ImageNet, which `FSTTrainer` replaces by those of its image processor.
    """

    def __init__(self, processor: Any = None):
        super().__init__()
        self.given = None if processor is None else Normalization.of(processor)

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        normalization = self.given or Normalization()
        image = F.to_dtype(inpt, torch.float32, scale=True)
        if normalization.bgr:
            image = tv_tensors.wrap(image.flip(-3), like=image)
        return F.normalize(image, list(normalization.mean), list(normalization.std))


def training(
    crop: int | tuple[int, int],
    scale: tuple[int, int] | None = None,
    random_scale: tuple[float, float] | None = None,
    cat_max_ratio: float = 1.0,
    flip: float = 0.5,
    processor: Any = None,
) -> v2.Compose:
    """A training pipeline: resize, random scale, crop, flip, normalize, pad.

    The paper's domain adaptation: `training(512, scale=SCALES["gta5"], cat_max_ratio=0.75)` for the source and
    `training(512, scale=SCALES["cityscapes"])` for the target; semi-supervised: `training(513, random_scale=(0.5,
    2.0))` on VOC, crop 769 on Cityscapes.

    Args:
        crop: size of what comes out.
        scale: (height, width) to resize into first, keeping the ratio; None keeps the size.
        random_scale: the (low, high) of `ResizeRandomly`; None for none.
        cat_max_ratio: of `Crop`, in (0, 1].
        flip: probability of mirroring.
        processor: the network's image processor, or a `Normalization`; see `Normalize`.

    Raises:
        UserError: a number is out of range.
    """
    for name, number in (("cat_max_ratio", cat_max_ratio), ("flip", flip)):
        if not 0 <= number <= 1:
            raise UserError(f"{name} is {number}, but it must lie between 0 and 1.")
    steps = []
    if scale is not None:
        steps.append(ResizeWithin(scale))
    if random_scale is not None:
        steps.append(ResizeRandomly(*random_scale))
    steps += [Crop(crop, cat_max_ratio), v2.RandomHorizontalFlip(flip), Normalize(processor), PadTo(crop)]
    return v2.Compose(steps)


class Evaluation:
    """The evaluation pipeline: resizes the image alone into `scale` (None: keeps its size) and normalizes it.

    The label keeps its full size; logits are resized to it before they are compared. `processor`: see `Normalize`.
    """

    def __init__(self, scale: tuple[int, int] | None = None, processor: Any = None):
        self.steps = v2.Compose([*([ResizeWithin(scale)] if scale else []), Normalize(processor)])

    def __call__(
        self, image: tv_tensors.Image, mask: tv_tensors.Mask | None = None
    ) -> tuple[tv_tensors.Image, tv_tensors.Mask | None]:
        return self.steps(image), mask


class CenterCrop:
    """The evaluation pipeline of semi-supervised VOC: the middle of image and mask, padded where smaller (0, 255).

    `processor`: see `Normalize`.
    """

    def __init__(self, size: int | tuple[int, int], processor: Any = None):
        self.size = _checked(size, "crop")
        self.steps = v2.Compose([Normalize(processor), PadTo(size)])

    def __call__(
        self, image: tv_tensors.Image, mask: tv_tensors.Mask | None = None
    ) -> tuple[tv_tensors.Image, tv_tensors.Mask | None]:
        image, mask = self.steps(image, mask)
        return F.center_crop(image, list(self.size)), None if mask is None else F.center_crop(mask, list(self.size))
