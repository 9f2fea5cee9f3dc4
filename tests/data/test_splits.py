"""Labeled and unlabeled parts of a dataset, as published and as drawn."""

import os
import warnings
from pathlib import Path

import datasets
import numpy as np
import pytest

from hf_fst.data import load
from hf_fst.data.splits import FOLDER, nested_order, read_list, read_pair
from tests.data import trees


def write_pair(folder, labeled, unlabeled):
    folder.mkdir(parents=True, exist_ok=True)
    for name, ids in (("labeled", labeled), ("unlabeled", unlabeled)):
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in ids), encoding="utf-8")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def stems(split):
    return [Path(row["image"]["path"]).stem for row in split.cast_column("image", datasets.Image(decode=False))]


def test_the_front_of_the_order_has_every_class_and_the_rest_is_the_permutation():
    ids = [f"i{i}" for i in range(30)]
    presence = np.zeros((30, 4), dtype=bool)
    presence[:, 0] = True
    presence[7, 1] = presence[19, 2] = presence[23, 3] = True  # three classes that one image each has
    for seed in range(5):
        order = nested_order(ids, presence, seed, smallest=4)
        assert sorted(order) == sorted(ids)
        assert {"i7", "i19", "i23"} <= set(order[:4])
        plain = nested_order(ids, presence[:, :1], seed, smallest=1)
        rest = [name for name in plain if name not in ("i7", "i19", "i23")]
        assert order[3:] == rest
    assert nested_order(ids, presence, 0, 4) == nested_order(ids, presence, 0, 4) != nested_order(ids, presence, 1, 4)


def test_a_split_too_small_for_every_class_is_a_warning():
    with pytest.warns(
        UserWarning, match="^2 labeled images cannot hold every class, 3 are needed; some classes have no label.$"
    ):
        nested_order(["a", "b", "c"], np.eye(3), 0, smallest=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nested_order(["a", "b", "c"], np.eye(3), 0, smallest=3)


def test_lists_are_read_as_they_were_written(tmp_path):
    write_pair(tmp_path / "2", ["a", "b"], ["c"])
    assert read_pair(tmp_path / "2") == (["a", "b"], ["c"])
    (tmp_path / "crlf.txt").write_bytes(b"leftImg8bit/a.png\r\n\r\nleftImg8bit/b.png")  # no newline at the end
    assert read_list(tmp_path / "crlf.txt") == ["leftImg8bit/a.png", "leftImg8bit/b.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n \n", "is empty; it must hold one id or path per line."),
        ("a\n../b", "names '../b'; paths must be relative to the dataset and must not contain `..`."),
        ("x/../../b", "names 'x/../../b'; paths must be relative to the dataset and must not contain `..`."),
        ("a\n/etc/b", "names '/etc/b'; paths must be relative to the dataset and must not contain `..`."),
        ("..\\b", "names '..\\\\b'; paths must be relative to the dataset and must not contain `..`."),
        ("C:\\b", "names 'C:\\\\b'; paths must be relative to the dataset and must not contain `..`."),
        ("a\nb\na", "names 'a' twice; keep one of them."),
    ],
)
def test_wrong_lists_are_one_sentence(tmp_path, content, message):
    path = tmp_path / "labeled.txt"
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        read_list(path)
    assert str(caught.value) == f"The split list {path} {message}"


def test_a_missing_list_and_overlapping_lists_are_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        read_list(tmp_path / "no.txt")
    assert str(caught.value) == f"There is no split list {tmp_path}/no.txt; it must hold one id or path per line."
    write_pair(tmp_path, ["a", "b"], ["b"])
    with pytest.raises(ValueError) as caught:
        read_pair(tmp_path)
    assert str(caught.value) == f"{tmp_path} names 'b' as labeled and as unlabeled; keep it in one of the two lists."


def test_cityscapes_reads_published_lists_of_paths_and_of_names(tmp_path):
    raw = trees.cityscapes(tmp_path / "data")
    names = [name.split("/")[1] for name in raw["train"]]
    path = "leftImg8bit/train/{}/{}_leftImg8bit.png"
    for lines in ([path.format(n.split("_")[0], n) for n in names], names):
        write_pair(tmp_path / "lists" / "1", lines[2:3], lines[:2])
        made = load("cityscapes", tmp_path / "data", labeled=1, splits=str(tmp_path / "lists"))
        assert stems(made["train"]) == [f"{names[2]}_leftImg8bit"]
        assert stems(made["unlabeled"]) == [f"{names[0]}_leftImg8bit", f"{names[1]}_leftImg8bit"]
        assert len(made["validation"]) == 2


def test_voc_reads_published_lists_of_ids(tmp_path):
    raw = trees.voc(tmp_path / "data")
    labeled, unlabeled = list(raw["train"])[:2], list(raw["aug"])
    write_pair(tmp_path / "lists", labeled, unlabeled)
    made = load("voc", tmp_path / "data", labeled=2, splits=str(tmp_path / "lists"))
    assert stems(made["train"]) == labeled and stems(made["unlabeled"]) == unlabeled


def test_without_lists_splits_are_made_seeded_and_nested(tmp_path):
    trees.cityscapes(tmp_path, counts=(8, 1, 0))

    def labeled(count, seed=0):
        made = load("cityscapes", tmp_path, labeled=count, seed=seed)
        ours, others = stems(made["train"]), stems(made["unlabeled"])
        assert len(ours) == count and len(others) == 8 - count and not set(ours) & set(others)
        return set(ours)

    assert labeled(2) < labeled(4) < labeled(5)
    assert labeled(4) == labeled(4)
    assert len({frozenset(labeled(4, seed)) for seed in range(4)}) > 1


def test_a_made_split_covers_a_class_that_one_image_alone_has(tmp_path):
    trees.camvid(tmp_path / "data", counts=(12, 1, 1))
    masks = sorted((tmp_path / "data/trainannot").iterdir())
    for i, path in enumerate(masks):
        trees.save_gray(path, np.full((36, 48), 8 if i == 5 else 3))
    for seed in range(4):
        made = load("camvid", tmp_path / "data", labeled=2, seed=seed)
        assert masks[5].stem in stems(made["train"])


def test_classic_voc_splits_take_labeled_images_from_train_txt(tmp_path):
    raw = trees.voc(tmp_path)
    made = load("voc", tmp_path, labeled=2, pool="classic")
    assert set(stems(made["train"])) < set(raw["train"])
    assert len(made["unlabeled"]) == 6
    every = load("voc", tmp_path, labeled=4, pool="classic")
    assert set(stems(every["train"])) == set(raw["train"]) and set(stems(every["unlabeled"])) == set(raw["aug"])
    wide = {stem for seed in range(5) for stem in stems(load("voc", tmp_path, labeled=3, seed=seed)["train"])}
    assert wide & set(raw["aug"])


def test_wrong_numbers_and_lists_are_one_sentence(tmp_path):
    trees.camvid(tmp_path / "data")
    write_pair(tmp_path / "3", ["a"], ["b"])
    write_pair(tmp_path / "1", ["nobody"], ["b"])
    cases = {
        "4 labeled images are asked for, but 1 to 3 can be chosen here.": {"labeled": 4},
        "0 labeled images are asked for, but 1 to 3 can be chosen here.": {"labeled": 0},
        "labeled is '1/3'; give 1/2, 1/4, 1/8, 1/16, or a number of images.": {"labeled": "1/3"},
        f"{tmp_path}/3 lists 1 labeled images, but 3 are asked for; correct either.": {
            "labeled": 3,
            "splits": str(tmp_path),
        },
        f"{tmp_path}/1/labeled.txt names 'nobody', but the dataset has no such image with its mask.": {
            "labeled": 1,
            "splits": str(tmp_path),
        },
    }
    for message, options in cases.items():
        with pytest.raises(ValueError) as caught:
            load("camvid", tmp_path / "data", **options)
        assert str(caught.value) == message
    with pytest.raises(ValueError) as caught:
        load("voc", trees.voc(tmp_path / "voc") and tmp_path / "voc", labeled=2, pool="old")
    assert str(caught.value) == "pool is 'old'; give 'classic' or 'augmented'."


def test_every_pixel_of_camvid_has_its_class(tmp_path):
    raw = trees.camvid(tmp_path)
    made = load("camvid", tmp_path)
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        for row, ids in zip(made[split], raw[name].values(), strict=True):
            assert np.array_equal(np.asarray(row["label"]), np.where(ids == 11, 255, ids))
    names = made["train"].features["label"].names
    assert names == "sky building pole road pavement tree sign fence car pedestrian bicyclist".split()
    assert len(made["train"].features["label"].palette) == 11


def test_the_listed_camvid_splits_are_nested_and_complete():
    pairs = {count: read_pair(FOLDER / "camvid" / str(count)) for count in (22, 45, 91, 183)}
    for count, (labeled, unlabeled) in pairs.items():
        assert len(labeled) == count and len(labeled) + len(unlabeled) == 367
        assert set(labeled) | set(unlabeled) == set(pairs[22][0]) | set(pairs[22][1])
    assert set(pairs[22][0]) < set(pairs[45][0]) < set(pairs[91][0]) < set(pairs[183][0])


@pytest.mark.skipif("HF_FST_CAMVID" not in os.environ, reason="Set HF_FST_CAMVID to the folder of CamVid to run this.")
def test_the_real_camvid_agrees_with_its_listed_splits():
    root = os.environ["HF_FST_CAMVID"]
    made = load("camvid", root, labeled="1/16")
    assert {split: len(rows) for split, rows in made.items()} == {
        "train": 22,
        "unlabeled": 345,
        "validation": 101,
        "test": 233,
    }
    present = np.zeros(256, dtype=bool)
    for row in made["train"]:
        present[np.unique(np.asarray(row["label"]))] = True
    assert present[:11].all() and not present[11:255].any()
