"""`cityscapes`: Cityscapes (Cordts et al. 2016), 2975 / 500 / 1525 images, 19 training classes."""

from __future__ import annotations

from pathlib import PurePosixPath

import datasets

from hf_fst.data.files import MASK_SUFFIXES, build, find_folder, find_root, list_files, match
from hf_fst.data.labels import IGNORED, LabelMap
from hf_fst.data.splits import semi_supervised

NAMES = (
    "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,truck,bus,"
    "train,motorcycle,bicycle"
).split(",")
# Colors of the raw ids 0 (unlabeled) to 33 (bicycle), and 34, the license plate, which only GTA5 files use.
# fmt: off
COLORS = [
    *([0, 0, 0] for _ in range(5)),  # unlabeled, ego vehicle, rectification border, out of roi, static
    # dynamic, ground, road, sidewalk, parking
    [111, 74, 0], [81, 0, 81], [128, 64, 128], [244, 35, 232], [250, 170, 160],
    # rail, building, wall, fence, guard
    [230, 150, 140], [70, 70, 70], [102, 102, 156], [190, 153, 153], [180, 165, 180],
    # bridge, tunnel, pole x 2, light
    [150, 100, 100], [150, 120, 90], [153, 153, 153], [153, 153, 153], [250, 170, 30],
    # sign, vegetation, terrain, sky, person
    [220, 220, 0], [107, 142, 35], [152, 251, 152], [70, 130, 180], [220, 20, 60],
    # rider, car, truck, bus, caravan
    [255, 0, 0], [0, 0, 142], [0, 0, 70], [0, 60, 100], [0, 0, 90],
    # trailer, train, motorcycle, bicycle, plate
    [0, 0, 110], [0, 80, 100], [0, 0, 230], [119, 11, 32], [0, 0, 142],
]
# fmt: on
RAW_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]  # by train id
PALETTE = [COLORS[raw] for raw in RAW_IDS]
ID_MAP = [RAW_IDS.index(raw) if raw in RAW_IDS else IGNORED for raw in range(34)]

LAYOUT = (
    "leftImg8bit/{train,val}/<city>/*_leftImg8bit.png (leftImg8bit_trainvaltest.zip) and "
    "gtFine/{train,val}/<city>/*_gtFine_labelIds.png (gtFine_trainvaltest.zip)"
)


def _to_id(line: str) -> str:
    """The id of a line in a split list: "aachen/aachen_000000_000019" for a path of an image, or the name alone."""
    name = PurePosixPath(line).name.removesuffix(".png").removesuffix("_leftImg8bit")
    return f"{name.split('_')[0]}/{name}"


def cityscapes(
    data_dir: str | None,
    *,
    labeled: int | None = None,
    splits: str | None = None,
    seed: int = 0,
    on_bad_image: str = "stop",
    streaming: bool = False,
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Loads Cityscapes: train, validation (its val), test without labels if it is there; with `labeled` also `unlabeled`.

    Train ids are read from `*_labelTrainIds.png` where every image has one, and otherwise made from `*_labelIds.png`.

    Args:
        data_dir: the folder with `leftImg8bit/` and `gtFine/`.
        labeled: number of labeled images of train (published: 186, 372, 744, 1488); None for all.
        splits: a folder with the published lists, `<labeled>/labeled.txt` and `unlabeled.txt`, one path
            `leftImg8bit/train/<city>/<name>_leftImg8bit.png` (or name) a line; None makes a split: seeded, nested,
            with every class.
        seed: of the split that is made.
        on_bad_image: "stop" or "skip", if the mask of an image that may be chosen cannot be read.
    """
    root = find_root(data_dir, LAYOUT)

    def images(split: str) -> dict:
        folder = find_folder(root, f"leftImg8bit/{split}", LAYOUT)
        return list_files(folder, LAYOUT, "_leftImg8bit", (".png",))

    def masks(split: str, kind: str) -> dict:
        folder = find_folder(root, f"gtFine/{split}", LAYOUT)
        return list_files(folder, LAYOUT, f"_gtFine_{kind}", MASK_SUFFIXES[:1])

    pictures = {split: images(split) for split in ("train", "val")}
    with_train_ids = all(
        (root / "gtFine" / split / f"{name}_gtFine_labelTrainIds.png").is_file()
        for split, names in pictures.items()
        for name in names
    )
    kind = "labelTrainIds" if with_train_ids else "labelIds"
    label_map = LabelMap(names=NAMES, palette=PALETTE, id_map=None if with_train_ids else ID_MAP)
    rows = {split: match(names, masks(split, kind), LAYOUT) for split, names in pictures.items()}
    made = {"train": rows["train"].values()}
    if labeled is not None:
        made["train"], made["unlabeled"] = semi_supervised(
            rows["train"], labeled, splits, seed, label_map, on_bad_image, _to_id
        )
    made["validation"] = rows["val"].values()
    if (root / "leftImg8bit/test").is_dir():
        made["test"] = [(path, None) for path in images("test").values()]
    return build(made, label_map, streaming)
