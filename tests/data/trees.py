"""Tiny datasets in the official layouts, for tests. Each builder writes files, returns {split: {id: raw ids (H,W)}}."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image

Masks = dict[str, dict[str, np.ndarray]]


def picture(rng: np.random.Generator, size: tuple[int, int]) -> PIL.Image.Image:
    """A smooth random RGB image of size (H,W)."""
    height, width = size
    coarse = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)


def id_map(rng: np.random.Generator, size: tuple[int, int], ids: list[int]) -> np.ndarray:
    """A map (H,W) of vertical stripes in random order, so that every id occurs (W >= number of ids is needed)."""
    height, width = size
    order = rng.permutation(ids)
    columns = order[np.arange(width) * len(ids) // width]
    return np.repeat(columns[None], height, axis=0)


def save_image(path: Path, rng: np.random.Generator, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(rng, size).save(path)


def save_gray(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(ids.astype(np.uint8)).save(path)


def save_palette(path: Path, ids: np.ndarray, colors: np.ndarray) -> None:
    """Saves a palette PNG (mode P) whose indices are the ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = PIL.Image.fromarray(ids.astype(np.uint8))
    image.putpalette(np.asarray(colors, dtype=np.uint8).reshape(-1).tolist())
    assert image.mode == "P"
    image.save(path)


def save_png16(path: Path, pixels: np.ndarray) -> None:
    """Saves (H,W,3) as an RGB PNG of 16 bits a channel, which Pillow cannot write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def camvid(
    root: Path, counts: tuple[int, int, int] = (4, 2, 2), size: tuple[int, int] = (36, 48), seed: int = 0
) -> Masks:
    rng = np.random.default_rng(seed)
    made: Masks = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        made[split] = {}
        for i in range(count):
            name = f"0001TP_{split}{i:04d}"
            ids = id_map(rng, size, list(range(12)))
            save_image(root / split / f"{name}.jpg", rng, size)
            save_gray(root / f"{split}annot" / f"{name}.png", ids)
            made[split][name] = ids
    return made


def cityscapes(
    root: Path,
    counts: tuple[int, int, int] = (4, 2, 1),
    size: tuple[int, int] = (48, 96),
    seed: int = 0,
    train_ids: list[int] | None = None,
) -> Masks:
    """Raw ids 0 to 33 and 255 (license plate, -1 in a byte). With `train_ids` (by raw id) also labelTrainIds files."""
    rng = np.random.default_rng(seed)
    made: Masks = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        made[split] = {}
        for i in range(count):
            city = ("aachen", "bochum")[i % 2]
            name = f"{city}_{i:06d}_000019"
            ids = id_map(rng, size, [*range(34), 255])
            save_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", rng, size)
            if split != "test":
                save_gray(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", ids)
                # The official package holds more files for each image; the loader must not take them for masks.
                save_gray(root / "gtFine" / split / city / f"{name}_gtFine_instanceIds.png", ids)
                if train_ids is not None:
                    table = np.full(256, 255)
                    table[: len(train_ids)] = train_ids
                    save_gray(root / "gtFine" / split / city / f"{name}_gtFine_labelTrainIds.png", table[ids])
            made[split][f"{city}/{name}"] = ids
    return made


def gta5(
    root: Path,
    count: int = 4,
    size: tuple[int, int] = (53, 96),
    seed: int = 0,
    colors: list | None = None,
    rgb: bool = False,
) -> Masks:
    """Palette masks with raw ids 0 to 34; with `rgb` masks in the `colors` of the ids."""
    rng = np.random.default_rng(seed)
    colors = np.array(colors if colors is not None else rng.integers(0, 256, (35, 3)))
    made: Masks = {"train": {}}
    for i in range(count):
        name = f"{i + 1:05d}"
        ids = id_map(rng, size, list(range(35)))
        save_image(root / "images" / f"{name}.png", rng, size)
        path = root / "labels" / f"{name}.png"
        if rgb:
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(colors.astype(np.uint8)[ids]).save(path)
        else:
            save_palette(path, ids, colors)
        made["train"][name] = ids
    return made


def synthia(root: Path, count: int = 4, size: tuple[int, int] = (57, 96), seed: int = 0) -> Masks:
    """RGB masks of 16 bits: raw ids 0 to 22 in the first channel, instance numbers in the second."""
    rng = np.random.default_rng(seed)
    made: Masks = {"train": {}}
    for i in range(count):
        name = f"{i:07d}"
        ids = id_map(rng, size, list(range(23)))
        save_image(root / "RGB" / f"{name}.png", rng, size)
        instances = rng.integers(0, 1000, size)
        save_png16(root / "GT" / "LABELS" / f"{name}.png", np.stack([ids, instances, np.zeros(size)], axis=-1))
        made["train"][name] = ids
    return made


def voc(
    root: Path,
    counts: tuple[int, int, int] = (4, 2, 4),
    size: tuple[int, int] = (40, 52),
    seed: int = 0,
    augmented: bool = True,
) -> Masks:
    """train, val and images of the augmented set alone: palette masks in SegmentationClass, gray ones in ...Aug."""
    rng = np.random.default_rng(seed)
    colors = rng.integers(0, 256, (256, 3))
    made: Masks = {}
    for split, count in zip(("train", "val", "aug"), counts, strict=True):
        made[split] = {}
        for i in range(count):
            name = f"{2007 + len(made)}_{i:06d}"
            ids = id_map(rng, size, [*range(21), 255])
            save_image(root / "JPEGImages" / f"{name}.jpg", rng, size)
            if split != "aug":
                save_palette(root / "SegmentationClass" / f"{name}.png", ids, colors)
            if augmented:
                save_gray(root / "SegmentationClassAug" / f"{name}.png", ids)
            made[split][name] = ids
        if split != "aug":
            lists = root / "ImageSets" / "Segmentation"
            lists.mkdir(parents=True, exist_ok=True)
            (lists / f"{split}.txt").write_text("\n".join(made[split]))
    return made


def folder(
    root: Path,
    count: int = 4,
    size: tuple[int, int] = (36, 48),
    names: tuple[str, ...] = ("road", "car", "sky"),
    seed: int = 0,
    labeled: bool = True,
) -> Masks:
    """images/ and, unless `labeled` is false, masks/ (ids and 255) with id2label.json."""
    rng = np.random.default_rng(seed)
    made: Masks = {"train": {}}
    for i in range(count):
        ids = id_map(rng, size, [*range(len(names)), 255])
        save_image(root / "images" / f"scene{i}.jpg", rng, size)
        if labeled:
            save_gray(root / "masks" / f"scene{i}.png", ids)
            made["train"][f"scene{i}"] = ids
    if labeled:
        (root / "id2label.json").write_text(json.dumps({str(i): name for i, name in enumerate(names)}))
    return made
