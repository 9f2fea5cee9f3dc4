"""Every kind of image and mask file that people have, how to make one, and what becomes of it.

`docs/data.md` shows this table; `test_kinds.py` makes each file and holds the row to it.
"""
# ruff: noqa: E501  one kind a line

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

IDS = np.array([[0, 1, 2, 1], [2, 0, 1, 1], [1, 1, 0, 2]], dtype=np.uint8)
GRAY = (np.arange(48).reshape(6, 8) * 5).astype(np.uint8)
RGB = np.stack([GRAY, GRAY[::-1], 255 - GRAY], axis=-1)
COLORS = [[10, 20, 30], [200, 0, 0], [0, 90, 250]]


@dataclass
class Kind:
    """A row: `make` writes a file and gives its path; `expected` are its pixels or ids, None where it is refused."""

    file: str
    result: str
    make: Callable[[Path], Path]
    expected: np.ndarray | None
    colors: list | None = None
    says: str = ""


def save(content, suffix="png", **options) -> Callable[[Path], Path]:
    def write(place: Path) -> Path:
        path = place / f"file.{suffix}"
        image = content if isinstance(content, PIL.Image.Image) else PIL.Image.fromarray(content)
        image.save(path, **options)
        return path

    return write


def png(pixels: np.ndarray, depth: int) -> Callable[[Path], Path]:
    """A PNG of (H,W) or (H,W,3) with 1, 2, 4, 8 or 16 bits a sample, which Pillow cannot write in all."""

    def write(place: Path) -> Path:
        height, width = pixels.shape[:2]
        rows = b""
        for row in pixels.reshape(height, -1).astype(int):
            bits = "".join(f"{value:0{depth}b}" for value in row)
            bits += "0" * (-len(bits) % 8)
            rows += b"\0" + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))

        def chunk(kind: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        header = struct.pack(">IIBBBBB", width, height, depth, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
        path = place / "file.png"
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        )
        return path

    return write


def tiff(pixels: np.ndarray, photometric: int = 1, extra: tuple[int, ...] = (), **tags) -> Callable[[Path], Path]:
    """An uncompressed TIFF of (H,W) or (H,W,bands); `low` and `high` state the range of values."""

    def write(place: Path) -> Path:
        height, width = pixels.shape[:2]
        bands = pixels.shape[2] if pixels.ndim == 3 else 1
        data = pixels.tobytes()
        kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
        size = pixels.dtype.itemsize * 8
        shorts = {256: [width], 257: [height], 258: [size] * bands, 259: [1], 262: [photometric], 273: [8]}
        shorts |= {277: [bands], 278: [height], 279: [len(data)], 339: [kind] * bands}
        shorts |= {338: list(extra)} if extra else {}
        doubles = {340: tags["low"], 341: tags["high"]} if tags else {}
        entries, after = [], b""
        start = 8 + len(data) + 2 + 12 * (len(shorts) + len(doubles)) + 4
        for tag in sorted([*shorts, *doubles]):
            values = (
                struct.pack("<d", doubles[tag])
                if tag in doubles
                else struct.pack(f"<{len(shorts[tag])}H", *shorts[tag])
            )
            count = 1 if tag in doubles else len(shorts[tag])
            inside = values.ljust(4, b"\0") if len(values) <= 4 else struct.pack("<I", start + len(after))
            after += b"" if len(values) <= 4 else values
            entries.append(struct.pack("<HHI", tag, 12 if tag in doubles else 3, count) + inside)
        path = place / "file.tif"
        directory = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
        path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + after)
        return path

    return write


def turned(pixels: np.ndarray, orientation: int) -> Callable[[Path], Path]:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return save(pixels, exif=exif)


def palette(ids: np.ndarray, colors) -> PIL.Image.Image:
    image = PIL.Image.fromarray(ids)
    image.putpalette(np.asarray(colors, dtype=np.uint8).reshape(-1).tolist())
    return image


WIDE = RGB.astype(np.uint16) * 257  # 8 bits brought to 16
DEEP = (GRAY.astype(np.uint16) << 8) + 77
FOUR = np.concatenate([RGB, GRAY[..., None]], axis=-1)
DARK = (GRAY.astype(np.uint16) << 4) + 3  # 12 bits in 16
GRAYS = np.repeat(GRAY[..., None], 3, axis=-1)
UNIT = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
UNITS = np.repeat(np.array([round(255 * k / 47) for k in range(48)], np.uint8).reshape(6, 8, 1), 3, axis=-1)
OPAQUE = np.dstack([np.repeat(IDS[..., None], 3, axis=-1), np.full_like(IDS, 255)])
COLORED = np.array(COLORS, dtype=np.uint8)[IDS]
TWO_PAGES = [PIL.Image.fromarray(RGB), PIL.Image.fromarray(RGB[::-1].copy())]

IMAGES = [
    Kind("gray or RGB of 8 bits", "read", save(RGB), RGB),
    Kind("gray of 1, 2 or 4 bits", "read, stretched to 8 bits", png(GRAY % 4, 2), np.repeat((GRAY % 4 * 85)[..., None], 3, 2)),
    Kind("palette", "read, by its colors", save(palette(IDS, COLORS)), COLORED),
    Kind("gray of 16 bits", "read, the upper 8 of its bits", save(DEEP), GRAYS),
    Kind("RGB of 16 bits", "read, the upper 8 of its bits", png(WIDE, 16), RGB),
    Kind("TIFF of 16 bits, RGB", "read, the upper 8 of its bits", tiff(WIDE, 2), RGB),
    Kind("gray of 10 to 14 bits in a file of 16", "refused, unless a TIFF declares its range", save(DARK), None, says="14 of them"),
    Kind("RGB of 10 to 14 bits in a file of 16", "refused", png(RGB.astype(np.uint16) << 4, 16), None, says="14 of them"),
    Kind("TIFF that declares its range of values", "read, that range", tiff(DARK, low=3, high=3 + 255 * 16), GRAYS),
    Kind("TIFF of 32 bits, whole numbers", "refused, unless it declares its range", tiff(DARK.astype(np.int32)), None, says="unclear"),
    Kind("TIFF of floats from 0 to 1", "read, 1 as white", tiff(UNIT), UNITS),
    Kind("TIFF of other floats", "refused, unless it declares its range", tiff(UNIT * 300), None, says="unclear"),
    Kind("TIFF of floats with nan", "refused", tiff(np.where(UNIT < 0.5, UNIT, np.nan)), None, says="nan"),
    Kind("TIFF that stores 0 as white", "read", tiff(DEEP, 0), 255 - GRAYS),
    Kind("alpha", "read, the colors without the alpha", save(FOUR), RGB),
    Kind("TIFF with alpha", "read, the colors without the alpha", tiff(FOUR, 2, (2,)), RGB),
    Kind("four or more bands (infrared, ...)", "refused", tiff(FOUR, 2, (0,)), None, says="4 bands"),
    Kind("bands that are not named colors", "refused", tiff(RGB, 1), None, says="3 bands of 8 bits"),
    Kind("CMYK", "read, without its color profile", save(PIL.Image.fromarray(255 - FOUR[..., :3]).convert("CMYK"), "tif"), 255 - RGB),
    Kind("Lab", "refused", save(PIL.Image.new("LAB", (8, 6)), "tif"), None, says="LAB"),
    Kind("turned or mirrored by EXIF", "read, upright", turned(RGB, 7), np.rot90(RGB, 2).swapaxes(0, 1)),
    Kind("animation", "refused", save(TWO_PAGES[0], "webp", save_all=True, append_images=TWO_PAGES[1:], lossless=True), None, says="2 frames"),
    Kind("TIFF of several pages", "refused", save(TWO_PAGES[0], "tif", save_all=True, append_images=TWO_PAGES[1:]), None, says="2 pages"),
]  # fmt: skip

MASKS = [
    Kind("gray of 8 bits", "read, the values", save(IDS), IDS),
    Kind("gray of 1, 2 or 4 bits", "read, the values in the file", png(IDS, 2), IDS),
    Kind("gray of 16 or 32 bits", "read, the values", tiff(IDS.astype(np.int32)), IDS),
    Kind("floats that are whole numbers", "read, the values", tiff(IDS.astype(np.float32)), IDS),
    Kind("other floats", "refused", tiff(IDS / np.float32(2)), None, says="holds fractions"),
    Kind("palette", "read, the indices", save(palette(IDS, COLORS)), IDS),
    Kind("palette with `colors`, in another order", "read, by color", save(palette(2 - IDS, COLORS[::-1])), IDS, COLORS),
    Kind("palette with `colors`, some of them unknown", "refused", save(palette(IDS, [*COLORS[:2], [9, 9, 9]])), None, COLORS, says="(9, 9, 9)"),
    Kind("gray stored as RGB, LA or RGBA", "read, the gray values", save(OPAQUE), IDS),
    Kind("colors, with `colors`", "read, by color", save(COLORED), IDS, COLORS),
    Kind("colors, without `colors`", "refused", save(COLORED), None, says="color image"),
    Kind("transparent pixels", "refused", save(OPAQUE // 2), None, says="transparent"),
    Kind("color of 16 bits", "refused", png(np.repeat(IDS[..., None], 3, 2), 16), None, says="16 bits"),
    Kind("JPEG, lossy WebP, JPEG 2000", "refused", save(IDS, "jpg"), None, says="JPEG"),
    Kind("TIFF with JPEG inside", "refused", save(np.repeat(IDS.repeat(8, 0).repeat(8, 1)[..., None], 3, 2), "tif", compression="jpeg"), None, says="JPEG inside a TIFF"),
    Kind("TIFF that stores 0 as white", "refused", tiff(IDS, 0), None, says="MinIsWhite"),
    Kind("turned or mirrored by EXIF", "read, upright, and brought to its image", turned(IDS, 6), np.rot90(IDS, -1)),
]  # fmt: skip


def table(kinds: list[Kind], heading: str) -> str:
    """The rows as Markdown."""
    rows = [f"| {heading} | |", "| --- | --- |", *(f"| {kind.file} | {kind.result} |" for kind in kinds)]
    return "\n".join(rows)
