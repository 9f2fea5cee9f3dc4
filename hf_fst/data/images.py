"""Reads an image file: its bytes, orientation, bands and bit depth.

Unambiguous files become upright 8-bit RGB images. Ambiguous ones are refused, with the file's name and what to do. No
value is ever clipped.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin
import torch
import torchvision.transforms.v2.functional as F
from datasets.utils.file_utils import is_local_path, xopen
from torchvision.io import ImageReadMode, decode_jpeg

from hf_fst.errors import DataError

MAX_SIDE = 32_768  # pixels; a larger image is a mistake, and several decoders overflow at 2**15 or 2**16
ORIENTATION = 0x0112  # the EXIF tag: 1 is upright, 2 to 8 are rotated or mirrored
COLOR_DEPTH = (0, 2, 4, 6)  # PNG color types whose depth is that of samples, not of palette indices
STATED = ((340, 341), (280, 281))  # TIFF tags: lowest and highest sample value
ALPHA = {1, 2, 999}  # values of TIFF's ExtraSamples that mean alpha


def file_of(value: dict) -> str:
    """Names the file behind a stored image `{"path", "bytes"}` for an error message."""
    return value.get("path") or "an image given as bytes"


def read_bytes(value: dict, token_per_repo_id: dict | None = None) -> bytes:
    """The bytes of a stored image `{"path", "bytes"}`. Raises `DataError` if there is no such file."""
    if value.get("bytes") is not None:
        return value["bytes"]
    path = value.get("path")
    if path is None:
        raise DataError("An image has neither a path nor bytes; every row needs one of them.")
    try:
        if is_local_path(path):
            if Path(path).exists() and not Path(path).is_file():  # reading a pipe would block
                raise DataError(f"{path} is not a regular file; remove it from the dataset.")
            return Path(path).read_bytes()
        token = next((t for repo, t in (token_per_repo_id or {}).items() if repo in path), None)
        with xopen(path, "rb", download_config=datasets.DownloadConfig(token=token)) as file:
            return file.read()
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path} cannot be read ({reason}); check whether the dataset was moved.") from error


@contextmanager
def named(value: dict) -> Iterator[None]:
    """Turns what decoders raise for a damaged file into one sentence that names the file."""
    try:
        yield
    except DataError:
        raise
    except PIL.Image.DecompressionBombError as error:
        raise DataError(f"{file_of(value)} has too many pixels ({error}); cut it into tiles.") from error
    except PIL.UnidentifiedImageError as error:
        raise DataError(f"{file_of(value)} is not an image; replace it or remove it from the dataset.") from error
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, zlib.error) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{file_of(value)} is damaged ({reason}); replace it or remove it from the dataset."
        ) from error


@dataclass
class Opened:
    """An image whose header has been read.

    `depth` is the bits per sample, `bands` the samples per pixel, `orientation` that of EXIF (1 to 8), `stated` the range
    of values that the file declares, `white_is_zero` whether 0 is white in a TIFF, `unsigned` whether it holds unsigned
    32-bit numbers, which Pillow reads as signed.
    """

    name: str
    content: bytes
    image: PIL.Image.Image
    depth: int = 8
    bands: int = 0
    stated: tuple[float, float] | None = None
    white_is_zero: bool = False
    unsigned: bool = False
    orientation: int = 1

    def upright(self) -> PIL.Image.Image:
        """The pixels, rotated and mirrored as EXIF says, in the mode of the file."""
        self.orientation = self.image.getexif().get(ORIENTATION, 1)
        if self.orientation not in range(2, 9):
            self.orientation = 1
        self.image.load()
        return self.image if self.orientation == 1 else PIL.ImageOps.exif_transpose(self.image)


def open_header(content: bytes, value: dict) -> Opened:
    """Reads the header of an image, inside `named(value)`. Raises `DataError` for a side of more than `MAX_SIDE`
    pixels, several images in one file, or bands of unknown meaning."""
    name = file_of(value)
    try:
        image = PIL.Image.open(BytesIO(content))
    except PIL.UnidentifiedImageError:
        if content.startswith(b"version https://git-lfs"):
            raise DataError(
                f"{name} is a Git LFS pointer, not an image; fetch the files with `git lfs pull`."
            ) from None
        if content[:4] in PIL.TiffImagePlugin.PREFIXES:
            raise DataError(_unread_tiff(content, name)) from None
        raise
    width, height = image.size
    if max(width, height) > MAX_SIDE:
        raise DataError(
            f"{name} is {width} x {height} pixels, but a side may have at most {MAX_SIDE}; cut it into tiles."
        )
    opened = Opened(name, content, image, bands=len(image.getbands()))
    if image.format == "TIFF":
        _look_at_tiff(opened)
    elif image.format == "PNG" and content[25] in COLOR_DEPTH:
        opened.depth = content[24]
    elif image.mode.startswith("I;16"):
        opened.depth = 16
    if image.format in ("AVIF", "GIF", "PNG", "WEBP") and image.n_frames > 1:
        raise DataError(f"{name} is an animation of {image.n_frames} frames; save one image per file.")
    return opened


def _look_at_tiff(opened: Opened) -> None:
    image, tags = opened.image, opened.image.tag_v2
    bits, kinds, extra = tags.get(258, (1,)), tags.get(339, (1,)), tags.get(338, ())
    opened.depth, opened.bands = bits[0], tags.get(277, 1)
    opened.white_is_zero = tags.get(262) == 0
    opened.unsigned = bits[0] == 32 and kinds[0] == 1
    for low, high in STATED:
        if low in tags and high in tags and opened.stated is None:
            ends = [float(np.ravel(tags[tag])[0]) for tag in (low, high)]
            opened.stated = (ends[0], ends[1]) if ends[0] < ends[1] else None
    known = len(image.getbands())
    if opened.bands > known or (image.mode == "RGBA" and not ALPHA & set(np.ravel(extra).tolist())):
        raise DataError(
            f"{opened.name} has {opened.bands} bands, of which only the first {min(opened.bands, 3)} could be read; save "
            "the bands that the network should see as a gray or RGB image."
        )
    if 2 in kinds and opened.depth <= 8:
        raise DataError(f"{opened.name} holds signed {opened.depth}-bit numbers; save it with unsigned ones.")
    size = [tags.get(side) for side in (256, 257)]  # seeking changes the directory itself
    # smaller frames are previews and pyramids; bits 1 and 4 mark these and masks
    for frame in range(1, image.n_frames):
        image.seek(frame)
        if [image.tag_v2.get(side) for side in (256, 257)] == size and not image.tag_v2.get(254, 0) & 5:
            raise DataError(f"{opened.name} holds {image.n_frames} pages; save one image per file.")
    if image.tell():
        image.seek(0)


def _unread_tiff(content: bytes, name: str) -> str:
    """The error message for a TIFF whose bands or depth Pillow does not support."""
    try:
        directory = PIL.TiffImagePlugin.ImageFileDirectory_v2(content[:8])
        file = BytesIO(content)
        file.seek(directory.next)
        directory.load(file)
        bits, bands, kind = directory[258], directory.get(277, 1), directory.get(339, (1,))
    except (KeyError, OSError, SyntaxError, ValueError, struct.error):
        return f"{name} is not an image; replace it or remove it from the dataset."
    kinds = {1: "whole numbers", 2: "signed numbers", 3: "floats"}
    return (
        f"{name} has {bands} band{'s' * (bands > 1)} of {bits[0]} bits ({kinds.get(kind[0], 'unknown numbers')}), which "
        "cannot be read; save it as a gray or RGB image of 8 or 16 bits."
    )


def decode_pixels(value: dict) -> tuple[torch.Tensor, int]:
    """Decodes a stored image `{"path", "bytes"}`.

    torchvision reads JPEG files in about 0.6 of the time that Pillow takes (docs/results.md, Reading images).

    Returns:
        the upright image, (3,H,W) uint8, and the EXIF orientation (1 to 8) in which it is stored.

    Raises:
        DataError: the file is missing, damaged or too large, or its pixels could be read in more than one way.
    """
    with named(value):
        content = read_bytes(value)
        opened = open_header(content, value)
        image = opened.image
        if image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(ORIENTATION, 1) == 1:
            try:
                return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB), 1
            except RuntimeError:
                pass  # Pillow says in words what is wrong
        picture = opened.upright()
        return F.pil_to_tensor(_as_rgb(opened, picture)), opened.orientation


def _as_rgb(opened: Opened, picture: PIL.Image.Image) -> PIL.Image.Image:
    mode = picture.mode
    if mode == "RGB" and opened.depth <= 8:
        return picture
    if mode in ("1", "L", "P", "CMYK", "YCbCr") and opened.depth <= 8:
        return picture.convert("RGB")
    if mode in ("L", "LA", "RGB", "RGBA", "PA", "RGBX", "CMYK"):
        if mode == "PA":
            picture = picture.convert("RGBA")
        if opened.depth > 8 and mode != "CMYK":  # Pillow keeps the high byte
            bands = picture.getextrema()
            highest = max(high for _, high in (bands if len(picture.getbands()) > 1 else [bands])[:3])
            _check_depth_is_used(opened, highest << 8)
        return picture.convert("RGB")
    if mode == "F" or mode.startswith("I"):
        values = np.asarray(picture)
        values = values.view(np.uint32) if opened.unsigned else values
        return PIL.Image.fromarray(_to_bytes(opened, values)).convert("RGB")
    raise DataError(f"{opened.name} is a {mode} image; save it as a gray or RGB image.")


def _check_depth_is_used(opened: Opened, highest: int) -> None:
    """Refuses 12- or 14-bit values in a 16-bit file, which would look black at the depth that the file declares."""
    if 0 < highest < 1 << 14 or (opened.bands > 2 and highest == 0):
        raise DataError(
            f"{opened.name} has {opened.depth} bits per sample, but its values use at most 14 of them, so its range is "
            "unclear; save it with 8 bits, with values up to 65535, or as a gray TIFF that declares its range "
            "(MinSampleValue, MaxSampleValue)."
        )


def _to_bytes(opened: Opened, values: np.ndarray) -> np.ndarray:
    """Gray values of 12, 16 or 32 bits, or floats, as uint8, by the range of their type or that declared in the file."""
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" and not np.isfinite([low, high]).all():
        raise DataError(f"{opened.name} holds values that are not finite (nan or infinity); replace them.")
    if opened.stated is not None:
        least, most = opened.stated
        if low < least or high > most:
            raise DataError(f"{opened.name} declares values of {least:g} to {most:g}, but has {low:g} to {high:g}.")
        scaled = np.rint((values.astype(np.float64) - least) * (255 / (most - least))).astype(np.uint8)
    elif values.dtype.kind == "f":
        if low < 0 or high > 1:
            raise DataError(
                f"{opened.name} holds floats from {low:g} to {high:g}, whose range is unclear; scale them to 0..1, or "
                "save a TIFF that declares their range (SMinSampleValue, SMaxSampleValue)."
            )
        scaled = np.rint(values * 255).astype(np.uint8)
    elif values.dtype.itemsize == 2 or opened.image.format == "PPM":  # Pillow brings PGM files to 16 bits
        depth = 12 if opened.depth == 12 else 16
        if depth == 16 and opened.image.format != "PPM":
            _check_depth_is_used(opened, int(high))
        scaled = (values >> (depth - 8)).astype(np.uint8)
    else:
        raise DataError(
            f"{opened.name} holds {opened.depth}-bit whole numbers from {low} to {high}, whose range is unclear; save it "
            "with 8 or 16 bits, or as a TIFF that declares its range (SMinSampleValue, SMaxSampleValue)."
        )
    return 255 - scaled if opened.white_is_zero else scaled
