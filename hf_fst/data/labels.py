"""`LabelMap`, the dataset feature of an index mask: class names, palette and ids travel with the data."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from datasets.features.features import register_feature
from datasets.utils.file_utils import is_local_path, xopen
from torchvision.io import ImageReadMode, decode_image

from hf_fst.errors import DataError

IGNORED = 255
MAX_SIDE = 32_768  # pixels; beyond this an image is a mistake, and several decoders overflow at 2**15 or 2**16


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
            return Path(path).read_bytes()
        token = next((t for repo, t in (token_per_repo_id or {}).items() if repo in path), None)
        with xopen(path, "rb", download_config=datasets.DownloadConfig(token=token)) as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); was the dataset moved?") from error


@contextmanager
def _told(value: dict) -> Iterator[None]:
    """Tells what decoders raise on a broken file in one sentence that names it."""
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


def _open(content: bytes, value: dict) -> PIL.Image.Image:
    """Reads the header alone and checks the size."""
    image = PIL.Image.open(BytesIO(content))
    width, height = image.size
    if max(width, height) > MAX_SIDE:
        raise DataError(
            f"{file_of(value)} is {width} x {height} pixels, but a side may have {MAX_SIDE} pixels at most; "
            "cut it into tiles."
        )
    return image


def open_image(value: dict | PIL.Image.Image, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
    """Decodes a stored image `{"path", "bytes"}`, turned upright; an image that is already decoded is given back.

    Raises `DataError`, naming the file, where it is missing, broken, cut off or larger than `MAX_SIDE` pixels a side.
    """
    if isinstance(value, PIL.Image.Image):
        return value
    with _told(value):
        image = _open(read_bytes(value, token_per_repo_id), value)
        image.load()
        return PIL.ImageOps.exif_transpose(image)


@dataclass
class LabelMap(datasets.Image):
    """A column of index masks: decodes to a PIL image of mode "L" that holds train ids, 255 where ignored.

    A file may be gray (8 or 16 bits), binary, or a palette image whose *indices* are the ids. RGB files are accepted
    only with `colors` or `first_channel`.

    Args:
        names: class names, by train id.
        palette: an `[r, g, b]` for each train id, 0..255, for drawing.
        id_map: the train id (or 255) of each raw id, by raw id; None where raw ids are train ids. Raw 255 is always
            ignored.
        colors: an `[r, g, b]` for each *raw* id; with it RGB(A) files are read by color.
        first_channel: the raw id is the first channel of an RGB file of 8 or 16 bits (SYNTHIA).

    Decoding raises `DataError`, naming the file, for an unreadable file, a kind of file not listed here, or an id or
    color that is not known.
    """

    names: list[str] | None = None
    palette: list[list[int]] | None = None
    id_map: list[int] | None = None
    colors: list[list[int]] | None = None
    first_channel: bool = False
    _type: str = field(default="LabelMap", init=False, repr=False)

    @property
    def id2label(self) -> dict[int, str]:
        """Class names by train id, as a model's config wants them."""
        return dict(enumerate(self.names or []))

    def decode_example(self, value: dict, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        """Decodes a stored mask to train ids, PIL mode "L" (H,W). Raises `DataError` (see the class)."""
        if not self.decode:
            raise RuntimeError("Decoding is switched off for this column; cast it to LabelMap(decode=True) first.")
        if isinstance(value, PIL.Image.Image):
            return value  # the features of datasets decode twice in places, so decoding is idempotent
        ids = (
            self._first_channel(value, token_per_repo_id)
            if self.first_channel
            else self._index(value, token_per_repo_id)
        )
        return self._train_ids(ids, value)

    def _index(self, value: dict, token_per_repo_id: dict | None) -> np.ndarray:
        image = open_image(value, token_per_repo_id)
        if image.mode in ("L", "P", "1", "I", "I;16", "I;16B", "I;16L"):
            return np.asarray(image)
        if image.mode in ("RGB", "RGBA") and self.colors is not None:
            return self._by_color(np.asarray(image.convert("RGB")), value)
        raise DataError(
            f"{file_of(value)} is a color image ({image.mode}), but a mask holds one class id a pixel, as a gray "
            "image or as a palette image whose indices are the ids; convert it."
        )

    def _first_channel(self, value: dict, token_per_repo_id: dict | None) -> np.ndarray:
        content = read_bytes(value, token_per_repo_id)
        with _told(value):
            mode = _open(content, value).mode
            if mode not in ("RGB", "RGBA"):
                raise DataError(
                    f"{file_of(value)} is a {mode} image, but the class id is expected in the first channel of an RGB "
                    "image; use the GT/LABELS files of the dataset."
                )
            # Pillow cuts RGB files of 16 bits down to the high byte, torchvision does not.
            buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return decode_image(buffer, mode=ImageReadMode.UNCHANGED)[0].numpy()

    def _by_color(self, pixels: np.ndarray, value: dict) -> np.ndarray:
        packed = (pixels.astype(np.int32) << np.array([16, 8, 0], dtype=np.int32)).sum(-1, dtype=np.int32)
        known, inverse = np.unique(packed, return_inverse=True)
        raw_id = {(r << 16) + (g << 8) + b: i for i, (r, g, b) in reversed(list(enumerate(self.colors)))}
        for color in known.tolist():
            if color not in raw_id:
                rgb = (color >> 16, color >> 8 & 255, color & 255)
                raise DataError(
                    f"{file_of(value)} has the color {rgb}, which is no class's; see the dataset's palette."
                )
        return np.array([raw_id[color] for color in known.tolist()])[inverse].reshape(packed.shape)

    def _train_ids(self, ids: np.ndarray, value: dict) -> PIL.Image.Image:
        train_ids = self.id_map if self.id_map is not None else range(len(self.names) if self.names else IGNORED)
        known = [*train_ids, *[None] * (IGNORED - len(train_ids)), IGNORED]
        unknown = np.unique(ids[(ids < 0) | (ids > IGNORED)]).tolist() if ids.dtype != np.uint8 else []
        image = PIL.Image.fromarray(ids.astype(np.uint8, copy=False))
        unknown = (
            [raw for raw, n in enumerate(image.histogram()) if n and known[raw] is None] if not unknown else unknown
        )
        if unknown:
            shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise DataError(
                f"{file_of(value)} has label ids out of range ({shown}): 0 to {len(train_ids) - 1} and {IGNORED} "
                "(ignored) are accepted; correct the mask, the class names or the id map."
            )
        if self.id_map is None:
            return image
        return image.point([IGNORED if train_id is None else train_id for train_id in known])


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # datasets calls registering a feature experimental, at every import
    register_feature(LabelMap, "LabelMap")
