"""`voc`: PASCAL VOC 2012 (Everingham et al. 2015), alone or with the masks of SBD (Hariharan et al. 2011), 21 classes."""

from __future__ import annotations

from pathlib import Path

import datasets

from hf_fst.data.files import Row, build, find_folder, find_root, list_files
from hf_fst.data.labels import LabelMap
from hf_fst.data.splits import find_id, read_list, semi_supervised
from hf_fst.errors import MissingError, UserError

NAMES = (
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,pottedplant,"
    "sheep,sofa,train,tvmonitor"
).split(",")
LAYOUT = (
    "JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{train,val}.txt (VOCtrainval_11-May-2012.tar), and for "
    "the augmented set SegmentationClassAug/"
)
# the bits of an id, spread over the high bits of red, green and blue
PALETTE = [
    [sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
    for index in range(len(NAMES))
]
LABELS = LabelMap(names=NAMES, palette=PALETTE)
CLASSIC = (92, 183, 366, 732, 1464)  # published numbers of labeled images from train.txt; others are from all


def voc(
    data_dir: str | None,
    *,
    labeled: int | None = None,
    pool: str | None = None,
    splits: str | None = None,
    seed: int = 0,
    on_bad_image: str = "stop",
    streaming: bool = False,
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Loads VOC 2012: train and validation (val.txt); with `labeled` also `unlabeled`.

    With `SegmentationClassAug/` train is the augmented set (trainaug.txt, or all its masks but those of val), else
    train.txt. Masks are palette or gray images whose indices are the classes, 255 ignored.

    Args:
        data_dir: the folder with `JPEGImages/` (or one that holds it as `VOC2012/` or `VOCdevkit/VOC2012/`).
        labeled: number of labeled images (published: classic 92, 183, 366, 732, 1464; augmented 662, 1323, 2646,
            5291); None for all.
        pool: "classic" takes the labeled ones from train.txt, "augmented" from all; None goes by the published
            numbers.
        splits: a folder with the published lists, `<labeled>/labeled.txt` and `unlabeled.txt`, one id a line; None
            makes a split: seeded, nested, with every class.
        seed: of the split that is made.
        on_bad_image: "stop" or "skip", if the mask of an image that may be chosen cannot be read.
    """
    root = find_root(data_dir, LAYOUT)
    root = next((root / sub for sub in ("VOC2012", "VOCdevkit/VOC2012") if (root / sub).is_dir()), root)
    images = list_files(find_folder(root, "JPEGImages", LAYOUT), LAYOUT, suffixes=(".jpg",))
    lists = find_folder(root, "ImageSets/Segmentation", LAYOUT)

    def listed(name: str) -> list[str]:
        return [find_id(line, images) for line in read_list(lists / name)]

    train_ids, val_ids = listed("train.txt"), listed("val.txt")
    augmented = (root / "SegmentationClassAug").is_dir()
    masks = list_files(
        find_folder(root, "SegmentationClassAug" if augmented else "SegmentationClass", LAYOUT),
        LAYOUT,
        suffixes=(".png",),
    )
    if augmented and (lists / "trainaug.txt").is_file():
        all_ids = listed("trainaug.txt")
    elif augmented:
        held = set(val_ids)
        all_ids = [name for name in masks if name not in held]
    else:
        all_ids = train_ids
    official = root / "SegmentationClass"
    val_masks = list_files(official, LAYOUT, suffixes=(".png",)) if official.is_dir() else masks

    train = _rows(all_ids, images, masks, root)
    made = {"train": train.values()}
    if labeled is not None:
        if pool not in (None, "classic", "augmented"):
            raise UserError(f"pool is {pool!r}; give 'classic' or 'augmented'.")
        classic = pool == "classic" or (pool is None and labeled in CLASSIC)
        made["train"], made["unlabeled"] = semi_supervised(
            train, labeled, splits, seed, LABELS, on_bad_image, pool=train_ids if classic else None
        )
    made["validation"] = _rows(val_ids, images, val_masks, root).values()
    return build(made, LABELS, streaming)


def _rows(ids: list[str], images: dict[str, Path], masks: dict[str, Path], root: Path) -> dict[str, Row]:
    for what, found in (("image", images), ("mask", masks)):
        missing = [name for name in ids if name not in found]
        if missing:
            folder = next(iter(found.values())).parent
            raise MissingError(
                f"{len(missing)} of {len(ids)} listed images have no {what}, the first is {missing[0]} (looked for in "
                f"{folder}); {root} must hold {LAYOUT}."
            )
    return {name: (images[name], masks[name]) for name in ids}
