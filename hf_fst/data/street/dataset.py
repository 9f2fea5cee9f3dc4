"""`street`: an embedded benchmark of procedurally drawn street scenes in two looks. Nothing is downloaded.

`synthetic` is what a renderer gives: flat, clean colors. `real` is what a camera on a car gives: other materials,
grain, shadows, haze, exposure, white balance, blur and noise. Training on the one and testing on the other is a domain
adaptation in miniature; labels of `real` alone make a semi-supervised task. Scenes, looks and sizes were settled on
source-only, mean-teacher and target-trained runs alone; no result of a look-ahead rule was seen before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import datasets
from PIL import Image

from hf_fst.data.cityscapes import NAMES as CITYSCAPES
from hf_fst.data.cityscapes import PALETTE as CITYSCAPES_PALETTE
from hf_fst.data.labels import LabelMap
from hf_fst.errors import UserError
from hf_fst.kinds import fits

from .look import LOOKS
from .scene import SPLITS, draw

NAMES = ["road", "sidewalk", "building", "fence", "pole", "traffic sign", "vegetation", "sky", "person", "car"]
PALETTE = [CITYSCAPES_PALETTE[CITYSCAPES.index(name)] for name in NAMES]
SIDES = (32, 4096)  # pixels; below, signs and people are smaller than a pixel
DRAWING = 2  # part of the cache's key: raise it with every change that changes a picture


def street(
    data_dir: str | os.PathLike | None = None,
    *,
    streaming: bool = False,
    look: str = "real",
    size: Sequence[int] = (96, 160),
    num_train: int = 500,
    num_validation: int = 100,
    num_test: int = 200,
    seed: int = 0,
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Draws street scenes with the ten classes of `NAMES`, the same ones for the same arguments.

    The looks show different scenes: no picture of one is a picture of the other redrawn. Pictures are drawn once, when
    first asked for, and kept as PNG in an Arrow file; with `streaming` they are drawn as they are read.

    Args:
        data_dir: where the drawn pictures are kept; None is the cache of `datasets`.
        streaming: returns a `datasets.IterableDatasetDict`, one shard a picture.
        look: "synthetic" or "real".
        size: (height, width) in pixels, 32..4096. The street is the same at any size, except for grain and noise.
        num_train, num_validation, num_test: pictures in each split, at least 1. A smaller split is the beginning of a
            larger one.
        seed: a whole number, 0 or more.

    Raises `UserError` for a look, size, number or seed that is not one of these.
    """
    counts = dict(zip(SPLITS, (num_train, num_validation, num_test), strict=True))
    size = _checked(look, size, counts, seed)
    features = datasets.Features(
        {"image": datasets.Image(), "label": LabelMap(names=list(NAMES), palette=[list(rgb) for rgb in PALETTE])}
    )
    drawn = {}
    kind, kept = datasets.IterableDataset, {}
    if not streaming:
        kind, kept = datasets.Dataset, {"cache_dir": None if data_dir is None else os.fspath(data_dir)}
    for split, count in counts.items():
        scenes = {"indices": list(range(count)), "look": look, "split_name": split, "size": size, "seed": seed}
        scenes["drawing"] = DRAWING
        drawn[split] = kind.from_generator(
            _scenes, features=features, gen_kwargs=scenes, split=datasets.NamedSplit(split), **kept
        )
    return datasets.IterableDatasetDict(drawn) if streaming else datasets.DatasetDict(drawn)


def _scenes(
    indices: list[int], look: str, split_name: str, size: tuple[int, int], seed: int, drawing: int
) -> Iterator[dict[str, Image.Image]]:
    for index in indices:
        image, label = draw(look, split_name, index, size, seed)
        yield {"image": image, "label": label}


def _checked(look: str, size: Sequence[int], counts: dict[str, int], seed: int) -> tuple[int, int]:
    if look not in LOOKS:
        raise UserError(f"street has no look {look!r}; choose one of {', '.join(LOOKS)}.")
    least, most = SIDES
    sides = size if isinstance(size, (list, tuple)) and len(size) == 2 else (0, 0)
    if not all(fits(side, int) and least <= side <= most for side in sides):
        raise UserError(
            f"street cannot be drawn at size {size!r}; give (height, width) in pixels, each a whole number of {least} "
            f"to {most}."
        )
    for split, count in counts.items():
        if not fits(count, int) or count < 1:
            raise UserError(f"street cannot have num_{split}={count!r} pictures; give a whole number of at least 1.")
    if not fits(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"street cannot use seed={seed!r}; give a whole number of 0 to {2**32 - 1}.")
    return size[0], size[1]
