"""Datasets of plain folders, with splits and without, and names of datasets that do not exist."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hf_fst.data import DATASETS, load
from hf_fst.errors import UserError
from tests.data import trees

ONE_NAME = "which are one name in logs; every class needs a name of its own."


def fails(kind, *args, **options):
    with pytest.raises(kind) as caught:
        load("folder", *args, **options)
    return str(caught.value)


def test_two_folders_give_labeled_and_unlabeled_images(tmp_path):
    raw = trees.folder(tmp_path / "a")
    trees.folder(tmp_path / "b", count=3, labeled=False)
    labeled, unlabeled = load("folder", tmp_path / "a"), load("folder", tmp_path / "b", masks=None)
    assert labeled["train"].features["label"].names == ["road", "car", "sky"]
    for row, ids in zip(labeled["train"], raw["train"].values(), strict=True):
        assert np.array_equal(np.asarray(row["label"]), ids)
    assert unlabeled["train"].column_names == ["image"] and len(unlabeled["train"]) == 3
    assert len(load("folder", tmp_path / "b" / "images", images=".", masks=None)["train"]) == 3


def test_folders_named_train_val_and_test_become_splits(tmp_path):
    for i, split in enumerate(("train", "val", "test")):
        trees.folder(tmp_path / split, count=i + 1)
    names = tmp_path / "train" / "id2label.json"
    made = load("folder", tmp_path, id2label=str(names))
    assert {split: len(rows) for split, rows in made.items()} == {"train": 1, "validation": 2, "test": 3}


@pytest.mark.parametrize("inside", [False, True])
def test_capitals_of_folders_do_not_matter(tmp_path, inside):
    for i, split in enumerate(("Train", "Val")):
        trees.folder(tmp_path / "made" / split, count=i + 1)
        for part in ("images", "masks"):
            place = tmp_path / "data" / (Path(part.title(), split) if inside else Path(split, part.upper()))
            place.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "made" / split / part).rename(place)
    made = load("folder", tmp_path / "data", id2label=["road", "car", "sky"])
    assert {split: len(rows) for split, rows in made.items()} == {"train": 1, "validation": 2}


def test_capitals_do_not_matter_anywhere_in_a_path(tmp_path):
    trees.folder(tmp_path / "Data", count=2)
    (tmp_path / "Data" / "id2label.json").rename(tmp_path / "id2label.json")
    assert len(load("folder", tmp_path, images="data/Images", masks="DATA/masks")["train"]) == 2


def test_folders_that_differ_in_capitals_alone_are_taken_by_their_names(tmp_path):
    trees.folder(tmp_path)
    (tmp_path / "Images").mkdir()
    assert len(load("folder", tmp_path)["train"]) == len([*(tmp_path / "images").iterdir()])


def test_an_archive_and_no_folder_at_all_are_one_sentence(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"PK")
    assert "data.zip (it is a file; unpack it if it is an archive); data_dir" in fails(
        UserError, tmp_path / "data.zip"
    )
    assert fails(UserError, "").startswith("data_dir is missing; name the folder")


def test_a_seeded_share_becomes_validation(tmp_path):
    trees.folder(tmp_path, count=8)
    made = load("folder", tmp_path, validation_share=0.25)
    assert len(made["train"]) == 6 and len(made["validation"]) == 2

    def held(seed):
        rows = load("folder", tmp_path, validation_share=0.25, seed=seed)["validation"]
        return [np.asarray(row["image"]).tobytes() for row in rows]

    assert held(0) == held(0)
    assert len({tuple(held(seed)) for seed in range(5)}) > 1


def test_id2label_may_be_a_list(tmp_path):
    trees.folder(tmp_path)
    (tmp_path / "id2label.json").write_text('["x", "y", "z"]')
    assert load("folder", tmp_path)["train"].features["label"].names == ["x", "y", "z"]


def test_names_may_stand_in_a_text_file_one_in_each_line(tmp_path):
    trees.folder(tmp_path)
    (tmp_path / "names.TXT").write_text("# ours\n__ignore__\nroad\n\n  night sky \ncar:9,0,9::\n", encoding="utf-8")
    label_map = load("folder", tmp_path, id2label=str(tmp_path / "names.TXT"))["train"].features["label"]
    assert label_map.names == ["road", "night sky", "car"]


def test_missing_folders_and_files_are_one_sentence(tmp_path):
    trees.folder(tmp_path)
    (tmp_path / "masks").rename(tmp_path / "elsewhere")
    assert fails(FileNotFoundError, tmp_path) == (
        f"There is no folder {tmp_path}/masks; {tmp_path} must hold images/ and masks/ with files of the same stems."
    )
    for part in ("Images/train", "Images/val", "Masks/train"):
        (tmp_path / "split" / part).mkdir(parents=True)
    words = f"There is no folder {tmp_path}/split/Masks/val; {tmp_path}/split must hold images/ and masks/ with files"
    assert fails(FileNotFoundError, tmp_path / "split", id2label=["a", "b"]).startswith(words)
    (tmp_path / "id2label.json").unlink()
    assert fails(FileNotFoundError, tmp_path, masks="elsewhere") == (
        f'There is no file {tmp_path}/id2label.json; it must hold the class names, {{"0": "road", "1": "car"}} or '
        '["road", "car"].'
    )


def test_mismatched_and_doubled_stems_are_one_sentence(tmp_path):
    trees.folder(tmp_path)
    (tmp_path / "masks/scene1.png").rename(tmp_path / "masks/scene9.png")
    assert fails(ValueError, tmp_path) == (
        f"1 of 4 images have no mask, the first is {tmp_path}/images/scene1.jpg, and 1 of 4 masks have no image, the "
        f"first is {tmp_path}/masks/scene9.png; give each a partner, or remove it: images/ and masks/ with files of "
        "the same stems (unlabeled images have a folder of their own)."
    )
    (tmp_path / "images/scene1.png").write_bytes(b"")
    assert fails(ValueError, tmp_path) == (
        f"{tmp_path}/images/scene1.jpg and scene1.png have the same name without suffix; keep one of them."
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))."),
        ('{"1": "a"}', 'must name the ids 0 to n-1, like {"0": "road", "1": "car"} or ["road", "car"].'),
        (
            '["a", 1, false]',
            'must name the ids 0 to n-1, like {"0": "road", "1": "car"} or ["road", "car"]; '
            "it is ['a', 1, False], so put names such as no, on and 1 in quotes.",
        ),
        ("[]", 'must name the ids 0 to n-1, like {"0": "road", "1": "car"} or ["road", "car"].'),
        ('{"0": "a", "1": "b", "1": "c"}', "has a key twice in {0, 1, 1}; keep one of them."),
        ('["caf\u00e9", "cafe\u0301"]', f"names classes 'caf\u00e9' and 'cafe\u0301', {ONE_NAME}"),
        (json.dumps(["x"] * 256), "names 256 classes, but 255 is the most (255 means ignored)."),
    ],
)
def test_wrong_class_names_are_one_sentence(tmp_path, content, message):
    trees.folder(tmp_path)
    (tmp_path / "id2label.json").write_text(content)
    assert fails(ValueError, tmp_path) == f"{tmp_path}/id2label.json {message}"


def test_wrong_shares_are_one_sentence(tmp_path):
    trees.folder(tmp_path)
    assert fails(ValueError, tmp_path, validation_share=1.0) == (
        "validation_share is 1.0, but it must be at least 0 and less than 1."
    )
    assert fails(ValueError, tmp_path, validation_share=0.1) == (
        "validation_share 0.1 of 4 images is less than one image; give a larger share."
    )


def test_unknown_datasets_and_options_are_one_sentence(tmp_path):
    with pytest.raises(ValueError) as caught:
        load("cityscape")
    assert str(caught.value) == "There is no dataset 'cityscape'; did you mean 'cityscapes'?"
    with pytest.raises(ValueError) as caught:
        load("xyz")
    assert str(caught.value) == f"There is no dataset 'xyz'; use one of {', '.join(sorted(DATASETS))}."
    with pytest.raises(ValueError) as caught:
        load("gta5", tmp_path, labelled=3)
    assert str(caught.value) == "The dataset 'gta5' has no option 'labelled'; it has skip."


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("images", 3, "images of the dataset 'folder' is 3; give text."),
        ("mask_suffix", True, "mask_suffix of the dataset 'folder' is True; give text."),
        ("nested", "no", "nested of the dataset 'folder' is 'no'; give true or false."),
        ("validation_share", "50%", "validation_share of the dataset 'folder' is '50%'; give a number."),
        ("validation_share", True, "validation_share of the dataset 'folder' is True; give a number."),
        ("seed", 0.5, "seed of the dataset 'folder' is 0.5; give a whole number."),
        ("seed", -1, "seed is -1, but at least 0 is needed."),
        ("colors", "red.json", "red.json cannot be read (No such file or directory); give the path of a text file."),
        ("id_map", {0: 0.5}, "id_map is {0: 0.5}; give the train id (or 255) of each raw id, as a list or as {raw "),
    ],
)
def test_options_of_another_type_are_one_sentence(tmp_path, option, value, message):
    trees.folder(tmp_path)
    assert message in fails(ValueError, tmp_path, **{option: value})
    assert load("folder", tmp_path, images=Path("images"), validation_share=0, seed=np.int64(3))["train"]


@pytest.mark.parametrize("names", [["road", "car"], {0: "road", 1: "car"}, {"1": "car", "0": "road"}])
def test_class_names_may_be_given_themselves(tmp_path, names):
    trees.folder(tmp_path, names=("road", "car"))
    (tmp_path / "id2label.json").unlink()
    assert load("folder", str(tmp_path), id2label=names)["train"].features["label"].names == ["road", "car"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({1: "road", 2: "car"}, "^id2label must name the ids 0 to n-1"),
        ({0: "road", "0": "car"}, "^id2label must name the ids 0 to n-1"),
        (None, "^id2label of the dataset 'folder' is None; give text or a list or a mapping."),
        ("_classes.csv", "_classes.csv is neither JSON nor a .txt file; give the class names in either"),
    ],
)
def test_names_with_a_gap_or_of_another_kind_are_refused_wherever_they_stand(tmp_path, names, message):
    trees.folder(tmp_path)
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n0, road\n1, car\n")
    with pytest.raises(UserError, match=message):
        load("folder", str(tmp_path), id2label=names)


@pytest.mark.parametrize("inside", [False, True])
def test_test_images_without_masks_have_no_labels_and_are_named(tmp_path, inside):
    for split in ("train", "test"):
        trees.folder(tmp_path / "made" / split, labeled=split == "train")
    for part, split in (("images", "train"), ("masks", "train"), ("images", "test")):
        place = tmp_path / "data" / (Path(part, split) if inside else Path(split, part))
        place.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / split / part).rename(place)
    place = "images/test" if inside else "test"
    with pytest.warns(UserWarning, match=f"{place} .its images have no masks, so they are not scored"):
        made = load("folder", tmp_path / "data", id2label=["road", "car", "sky"])
    assert "label" in made["train"].features and made["test"].column_names == ["image"]
    place = tmp_path / "data" / place
    place.rename(place.with_name("val"))
    assert "There is no folder" in fails(UserError, tmp_path / "data", id2label=["road", "car", "sky"])


def test_masks_of_a_split_without_images_are_named(tmp_path):
    trees.folder(tmp_path / "made")
    for part in ("images/train", "masks/train", "masks/testing"):
        shutil.copytree(tmp_path / "made" / part.partition("/")[0], tmp_path / "data" / part)
    with pytest.warns(UserWarning, match="masks/testing .not in the folder of a split"):
        load("folder", tmp_path / "data", id2label=["road", "car", "sky"])
