"""Aligns a mask with its image where EXIF rotates one of them."""

from __future__ import annotations

import numpy as np
import PIL.Image
import torch
import torchvision.transforms.v2.functional as F

from hf_fst.errors import DataError

CLEAR = 1.5  # how much stronger the image edges under the class borders must be in one reading than in the other
LEAST_BORDER = 16  # pairs of pixels needed to decide by edges

# PIL's transposes that bring a stored image upright, by EXIF orientation, and their inverses
TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
BACK = TURNS | {6: TURNS[8], 8: TURNS[6]}


def brought_together(
    labels: PIL.Image.Image,
    stored_as: int,
    picture: torch.Tensor,
    turned: int,
    orientation: str | None,
    names: tuple[str, str],
) -> PIL.Image.Image:
    """Rotates a mask to match its upright image.

    A mask may be stored upright beside an image that EXIF rotates, may match the pixels as the image stores them, or may
    have an EXIF tag of its own. The sizes tell which. If several readings fit, class borders must match image edges
    clearly better in one of them.

    Args:
        labels: the mask, rotated by its own EXIF orientation `stored_as` (1 to 8).
        stored_as: that orientation.
        picture: the upright image, (3,H,W) uint8.
        turned: EXIF orientation (1 to 8) that made it upright.
        orientation: "upright" or "stored" if the dataset says how its masks are stored.
        names: of the mask file and the image file.

    Raises:
        DataError: the sizes differ, or the orientation is unclear.
    """
    size = (picture.shape[-1], picture.shape[-2])
    if stored_as == turned == 1:
        if labels.size == size:
            return labels
        raise DataError(_sizes(labels.size, size, names) + "they must have the same size.")
    stored = labels if stored_as == 1 else labels.transpose(BACK[stored_as])
    as_image = stored if turned == 1 else stored.transpose(TURNS[turned])
    ways = {"upright": [labels, stored], "stored": [as_image], None: [labels, stored, as_image]}[orientation]
    fitting = {way.tobytes(): way for way in ways if way.size == size}
    if not fitting:
        of = (
            f"the image has EXIF orientation {turned}" if turned != 1 else f"the mask has EXIF orientation {stored_as}"
        )
        raise DataError(
            _sizes(labels.size, size, names)
            + f"{of}, but rotating it does not make the sizes equal; save both upright."
        )
    ways = list(fitting.values())
    if len(ways) > 1 and orientation is None:
        ways.sort(key=lambda way: -_edges(way, picture))
        best, second = _edges(ways[0], picture), _edges(ways[1], picture)
        if best < CLEAR * second or best <= 0:
            raise DataError(
                f"The image {names[1]} has EXIF orientation {turned} and its mask {names[0]} {stored_as}, and it is "
                "unclear whether the mask is stored upright or like the pixels of the image; give mask_orientation as "
                "'upright' or 'stored' (the orientation of LabelMap), or save both upright."
            )
    return ways[0]


def _sizes(labels: tuple[int, int], picture: tuple[int, int], names: tuple[str, str]) -> str:
    mask, image = (f"{width} x {height}" for width, height in (labels, picture))
    return f"The mask {names[0]} is {mask} pixels, but its image {names[1]} is {image}; "


def _edges(labels: PIL.Image.Image, picture: torch.Tensor) -> float:
    """Mean gray-value step across class borders minus the mean step in the image; at least 0, and 0 without borders."""
    gray = np.asarray(F.to_pil_image(picture).convert("L"), dtype=np.float32)
    ids = np.asarray(labels)
    steps = [np.abs(np.diff(gray, axis=axis)) for axis in (0, 1)]
    borders = [np.diff(ids.astype(np.int16), axis=axis) != 0 for axis in (0, 1)]
    count = sum(int(border.sum()) for border in borders)
    if count < LEAST_BORDER:
        return 0.0
    on_borders = sum(float(step[border].sum()) for step, border in zip(steps, borders, strict=True)) / count
    return max(on_borders - sum(float(step.sum()) for step in steps) / sum(step.size for step in steps), 0.0)
