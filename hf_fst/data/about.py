"""What is known about each dataset without its files: its classes and their colors, and what a model card says of it."""

from __future__ import annotations

from dataclasses import dataclass

from hf_fst.data.camvid import LABELS
from hf_fst.data.cityscapes import NAMES, PALETTE
from hf_fst.data.street import dataset as street
from hf_fst.data.voc import LABELS as VOC_LABELS

CAMVID, VOC = (dict(zip(labels.names, labels.palette, strict=True)) for labels in (LABELS, VOC_LABELS))
CITYSCAPES, STREET = dict(zip(NAMES, PALETTE, strict=True)), dict(zip(street.NAMES, street.PALETTE, strict=True))


@dataclass(frozen=True)
class About:
    """A dataset, as a model card describes it. `classes` has the color [r, g, b] of each class, by name; None if they
    come with the files."""

    title: str
    classes: dict[str, list[int]] | None = None
    license: str | None = None
    source: str | None = None
    note: str | None = None


ABOUT = {
    "street": About(
        "street (drawn by hf_fst)",
        STREET,
        "Apache-2.0",
        note="its scenes are drawn, in both looks; weights trained on them know nothing of photographs.",
    ),
    "camvid": About("CamVid", CAMVID, "CC BY-NC 4.0", "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"),
    "cityscapes": About(
        "Cityscapes",
        CITYSCAPES,
        "non-commercial purposes only, terms on its page",
        "https://www.cityscapes-dataset.com",
    ),
    "gta5": About("GTA5", CITYSCAPES, None, "https://download.visinf.tu-darmstadt.de/data/from_games/"),
    "synthia": About("SYNTHIA-RAND-CITYSCAPES", CITYSCAPES, "CC BY-NC-SA 3.0", "https://synthia-dataset.net"),
    "voc": About(
        "PASCAL VOC 2012",
        VOC,
        "images under Flickr's terms of use",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    ),
    "folder": About("own images"),
    "hub": About("own images"),
}
