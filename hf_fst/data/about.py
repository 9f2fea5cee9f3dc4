"""What is known about each dataset without its files: its classes, and what a model card says about it."""

from __future__ import annotations

from dataclasses import dataclass

from hf_fst.data.camvid import NAMES as CAMVID
from hf_fst.data.cityscapes import NAMES as CITYSCAPES
from hf_fst.data.street.dataset import NAMES as STREET
from hf_fst.data.voc import NAMES as VOC


@dataclass(frozen=True)
class About:
    """A dataset, as a model card describes it.

    Args:
        title: display name.
        classes: names of its classes; None if they come with the files.
        license: of the data, if it has one.
        source: URL of its home page.
        note: a sentence about its limitations.
    """

    title: str
    classes: list[str] | None = None
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
