"""Reads and writes mask files: the id of each pixel, as stored in the file."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torchvision.io import ImageReadMode, decode_image

from hf_fst.data.images import Opened, named, open_header, read_bytes
from hf_fst.errors import DataError

LOSSLESS = ("PNG", "BMP", "DIB", "TIFF", "GIF", "TGA")


def decode_mask(
    value: dict,
    colors: list[list[int]] | None = None,
    first_channel: bool = False,
    token_per_repo_id: dict | None = None,
) -> tuple[np.ndarray, int]:
    """Decodes a stored mask `{"path", "bytes"}` to the ids in the file.

    Args:
        value: the stored form.
        colors: an `[r, g, b]` for each id, for masks of colors.
        first_channel: the id is the first channel of an RGB file of 8 or 16 bits.
        token_per_repo_id: of private repositories on the Hub.

    Returns: the ids (H, W), upright, and the EXIF orientation (1 to 8) in which they are stored.

    Raises:
        DataError: the file is missing, damaged or lossily compressed, or its ids could be read in more than one way.
    """
    with named(value):
        opened = open_header(read_bytes(value, token_per_repo_id), value)
        _check_lossless(opened)
        if first_channel:
            return _first_channel(opened), 1
        picture = opened.upright()
        return _ids(opened, picture, colors), opened.orientation


def _check_lossless(opened: Opened) -> None:
    image, kind = opened.image, opened.image.format
    lossless = kind in LOSSLESS or (kind == "WEBP" and b"VP8L" in opened.content)
    if kind == "TIFF" and image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
        lossless, kind = False, "JPEG inside a TIFF"
    if not lossless:
        raise DataError(
            f"{opened.name} is compressed as {kind}, which changes or rescales the ids of a mask; save the original "
            "labels as PNG."
        )


def _first_channel(opened: Opened) -> np.ndarray:
    if opened.image.mode not in ("RGB", "RGBA"):
        raise DataError(
            f"{opened.name} is a {opened.image.mode} image, but the class id is expected in the first channel of an RGB "
            "image; use the GT/LABELS files of the dataset."
        )
    # Pillow cuts RGB files of 16 bits down to the high byte, torchvision does not.
    buffer = torch.frombuffer(bytearray(opened.content), dtype=torch.uint8)
    return decode_image(buffer, mode=ImageReadMode.UNCHANGED)[0].numpy()


def _ids(opened: Opened, picture: PIL.Image.Image, colors: list[list[int]] | None) -> np.ndarray:
    mode = picture.mode
    if opened.white_is_zero and mode != "1":
        raise DataError(f"{opened.name} stores 0 as white (MinIsWhite), so its ids are unclear; save it as PNG.")
    if mode == "P":
        return _by_index_or_color(opened, picture, colors)
    if mode in ("1", "L"):
        ids = np.asarray(picture)
        if mode == "L" and opened.depth < 8:  # Pillow stretches 0..3 or 0..15 to 0..255
            ids = ids // (255 // (2**opened.depth - 1))
        return ids
    if mode.startswith("I"):
        return np.asarray(picture)
    if mode == "F":
        ids = np.asarray(picture)
        if not (np.isfinite(ids).all() and (ids == np.rint(ids)).all()):
            raise DataError(
                f"{opened.name} holds fractions, but a mask holds one class id per pixel; save whole numbers."
            )
        return ids.astype(np.int64)
    if mode in ("LA", "RGB", "RGBA", "PA"):
        return _of_bands(opened, picture, colors)
    raise DataError(_is_color(opened, mode))


def _is_color(opened: Opened, mode: str) -> str:
    return (
        f"{opened.name} is a color image ({mode}), but a mask holds one class id per pixel, as a gray image or as a "
        "palette image whose indices are the ids; convert it, or give the color of each id as `colors`, in a recipe "
        "under dataset_options, in Python to load() or LabelMap."
    )


def _of_bands(opened: Opened, picture: PIL.Image.Image, colors: list[list[int]] | None) -> np.ndarray:
    """Ids of an RGB or gray file, with or without alpha: by color, or the gray value of a gray file stored as RGB."""
    mode = picture.mode
    if mode == "PA":
        picture = picture.convert("RGBA")
    pixels = np.asarray(picture)
    if picture.mode in ("LA", "RGBA"):
        if pixels[..., -1].min() < 255:
            raise DataError(
                f"{opened.name} has transparent pixels, whose class is unclear; save the mask without an alpha channel."
            )
        pixels = pixels[..., :-1]
    if colors is not None and pixels.shape[-1] == 3:
        return _by_color(opened, pixels, colors)
    if opened.depth > 8:
        raise DataError(f"{opened.name} is a {mode} image of {opened.depth} bits; save the mask as gray PNG.")
    if (pixels != pixels[..., :1]).any():
        raise DataError(_is_color(opened, mode))
    return pixels[..., 0]


def _by_index_or_color(opened: Opened, picture: PIL.Image.Image, colors: list[list[int]] | None) -> np.ndarray:
    """The indices of a palette image; where its palette holds known colors in another order, the ids of the colors."""
    ids = np.asarray(picture)
    if colors is None:
        return ids
    palette = np.array(picture.getpalette("RGB"), dtype=np.int64).reshape(-1, 3)
    used = [index for index, count in enumerate(picture.histogram()) if count and index < 255]
    theirs = [tuple(palette[index].tolist()) if index < len(palette) else None for index in used]
    ours = [tuple(color) for color in colors]
    if all(index < len(ours) and ours[index] == color for index, color in zip(used, theirs, strict=True)):
        return ids
    if not set(theirs) & set(ours):  # an unrelated palette, for display only
        return ids
    # 255 is ignored whatever its color
    known = palette[np.minimum(ids, len(palette) - 1)]
    return np.where(ids == 255, 255, _by_color(opened, known, colors, ids != 255))


def _by_color(
    opened: Opened, pixels: np.ndarray, colors: list[list[int]], counted: np.ndarray | None = None
) -> np.ndarray:
    packed = (pixels.astype(np.int32) << np.array([16, 8, 0], dtype=np.int32)).sum(-1, dtype=np.int32)
    raw_id = {(r << 16) + (g << 8) + b: i for i, (r, g, b) in reversed(list(enumerate(colors)))}
    if counted is not None:
        packed = np.where(counted, packed, next(iter(raw_id)))
    known, inverse = np.unique(packed, return_inverse=True)
    for color in known.tolist():
        if color not in raw_id:
            rgb = (color >> 16, color >> 8 & 255, color & 255)
            raise DataError(
                f"{opened.name} has the color {rgb}, which belongs to no class; correct the mask or `colors`."
            )
    return np.array([raw_id[color] for color in known.tolist()])[inverse].reshape(packed.shape)


def palette_of(image: PIL.Image.Image) -> list[tuple[int, ...]]:
    """The color of each index of a palette image; empty for other kinds."""
    if image.mode != "P":
        return []
    entries = image.getpalette("RGB")
    return [tuple(entries[i : i + 3]) for i in range(0, len(entries), 3)]


def check_palettes(paths: Sequence[Path]) -> None:
    """Raises `DataError` if two palette images use different colors for an index, which is then not the same class.
    Where the palettes agree, only headers are read."""
    first: tuple[Path, list] | None = None
    seen: dict[int, tuple[tuple[int, ...], Path]] = {}
    for path in paths:
        try:
            with PIL.Image.open(path) as image:
                palette = palette_of(image)
            if not palette or (first is not None and palette == first[1]):
                continue
            if first is None:
                first = (path, palette)
                continue
            for file, colors in (path, palette), *([] if seen else [first]):
                for index in _used(file):
                    color, other = seen.setdefault(index, (colors[index], file))
                    if color != colors[index]:
                        raise DataError(
                            f"In the palette of {other} index {index} is {color}, in that of {file} {colors[index]}, "
                            "so it is not the same class in both; give `colors`, or save the ids as gray PNG."
                        )
        except (OSError, SyntaxError, IndexError, PIL.Image.DecompressionBombError):  # reported when the file is read
            continue


def _used(path: Path) -> list[int]:
    with PIL.Image.open(path) as image:
        return [index for index, count in enumerate(image.histogram()) if count and index < 255]


def png(ids: np.ndarray) -> bytes:
    """A gray PNG (H, W), or an RGB one (H, W, 3), of uint8."""
    buffer = BytesIO()
    PIL.Image.fromarray(ids).save(buffer, "PNG")
    return buffer.getvalue()
