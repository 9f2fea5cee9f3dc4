"""`gta5`: Playing for Data (Richter et al. 2016), 24966 rendered images with the classes of Cityscapes."""

from __future__ import annotations

import datasets

from hf_fst.data.cityscapes import COLORS, ID_MAP, NAMES, PALETTE
from hf_fst.data.files import build, find_root, paired
from hf_fst.data.labels import IGNORED, LabelMap

LAYOUT = (
    "images/*.png (01_images.zip to 10_images.zip) and labels/*.png (01_labels.zip to 10_labels.zip) of the same names"
)
# The indices of the palette are Cityscapes ids, and 34 for the license plate.
LABELS = LabelMap(names=NAMES, palette=PALETTE, id_map=[*ID_MAP, IGNORED], colors=COLORS)


def gta5(
    data_dir: str | None, *, skip: list[str] | tuple[str, ...] = (), streaming: bool = False
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Loads GTA5, all of it as train. Masks are palette images whose indices are Cityscapes ids, or RGB in those colors.

    Args:
        data_dir: the folder with `images/` and `labels/`.
        skip: names without suffix to leave out, such as pairs whose sizes differ.
    """
    rows = paired(find_root(data_dir, LAYOUT), "images", "labels", LAYOUT, skip=skip)
    return build({"train": rows.values()}, LABELS, streaming)
