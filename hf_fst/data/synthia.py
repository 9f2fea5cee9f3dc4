"""`synthia`: SYNTHIA-RAND-CITYSCAPES (Ros et al. 2016), 9400 rendered images of 1280 x 760."""

from __future__ import annotations

import datasets

from hf_fst.data.cityscapes import NAMES, PALETTE
from hf_fst.data.files import build, find_root, paired
from hf_fst.data.labels import IGNORED, LabelMap

LAYOUT = "RGB/*.png and GT/LABELS/*.png of the same names (SYNTHIA_RAND_CITYSCAPES.rar)"
# Raw ids: 0 void, 1 sky, 2 building, 3 road, 4 sidewalk, 5 fence, 6 vegetation, 7 pole, 8 car, 9 traffic sign, 10
# person, 11 bicycle, 12 motorcycle, 13 parking slot, 14 road work, 15 traffic light, 16 terrain, 17 rider, 18 truck,
# 19 bus, 20 train, 21 wall, 22 lane marking.
X = IGNORED
ID_MAP = [X, 10, 2, 0, 1, 4, 8, 5, 13, 7, 11, 18, 17, X, X, 6, 9, 12, 14, 15, 16, 3, X]
LABELS = LabelMap(names=NAMES, palette=PALETTE, id_map=ID_MAP, first_channel=True)


def synthia(
    data_dir: str | None, *, skip: list[str] | tuple[str, ...] = (), streaming: bool = False
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Loads SYNTHIA, all of it as train, with the 19 classes of Cityscapes (16 are evaluated).

    Masks are the RGB files of 16 bits under `GT/LABELS`, whose first channel holds the class.

    Args:
        data_dir: the folder with `RGB/` and `GT/LABELS/`.
        skip: names without suffix to leave out.
    """
    rows = paired(find_root(data_dir, LAYOUT), "RGB", "GT/LABELS", LAYOUT, skip=skip)
    return build({"train": rows.values()}, LABELS, streaming)
