"""Converts items of users' own datasets to what training expects."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import PIL.Image
import torch

from hf_fst.data.labels import IGNORED, filled
from hf_fst.errors import UserError

MOST_CHANNELS = 4  # of a larger first dimension and a last one of 1, 3 or 4, the last holds the channels


def tidy(item: Mapping, name: str = "an item of the dataset") -> dict[str, torch.Tensor]:
    """Converts an item of a user's own dataset to what training expects, if it is unambiguous; only tensors are kept.

    `pixel_values` become float32 (3,H,W) (a torch tensor of float64 stays one): floats as tensors, arrays or lists, also
    (1,3,H,W) as image processors return them. `labels` become int64 (H,W): whole numbers of any type, as tensors, arrays,
    lists or a PIL image, also (1,H,W); those outside of `valid` are ignored.

    Args:
        item: a dict, or what an image processor returns.
        name: of the item, for errors.

    Raises:
        UserError: it is not a dict with `pixel_values`, or its pixels or labels are ambiguous.
    """
    if not isinstance(item, Mapping) or "pixel_values" not in item:
        what = "is None" if item is None else f"is a {type(item).__name__}"
        what = f"has the keys {', '.join(map(str, item))}" if isinstance(item, Mapping) else what
        raise UserError(
            f"{name[0].upper()}{name[1:]} {what}, but a dict with pixel_values and labels is expected; wrap a "
            "datasets.Dataset in hf_fst.data.View."
        )
    others = {key: value for key, value in item.items() if key not in ("pixel_values", "labels")}
    made = {
        key: torch.as_tensor(value) for key, value in others.items() if isinstance(value, torch.Tensor | np.ndarray)
    }
    made["pixel_values"] = _pixels(item["pixel_values"], name)
    if item.get("labels") is not None:
        made["labels"] = _labels(item["labels"], name)
    if "valid" in made:
        made["valid"] = made["valid"].bool()
        if made["valid"].shape != made["pixel_values"].shape[-2:]:
            raise UserError(
                f"In {name} valid has the shape {tuple(made['valid'].shape)}, but its pixel_values "
                f"{tuple(made['pixel_values'].shape)}; give (H,W): whether each pixel belongs to the image."
            )
        if "labels" in made and made["labels"].shape == made["valid"].shape:
            made["labels"] = made["labels"].masked_fill(~made["valid"], IGNORED)
    return made


def _tensor(value: object) -> torch.Tensor | None:
    """The numbers of a tensor, an array or nested lists; None for anything else, complex numbers too."""
    if isinstance(value, torch.Tensor):
        return value if value.layout == torch.strided and not value.is_complex() else None
    if isinstance(value, np.ma.MaskedArray):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return None
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # which torch barely supports
    array = array if array.flags.writeable else array.copy()  # the array of a PIL image is read-only
    return torch.as_tensor(array) if array.dtype.kind in "buif" else None


def _type(values: torch.Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")


def _kind(value: object) -> str:
    """What a value is that `_tensor` does not take."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.layout).removeprefix('torch.')} {_type(value)} Tensor"
    return type(value).__name__


def _pixels(value: object, name: str) -> torch.Tensor:
    pixels = None if isinstance(value, PIL.Image.Image) else _tensor(value)
    if pixels is None or not pixels.is_floating_point():
        kind = _kind(value) if pixels is None else _type(pixels)
        raise UserError(f"In {name} pixel_values are {kind}; give normalized floats, as hf_fst.data.transforms does.")
    if not isinstance(value, torch.Tensor) or pixels.dtype in (torch.float16, torch.bfloat16):
        pixels = pixels.float()
    pixels = pixels[0] if pixels.ndim == 4 and len(pixels) == 1 else pixels
    if pixels.ndim != 3 or not pixels.numel():
        raise UserError(f"In {name} pixel_values have the shape {tuple(pixels.shape)}, but (3,H,W) is expected.")
    if len(pixels) > MOST_CHANNELS and pixels.shape[-1] in (1, 3, 4):
        raise UserError(
            f"In {name} pixel_values have the shape {tuple(pixels.shape)}, with the channels last, but (3,H,W) is "
            "expected; bring them to the front with permute(2, 0, 1)."
        )
    return pixels


def _labels(value: object, name: str) -> torch.Tensor:
    labels = _tensor(filled(value))
    if labels is None:
        raise UserError(f"In {name} labels are a {_kind(value)}; give one class id per pixel, (H,W).")
    if labels.dtype == torch.int64 and labels.ndim == 2:
        return labels
    if labels.is_floating_point() and (labels != labels.round()).any():
        raise UserError(
            f"In {name} labels are {_type(labels)} numbers with fractions; give one class id per pixel, unsmoothed."
        )
    labels = labels[0] if labels.ndim == 3 and len(labels) == 1 else labels
    if labels.ndim != 2:
        raise UserError(
            f"In {name} labels have the shape {tuple(labels.shape)}, but (H,W) is expected, one class id per pixel."
        )
    return labels.long()
