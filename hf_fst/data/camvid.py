"""`camvid`: CamVid in the SegNet layout (Badrinarayanan, Kendall, Cipolla 2017), 367 / 101 / 233 images, 11 classes."""

from __future__ import annotations

import datasets

from hf_fst.data.files import MASK_SUFFIXES, Row, build, find_root, paired
from hf_fst.data.labels import IGNORED, LabelMap
from hf_fst.data.splits import FOLDER, semi_supervised
from hf_fst.errors import UserError

NAMES = "sky building pole road pavement tree sign fence car pedestrian bicyclist".split()
# fmt: off
PALETTE = [
    [128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [0, 0, 192], [128, 128, 0],
    [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192],
]
# fmt: on
LAYOUT = "train/, trainannot/, val/, valannot/, test/ and testannot/ (images and index masks of the same names)"
LABELS = LabelMap(names=NAMES, palette=PALETTE, id_map=[*range(11), IGNORED])  # raw 11 is void
FRACTIONS = {"1/2": 183, "1/4": 91, "1/8": 45, "1/16": 22}  # of 367 images


def camvid(
    data_dir: str | None,
    *,
    labeled: str | int | None = None,
    seed: int = 0,
    splits: str | None = None,
    on_bad_image: str = "stop",
    streaming: bool = False,
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Loads CamVid: train, validation, test; with `labeled` also `unlabeled`, the rest of train.

    Args:
        data_dir: the folder with `train/`, `trainannot/`, `val/`, ...
        labeled: "1/2", "1/4", "1/8" or "1/16", or a number of images; None for all.
        seed: of the choice of labeled images. Seed 0 with all 367 images is listed in `splits/camvid/`; others are
            made: nested, every class among the smallest.
        splits: a folder with own lists, `N/labeled.txt` and `N/unlabeled.txt` for `labeled` = N.
        on_bad_image: "stop" or "skip", if the mask of an image that may be chosen cannot be read.
    """
    root = find_root(data_dir, LAYOUT)

    def rows(split: str) -> dict[str, Row]:
        return paired(root, split, f"{split}annot", LAYOUT, MASK_SUFFIXES)

    train = rows("train")
    made = {"train": train.values()}
    if labeled is not None:
        if isinstance(labeled, str) and labeled not in FRACTIONS:
            raise UserError(f"labeled is {labeled!r}; give {', '.join(FRACTIONS)}, or a number of images.")
        count = len(train) // int(labeled[2:]) if isinstance(labeled, str) else labeled
        if splits is None and seed == 0 and len(train) == 367 and count in FRACTIONS.values():
            splits = FOLDER / "camvid"
        made["train"], made["unlabeled"] = semi_supervised(train, count, splits, seed, LABELS, on_bad_image)
    return build(made | {"validation": rows("val").values(), "test": rows("test").values()}, LABELS, streaming)
