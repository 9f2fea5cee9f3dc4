"""Reading one image file: its bytes, its geometry, its bands and its depth.

Unambiguous files become upright 8-bit RGB images. Ambiguous ones are refused, with the file's name and what to do; no
value is ever clipped to fit.
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

MAX_SIDE = 32_768  # pixels; beyond this an image is a mistake, and several decoders overflow at 2**15 or 2**16
ORIENTATION = 0x0112  # the EXIF tag: 1 is upright, 2 to 8 are turned or mirrored
COLOR_DEPTH = (0, 2, 4, 6)  # types of PNG files whose depth counts shades, not entries of a palette
STATED = ((340, 341), (280, 281))  # TIFF tags: lowest and highest sample value
ALPHA = {1, 2, 999}  # values of TIFF's ExtraSamples that mean alpha


def file_of(value: dict) -> str:
    """Names the file behind a stored image `{"path", "bytes"}` for an error message."""
    return value.get("path") or "an image given as bytes"


def read_bytes(value: dict, token_per_repo_id: dict | None = None) -> bytes:
    """Gives the bytes of a stored image `{"path", "bytes"}`. Raises `DataError` where there is no such file."""
    if value.get("bytes") is not None:
        return value["bytes"]
    path = value.get("path")
    if path is None:
        raise DataError("An image has neither a path nor bytes; every row needs one of them.")
    try:
        if is_local_path(path):
            if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
                raise DataError(f"{path} is no regular file; take it out of the dataset.")
            return Path(path).read_bytes()
        token = next((t for repo, t in (token_per_repo_id or {}).items() if repo in path), None)
        with xopen(path, "rb", download_config=datasets.DownloadConfig(token=token)) as file:
            return file.read()
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path} cannot be read ({reason}); was the dataset moved?") from error


@contextmanager
def named(value: dict) -> Iterator[None]:
    """Turns what decoders raise for a broken file into one sentence that names the file."""
    try:
        yield
    except DataError:
        raise
    except PIL.Image.DecompressionBombError as error:
        raise DataError(f"{file_of(value)} has too many pixels ({error}); cut it into tiles.") from error
    except PIL.UnidentifiedImageError as error:
        raise DataError(f"{file_of(value)} is not an image; replace it or take it out of the dataset.") from error
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, zlib.error) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{file_of(value)} is broken ({reason}); replace it or take it out of the dataset.") from error


@dataclass
class Opened:
    """An image whose header has been read: where it is from, its bytes, and what its pixels are.

    `depth` is bits a sample, `bands` the number of samples a pixel, `orientation` that of EXIF (1 to 8), `stated` the
    range of values that the file states, `white_is_zero` whether a TIFF counts down from white, `unsigned` whether it
    holds 32 bits without a sign, which Pillow reads with one.
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
        """The pixels, turned and mirrored as EXIF says, in the mode of the file."""
        self.orientation = self.image.getexif().get(ORIENTATION, 1)
        if self.orientation not in range(2, 9):
            self.orientation = 1
        self.image.load()
        return self.image if self.orientation == 1 else PIL.ImageOps.exif_transpose(self.image)


def open_header(content: bytes, value: dict) -> Opened:
    """Reads the header of an image. To be called under `named(value)`.

    Raises:
        DataError: more than `MAX_SIDE` pixels a side, several pictures in one file, or bands of unknown meaning.
    """
    name = file_of(value)
    try:
        image = PIL.Image.open(BytesIO(content))
    except PIL.UnidentifiedImageError:
        if content.startswith(b"version https://git-lfs"):
            raise DataError(
                f"{name} is a pointer of Git LFS and no image; fetch the files with `git lfs pull`."
            ) from None
        if content[:4] in PIL.TiffImagePlugin.PREFIXES:
            raise DataError(_unread_tiff(content, name)) from None
        raise
    width, height = image.size
    if max(width, height) > MAX_SIDE:
        raise DataError(
            f"{name} is {width} x {height} pixels, but a side may have {MAX_SIDE} pixels at most; cut it into tiles."
        )
    opened = Opened(name, content, image, bands=len(image.getbands()))
    if image.format == "TIFF":
        _look_at_tiff(opened)
    elif image.format == "PNG" and content[25] in COLOR_DEPTH:
        opened.depth = content[24]
    elif image.mode.startswith("I;16"):
        opened.depth = 16
    if image.format in ("AVIF", "GIF", "PNG", "WEBP") and image.n_frames > 1:
        raise DataError(f"{name} is an animation of {image.n_frames} pictures; save one picture a file.")
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
            "the bands that the network is to see as a gray or RGB image."
        )
    if 2 in kinds and opened.depth <= 8:
        raise DataError(f"{opened.name} holds signed numbers of {opened.depth} bits; save it with unsigned ones.")
    size = [tags.get(side) for side in (256, 257)]  # the directory itself changes with the frame
    for frame in range(1, image.n_frames):  # smaller ones are previews and pyramids, bits 1 and 4 mark these and masks
        image.seek(frame)
        if [image.tag_v2.get(side) for side in (256, 257)] == size and not image.tag_v2.get(254, 0) & 5:
            raise DataError(f"{opened.name} holds {image.n_frames} pictures; save one picture a file.")
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
        return f"{name} is not an image; replace it or take it out of the dataset."
    kinds = {1: "whole numbers", 2: "signed numbers", 3: "floats"}
    return (
        f"{name} has {bands} band{'s' * (bands > 1)} of {bits[0]} bits ({kinds.get(kind[0], 'unknown numbers')}), which "
        "are not read; save it as a gray or RGB image of 8 or 16 bits."
    )


def decode_image(value: dict) -> tuple[PIL.Image.Image, int]:
    """Decodes a stored image `{"path", "bytes"}`.

    Returns:
        the upright picture in mode "RGB", and the EXIF orientation (1 to 8) in which it is stored.

    Raises:
        DataError: the file is missing, broken or too large, or its pixels could be read in more than one way.
    """
    with named(value):
        opened = open_header(read_bytes(value), value)
        picture = opened.upright()
        return _as_rgb(opened, picture), opened.orientation


def decode_pixels(value: dict) -> tuple[torch.Tensor, int]:
    """Decodes as `decode_image`, which gives the same pixels: (3,H,W) uint8.

    Photographs are read by torchvision, which takes about 0.6 of Pillow's time (docs/results.md, Reading images).
    """
    with named(value):
        content = read_bytes(value)
        opened = open_header(content, value)
        image = opened.image
        if image.format == "JPEG" and image.mode == "RGB" and image.getexif().get(ORIENTATION, 1) == 1:
            try:
                return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB), 1
            except RuntimeError:
                pass  # Pillow says in words what is broken
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
    """12 or 14 bits in a file of 16 look black when the file's depth is believed, so that they are refused."""
    if 0 < highest < 1 << 14 or (opened.bands > 2 and highest == 0):
        raise DataError(
            f"{opened.name} has {opened.depth} bits a sample, but its values use 14 of them at most, so that its range "
            "is unclear; save it with 8 bits, with values up to 65535, or as a gray TIFF that states its range "
            "(MinSampleValue, MaxSampleValue)."
        )


def _to_bytes(opened: Opened, values: np.ndarray) -> np.ndarray:
    """Gray values of 12, 16 or 32 bits, or floats, as uint8 by the range that the file has or states."""
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" and not np.isfinite([low, high]).all():
        raise DataError(f"{opened.name} holds values that are no numbers (nan or infinity); replace them.")
    if opened.stated is not None:
        least, most = opened.stated
        if low < least or high > most:
            raise DataError(f"{opened.name} states values of {least:g} to {most:g}, but has {low:g} to {high:g}.")
        scaled = np.rint((values.astype(np.float64) - least) * (255 / (most - least))).astype(np.uint8)
    elif values.dtype.kind == "f":
        if low < 0 or high > 1:
            raise DataError(
                f"{opened.name} holds floats from {low:g} to {high:g}, whose range is unclear: 0 to 1 is read, and "
                "another in a TIFF that states it (SMinSampleValue, SMaxSampleValue)."
            )
        scaled = np.rint(values * 255).astype(np.uint8)
    elif values.dtype.itemsize == 2 or opened.image.format == "PPM":  # Pillow brings PGM files to 16 bits
        depth = 12 if opened.depth == 12 else 16
        if depth == 16 and opened.image.format != "PPM":
            _check_depth_is_used(opened, int(high))
        scaled = (values >> (depth - 8)).astype(np.uint8)
    else:
        raise DataError(
            f"{opened.name} holds whole numbers of {opened.depth} bits from {low} to {high}, whose range is unclear; "
            "save it with 8 or 16 bits, or as a TIFF that states it (SMinSampleValue, SMaxSampleValue)."
        )
    return 255 - scaled if opened.white_is_zero else scaled
