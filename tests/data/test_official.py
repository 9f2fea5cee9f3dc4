"""Cityscapes, GTA5, SYNTHIA and VOC 2012 from tiny trees in the official layouts."""

import datasets
import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as cityscapes_labels

from hf_fst.data import load
from hf_fst.data.cityscapes import COLORS
from tests.data import trees

# The official table, from the authors' own package: raw id (255: license plate, -1 in a byte) -> train id.
TRAIN_ID = {label.id % 256: 255 if label.trainId < 0 else label.trainId for label in cityscapes_labels}
CITYSCAPES_NAMES = [
    label.name for label in sorted(cityscapes_labels, key=lambda l: l.trainId) if 0 <= label.trainId < 255
]
# The published pairs raw id > train id of SYNTHIA; all others are ignored.
SYNTHIA_PAIRS = (
    "3>0 4>1 2>2 21>3 5>4 7>5 15>6 9>7 6>8 16>9 1>10 10>11 17>12 8>13 18>14 19>15 20>16 12>17 11>18".split()
)
VOC_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()


def mapped(ids, table):
    return np.vectorize(table.__getitem__)(ids)


def by_name(split):
    stored = split.cast_column("image", datasets.Image(decode=False))
    return {row["image"]["path"].rsplit("/", 1)[1].rsplit(".", 1)[0]: row for row in stored}


def check(split, expected, table, ending=""):
    rows = by_name(split)
    assert set(rows) == {name.rsplit("/", 1)[-1] + ending for name in expected}
    for name, ids in expected.items():
        label = rows[name.rsplit("/", 1)[-1] + ending]["label"]
        assert np.array_equal(np.asarray(label), mapped(ids, table))


def test_every_pixel_of_cityscapes_has_its_class_from_label_ids(tmp_path):
    raw = trees.cityscapes(tmp_path)
    made = load("cityscapes", tmp_path)
    check(made["train"], raw["train"], TRAIN_ID, "_leftImg8bit")
    check(made["validation"], raw["val"], TRAIN_ID, "_leftImg8bit")
    assert made["test"].column_names == ["image"] and len(made["test"]) == 1
    label = made["train"].features["label"]
    assert label.names == CITYSCAPES_NAMES
    assert label.palette == [list(l.color) for n in CITYSCAPES_NAMES for l in cityscapes_labels if l.name == n]


def test_label_train_ids_are_read_where_every_image_has_them(tmp_path):
    wrong_on_purpose = [0] * 34  # files that differ from what labelIds say, to see which were read
    raw = trees.cityscapes(tmp_path, train_ids=wrong_on_purpose)
    check(
        load("cityscapes", tmp_path)["train"], raw["train"], dict.fromkeys(range(34), 0) | {255: 255}, "_leftImg8bit"
    )
    next((tmp_path / "gtFine/val").rglob("*_labelTrainIds.png")).unlink()
    check(load("cityscapes", tmp_path)["train"], raw["train"], TRAIN_ID, "_leftImg8bit")


@pytest.mark.parametrize("rgb", [False, True])
def test_every_pixel_of_gta5_has_its_class(tmp_path, rgb):
    raw = trees.gta5(tmp_path, colors=COLORS, rgb=rgb)
    made = load("gta5", tmp_path)
    # By color a pole group is a pole, and a plate a car.
    check(made["train"], raw["train"], TRAIN_ID | ({18: 5, 34: 13} if rgb else {34: 255}))
    assert made["train"].features["label"].names == CITYSCAPES_NAMES


def test_the_colors_are_those_of_cityscapes():
    assert {label.id: list(label.color) for label in cityscapes_labels if label.id >= 0} == dict(
        enumerate(COLORS[:34])
    )


def test_every_pixel_of_synthia_has_its_class(tmp_path):
    raw = trees.synthia(tmp_path)
    made = load("synthia", tmp_path)
    table = dict.fromkeys(range(23), 255) | {int(a): int(b) for a, b in (pair.split(">") for pair in SYNTHIA_PAIRS)}
    check(made["train"], raw["train"], table)
    assert made["train"].features["label"].names == CITYSCAPES_NAMES


def test_every_pixel_of_voc_has_its_class_in_both_kinds_of_masks(tmp_path):
    raw = trees.voc(tmp_path)
    made = load("voc", tmp_path)
    same = {i: i for i in range(256)}
    check(made["train"], raw["train"] | raw["aug"], same)
    check(made["validation"], raw["val"], same)
    assert made["train"].features["label"].names == VOC_NAMES
    palette = made["train"].features["label"].palette
    assert palette[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]] and palette[15] == [192, 128, 128]
    alone = trees.voc(tmp_path / "plain", augmented=False)
    check(load("voc", tmp_path / "plain")["train"], alone["train"], same)


def test_voc_takes_trainaug_lists_and_the_folder_above(tmp_path):
    raw = trees.voc(tmp_path / "VOCdevkit" / "VOC2012")
    some = [*raw["train"], *list(raw["aug"])[:1]]
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt").write_text("\n".join(some))
    assert set(by_name(load("voc", tmp_path)["train"])) == set(some)


@pytest.mark.parametrize("name", ["cityscapes", "gta5", "synthia", "voc", "camvid"])
def test_streaming_gives_the_same_rows(tmp_path, name):
    getattr(trees, name)(tmp_path)
    plain, streamed = load(name, tmp_path), load(name, tmp_path, streaming=True)
    assert isinstance(streamed, datasets.IterableDatasetDict)
    assert set(plain) == set(streamed)
    for split in plain:
        assert streamed[split].features == plain[split].features
        for ours, theirs in zip(plain[split], streamed[split], strict=True):
            for column in ours:
                assert np.array_equal(np.asarray(ours[column]), np.asarray(theirs[column]))


def test_images_are_lazy(tmp_path):
    trees.gta5(tmp_path)
    (tmp_path / "images/00001.png").write_text("broken")
    assert len(load("gta5", tmp_path)["train"]) == 4


def test_skipped_files_are_left_out(tmp_path):
    trees.gta5(tmp_path)
    assert set(by_name(load("gta5", tmp_path, skip=["00002"])["train"])) == {"00001", "00003", "00004"}
    with pytest.raises(ValueError) as caught:
        load("gta5", tmp_path, skip=["2"])
    assert str(caught.value) == (f"'2' is in skip, but {tmp_path}/images has no such file; give names without suffix.")


CITYSCAPES_LAYOUT = (
    "leftImg8bit/{train,val}/<city>/*_leftImg8bit.png (leftImg8bit_trainvaltest.zip) and "
    "gtFine/{train,val}/<city>/*_gtFine_labelIds.png (gtFine_trainvaltest.zip)"
)
GTA5_LAYOUT = (
    "images/*.png (01_images.zip to 10_images.zip) and labels/*.png (01_labels.zip to 10_labels.zip) of the same names"
)
SYNTHIA_LAYOUT = "RGB/*.png and GT/LABELS/*.png of the same names (SYNTHIA_RAND_CITYSCAPES.rar)"
VOC_LAYOUT = (
    "JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{train,val}.txt (VOCtrainval_11-May-2012.tar), and for "
    "the augmented set SegmentationClassAug/"
)


def remove(path):
    for child in sorted(path.rglob("*"), reverse=True):
        child.unlink() if child.is_file() else child.rmdir()
    path.rmdir()


@pytest.mark.parametrize(
    ("name", "part", "layout"),
    [
        ("cityscapes", "gtFine/val", CITYSCAPES_LAYOUT),
        ("cityscapes", "leftImg8bit/train", CITYSCAPES_LAYOUT),
        ("gta5", "labels", GTA5_LAYOUT),
        ("gta5", "images", GTA5_LAYOUT),
        ("synthia", "GT/LABELS", SYNTHIA_LAYOUT),
        ("voc", "JPEGImages", VOC_LAYOUT),
        ("voc", "ImageSets/Segmentation", VOC_LAYOUT),
    ],
)
def test_a_missing_part_is_one_sentence_with_the_expected_layout(tmp_path, name, part, layout):
    getattr(trees, name)(tmp_path)
    remove(tmp_path / part)
    with pytest.raises(FileNotFoundError) as caught:
        load(name, tmp_path)
    assert str(caught.value) == f"There is no folder {tmp_path}/{part}; {tmp_path} must hold {layout}."


@pytest.mark.parametrize("name", ["cityscapes", "gta5", "synthia", "voc", "camvid"])
def test_a_wrong_or_no_folder_is_one_sentence(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"^There is no folder {tmp_path}/nowhere; data_dir must hold .+\.$"):
        load(name, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"^data_dir is missing; name the folder that holds .+\.$"):
        load(name)


PARTNER = "give each a partner, or remove it: "


@pytest.mark.parametrize(
    ("name", "gone", "message"),
    [
        (
            "gta5",
            "labels/00003.png",
            "1 of 4 images have no mask, the first is {root}/images/00003.png; " + PARTNER + GTA5_LAYOUT + ".",
        ),
        (
            "synthia",
            "RGB/0000001.png",
            "1 of 4 masks have no image, the first is {root}/GT/LABELS/0000001.png; " + PARTNER + SYNTHIA_LAYOUT + ".",
        ),
        (
            "cityscapes",
            "gtFine/train/bochum/bochum_000001_000019_gtFine_labelIds.png",
            "1 of 4 images have no mask, the first is "
            "{root}/leftImg8bit/train/bochum/bochum_000001_000019_leftImg8bit.png; "
            + PARTNER
            + CITYSCAPES_LAYOUT
            + ".",
        ),
    ],
)
def test_half_unpacked_downloads_name_the_first_missing_file(tmp_path, name, gone, message):
    getattr(trees, name)(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(ValueError) as caught:
        load(name, tmp_path)
    assert str(caught.value) == message.replace("{root}", str(tmp_path))


def test_a_listed_voc_image_without_file_is_one_sentence(tmp_path):
    trees.voc(tmp_path)
    (tmp_path / "JPEGImages/2008_000001.jpg").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load("voc", tmp_path)
    assert str(caught.value) == (
        f"1 of 8 listed images have no image, the first is 2008_000001 (looked for in {tmp_path}/JPEGImages); {tmp_path} "
        f"must hold {VOC_LAYOUT}."
    )


def test_an_empty_folder_is_one_sentence(tmp_path):
    trees.synthia(tmp_path)
    for path in (tmp_path / "RGB").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load("synthia", tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/RGB holds no files *.jpg, *.jpeg, *.png, *.bmp, *.tif, *.tiff, *.webp; {SYNTHIA_LAYOUT} is expected."
    )
