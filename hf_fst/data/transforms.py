"""Training and evaluation pipelines on an image and its mask together, from torchvision v2.

Images are `tv_tensors.Image` (3,H,W) uint8 and come out as float32, normalized with the mean and deviation of
ImageNet; masks are `tv_tensors.Mask` (H,W) uint8 or None. Images are resized bilinearly, masks by nearest neighbor.
All randomness comes from torch's global generator of the CPU. Sizes are (height, width), or one number for a square;
scales are (width, height) as the protocols print them.
"""

from __future__ import annotations

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from transformers.image_utils import IMAGENET_DEFAULT_MEAN as MEAN
from transformers.image_utils import IMAGENET_DEFAULT_STD as STD

from hf_fst.data.labels import IGNORED
from hf_fst.errors import UserError

SCALES = {"gta5": (1280, 720), "synthia": (1280, 760), "cityscapes": (1024, 512)}


class Padding(tv_tensors.Mask):
    """Says where an image ends: (H,W) uint8, 0 on its pixels; `PadTo` adds 255, as it does to masks."""


def size_within(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """The largest size (H,W) with the ratio of `size` whose long and short sides fit those of `scale`; may be larger.

    The rounding is that of the published pipelines: 1052 x 1914 within (1280, 720) is 704 x 1280.
    """
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _random(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


class ResizeWithin(v2.Transform):
    """Resizes into a scale (width, height), keeping the ratio (`size_within`), without a blur as published."""

    def __init__(self, scale: tuple[int, int]):
        super().__init__()
        self.scale = tuple(scale)

    def make_params(self, flat_inputs: list) -> dict:
        return {"size": size_within(v2.query_size(flat_inputs), self.scale)}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        return self._call_kernel(F.resize, inpt, list(params["size"]), antialias=False)


class ResizeRandomly(v2.Transform):
    """Resizes by a random factor: half the time from U(`low`, 1), half the time from U(1, `high`)."""

    def __init__(self, low: float = 0.5, high: float = 2.0):
        super().__init__()
        if not 0 < low <= 1 <= high:
            raise UserError(f"The factors are {low} and {high}, but 0 < low <= 1 <= high is needed.")
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list) -> dict:
        factor = _random(self.low, 1) if torch.rand(()) < 0.5 else _random(1, self.high)
        return {"size": [max(1, int(side * factor + 0.5)) for side in v2.query_size(flat_inputs)]}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        return self._call_kernel(F.resize, inpt, params["size"], antialias=False)


class Crop(v2.Transform):
    """Cuts out a random window, smaller where the image is (see `PadTo`).

    With `cat_max_ratio` < 1 the window is drawn again, at most `tries` times, while one class holds that share or more
    of its labeled pixels, or there is only one.
    """

    def __init__(self, size: int | tuple[int, int], cat_max_ratio: float = 1.0, tries: int = 10):
        super().__init__()
        self.size, self.cat_max_ratio, self.tries = _pair(size), cat_max_ratio, tries

    def make_params(self, flat_inputs: list) -> dict:
        height, width = v2.query_size(flat_inputs)
        masks = [entry for entry in flat_inputs if type(entry) is tv_tensors.Mask]
        window = self._draw(height, width)
        if masks and self.cat_max_ratio < 1:
            for _ in range(self.tries):
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
        self.size = _pair(size)

    def make_params(self, flat_inputs: list) -> dict:
        height, width = v2.query_size(flat_inputs)
        return {"padding": [0, 0, max(self.size[1] - width, 0), max(self.size[0] - height, 0)]}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        if not any(params["padding"]):
            return inpt
        fill = IGNORED if isinstance(inpt, tv_tensors.Mask) else 0.0
        return self._call_kernel(F.pad, inpt, params["padding"], fill=fill)


def normalize() -> list[v2.Transform]:
    """The steps from a uint8 image to a float32 image normalized with the mean and deviation of ImageNet."""
    return [
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        v2.Normalize(MEAN, STD),
    ]


def training(
    crop: int | tuple[int, int],
    scale: tuple[int, int] | None = None,
    random_scale: tuple[float, float] | None = None,
    cat_max_ratio: float = 1.0,
    flip: float = 0.5,
) -> v2.Compose:
    """A training pipeline: resize, random scale, crop, flip, normalize, pad.

    The paper's domain adaptation: `training(512, scale=SCALES["gta5"], cat_max_ratio=0.75)` for the source and
    `training(512, scale=SCALES["cityscapes"])` for the target; semi-supervised: `training(513, random_scale=(0.5,
    2.0))` on VOC, crop 769 on Cityscapes.

    Args:
        crop: size of what comes out.
        scale: (width, height) to resize into first, keeping the ratio; None keeps the size.
        random_scale: the (low, high) of `ResizeRandomly`; None for none.
        cat_max_ratio: of `Crop`, in (0, 1].
        flip: probability of mirroring.

    Raises `ValueError` for numbers out of range.
    """
    for name, number in (("cat_max_ratio", cat_max_ratio), ("flip", flip)):
        if not 0 <= number <= 1:
            raise UserError(f"{name} is {number}, but it must lie between 0 and 1.")
    if min(_pair(crop)) < 1:
        raise UserError(f"crop is {crop}, but a side must have at least 1 pixel.")
    steps = []
    if scale is not None:
        steps.append(ResizeWithin(scale))
    if random_scale is not None:
        steps.append(ResizeRandomly(*random_scale))
    steps += [Crop(crop, cat_max_ratio), v2.RandomHorizontalFlip(flip), *normalize(), PadTo(crop)]
    return v2.Compose(steps)


class Evaluation:
    """The evaluation pipeline: resizes the image alone into `scale` (None: keeps its size) and normalizes it.

    The label keeps its full size; logits are resized to it before they are compared.
    """

    def __init__(self, scale: tuple[int, int] | None = None):
        self.steps = v2.Compose([*([ResizeWithin(scale)] if scale else []), *normalize()])

    def __call__(
        self, image: tv_tensors.Image, mask: tv_tensors.Mask | None = None
    ) -> tuple[tv_tensors.Image, tv_tensors.Mask | None]:
        return self.steps(image), mask


class CenterCrop:
    """The evaluation pipeline of semi-supervised VOC: the middle of image and mask, padded where smaller (0, 255)."""

    def __init__(self, size: int | tuple[int, int]):
        self.size = _pair(size)
        self.steps = v2.Compose([*normalize(), PadTo(size)])

    def __call__(
        self, image: tv_tensors.Image, mask: tv_tensors.Mask | None = None
    ) -> tuple[tv_tensors.Image, tv_tensors.Mask | None]:
        image, mask = self.steps(image, mask)
        return F.center_crop(image, list(self.size)), None if mask is None else F.center_crop(mask, list(self.size))
