"""Datasets of the Hub and tables on disk: columns, names, masks in bytes."""

import csv
import io
import json
import tarfile

import datasets
import numpy as np
import pandas
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_fst.data import LabelMap, View, load
from hf_fst.data import transforms as T
from hf_fst.errors import UserError
from tests.data import trees

NAMES = ["road", "car", "sky"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def masks_of(split):
    return [np.asarray(row["label"]) for row in split]


def check(made, expected):
    assert made["train"].column_names == ["image", "label"]
    assert made["train"].features["label"].names == NAMES
    rows = list(made["train"])
    assert len(rows) == len(expected)
    for row, ids in zip(rows, expected, strict=True):
        assert row["image"].mode == "RGB" and row["image"].size == ids.shape[::-1]
        assert np.array_equal(np.asarray(row["label"]), ids)


def image_folder(root):
    raw = trees.folder(root / "train", names=tuple(NAMES))["train"]
    (root / "train/id2label.json").unlink()
    with (root / "train/metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_file_name", "label_file_name"])
        writer.writerows([[f"images/{name}.jpg", f"masks/{name}.png"] for name in raw])
    return list(raw.values())


def parquet(root, columns=("image", "label"), feature=None):
    raw = trees.folder(root / "raw", names=tuple(NAMES))["train"]
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: feature or datasets.Image()})
    rows = {
        columns[0]: [(root / f"raw/images/{name}.jpg").read_bytes() for name in raw],
        columns[1]: [(root / f"raw/masks/{name}.png").read_bytes() for name in raw],
    }
    rows = {column: [{"bytes": content, "path": None} for content in values] for column, values in rows.items()}
    (root / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "data/train-00000-of-00001.parquet")
    return list(raw.values())


def web_dataset(root):
    raw = trees.folder(root / "raw", names=tuple(NAMES))["train"]
    (root / "shards").mkdir()
    with tarfile.open(root / "shards/train-0000.tar", "w") as shard:
        for name in raw:
            for source, suffix in ((f"images/{name}.jpg", "jpg"), (f"masks/{name}.png", "png")):
                content = (root / "raw" / source).read_bytes()
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
    return list(raw.values())


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("build", "place"),
    [(image_folder, "."), (parquet, "data"), (web_dataset, "shards")],
    ids=["image folder", "parquet", "web dataset"],
)
def test_image_folders_parquet_and_web_datasets_give_every_pixel(tmp_path, build, place, streaming):
    expected = build(tmp_path / "d")
    check(load("hub", str(tmp_path / "d" / place), names=NAMES, streaming=streaming), expected)


def test_a_parquet_with_label_maps_needs_no_names(tmp_path):
    label_map = LabelMap(names=NAMES, palette=[[1, 1, 1], [2, 2, 2], [3, 3, 3]], id_map=[2, 1, 0])
    raw = parquet(tmp_path, feature=label_map)
    made = load("hub", str(tmp_path / "data"))
    assert made["train"].features["label"] == label_map
    assert np.array_equal(masks_of(made["train"])[0], np.array([2, 1, 0] + [0] * 252 + [255])[raw[0]])


def test_other_column_names_are_found_or_given(tmp_path):
    expected = parquet(tmp_path, columns=("pixel_values", "annotation"))
    check(load("hub", str(tmp_path / "data"), names=NAMES), expected)
    swapped = load("hub", str(tmp_path / "data"), image="annotation", label="pixel_values", names=NAMES)
    assert swapped["train"].column_names == ["image", "label"]


def test_names_come_from_a_list_a_dict_or_a_file_and_ids_are_mapped(tmp_path):
    raw = parquet(tmp_path)
    place = str(tmp_path / "data")
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    for names in (NAMES, {"2": "sky", "0": "road", "1": "car"}, str(tmp_path / "names.json")):
        assert load("hub", place, names=names)["train"].features["label"].names == NAMES
    (tmp_path / "data/id2label.json").write_text(json.dumps(NAMES))
    made = load("hub", place, id_map=[255, 0, 1])
    assert np.array_equal(masks_of(made["train"])[0], np.array([255, 0, 1] + [0] * 252 + [255])[raw[0]])


def test_rows_become_model_inputs(tmp_path):
    image_folder(tmp_path / "d")
    item = View(load("hub", str(tmp_path / "d"), names=NAMES)["train"], T.training(16))[0]
    assert item["pixel_values"].shape == (3, 16, 16) and item["labels"].shape == (16, 16)


def test_images_without_masks_are_unlabeled(tmp_path):
    trees.folder(tmp_path / "d", labeled=False)
    assert load("hub", str(tmp_path / "d" / "images"))["train"].column_names == ["image"]


def test_wrong_input_is_one_sentence(tmp_path):
    parquet(tmp_path, columns=("photo", "label"))
    place = str(tmp_path / "data")
    cases = {
        "data_dir is missing; give the id of a dataset on the Hub or a local path.": (None, {}),
        "The dataset has no column of images (image, pixel_values, img, jpg, jpeg); its columns are photo, label.": (
            place,
            {},
        ),
        "The dataset has no column 'foto'; its columns are photo, label.": (place, {"image": "foto"}),
        "The masks have no class names; give names as a list or as the path of an id2label.json.": (
            place,
            {"image": "photo"},
        ),
        'names must name the ids 0 to n-1, like {"0": "road", "1": "car"} or ["road", "car"].': (
            place,
            {"image": "photo", "names": {0: "a", "two": "b"}},
        ),
    }
    for message, (data_dir, options) in cases.items():
        with pytest.raises(ValueError) as caught:
            load("hub", data_dir, **options)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (pa.array([], pa.binary()), "The files of .* cannot be read"),
        (pa.array([None, None]), "The column 'image' should hold images, but it is empty in every row"),
    ],
)
def test_a_table_without_images_is_one_sentence(tmp_path, column, sentence):
    pq.write_table(pa.table({"image": column}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=sentence):
        load("hub", str(tmp_path))


def test_bytes_may_stand_beside_more_than_a_path(tmp_path):
    trees.folder(tmp_path / "raw", count=1)
    rows = [{"bytes": (tmp_path / "raw/images/scene0.jpg").read_bytes(), "path": "a.jpg", "size": 3}]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"image": pa.array(rows)}), tmp_path / "data/train.parquet")
    image = load("hub", str(tmp_path / "data"))["train"][0]["image"]
    assert image.size == PIL.Image.open(io.BytesIO(rows[0]["bytes"])).size


def test_a_column_of_numbers_is_no_masks(tmp_path):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    trees.folder(tmp_path / "raw", count=1)
    content = (tmp_path / "raw/images/scene0.jpg").read_bytes()
    (tmp_path / "data").mkdir()
    rows = {"image": [{"path": None, "bytes": content}], "label": [1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data/train.parquet")
    with pytest.raises(ValueError) as caught:
        load("hub", str(tmp_path / "data"))
    assert str(caught.value) == (
        "The column 'label' should hold masks (feature Image, or their bytes or paths), but it holds ClassLabel; name "
        "another."
    )


def test_a_dataset_that_does_not_exist_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as caught:
        load("hub", str(tmp_path / "nowhere"))
    message = str(caught.value)
    assert message.startswith(f"There is no dataset '{tmp_path}/nowhere' on the Hub or in a folder (")
    assert message.endswith(").") and "\n" not in message


def table_of(place, image, label, suffix="parquet"):
    """A table as pandas and img2dataset write it, without features of `datasets`."""
    place.mkdir()
    frame = pandas.DataFrame({"image": image, "label": label})
    frame.to_parquet(place / "train.parquet") if suffix == "parquet" else frame.to_csv(
        place / "train.csv", index=False
    )
    return str(place)


@pytest.mark.parametrize("streaming", [False, True])
def test_tables_of_bytes_of_structs_and_of_paths_are_read(tmp_path, streaming):
    raw = trees.folder(tmp_path / "raw", names=tuple(NAMES))["train"]
    files = [
        [tmp_path / f"raw/{kind}/{name}.{end}" for name in raw] for kind, end in (("images", "jpg"), ("masks", "png"))
    ]
    content = [[file.read_bytes() for file in column] for column in files]
    structs = [[{"bytes": each, "path": "x"} for each in column] for column in content]
    places = [
        table_of(tmp_path / "binary", *content),
        table_of(tmp_path / "struct", *structs),
        table_of(tmp_path / "absolute", *([str(file) for file in column] for column in files), "csv"),
        table_of(tmp_path / "relative", *([f"../raw/{f.parent.name}/{f.name}" for f in c] for c in files), "csv"),
    ]
    for place in places:
        made = load("hub", place, names=NAMES, streaming=streaming)["train"]
        rows = list(made)
        assert [
            np.array_equal(np.asarray(row["label"]), ids) for row, ids in zip(rows, raw.values(), strict=True)
        ] == [True] * 4
        if not streaming:
            assert View(made, T.Evaluation())[0]["labels"].shape == (36, 48)


def test_two_splits_of_one_meaning_are_both_kept(tmp_path):
    parquet(tmp_path)
    first = tmp_path / "data/train-00000-of-00001.parquet"
    for split in ("validation", "dev"):
        (tmp_path / f"data/{split}-00000-of-00001.parquet").write_bytes(first.read_bytes())
    made = load("hub", str(tmp_path / "data"), names=NAMES)
    assert sorted(made) in (["dev", "train", "validation"], ["train", "validation"])
    assert sum(len(rows) for rows in made.values()) == 12


def test_jpeg_masks_in_a_table_are_refused_with_their_row(tmp_path):
    raw = trees.folder(tmp_path / "raw", names=tuple(NAMES))["train"]
    images = [(tmp_path / f"raw/images/{name}.jpg").read_bytes() for name in raw]
    made = load("hub", table_of(tmp_path / "d", images, images), names=NAMES)["train"]
    with pytest.raises(ValueError, match=r"^row 2 \(label\) is compressed as JPEG, which changes or rescales the ids"):
        View(made, T.Evaluation())[2]


def test_images_in_base64_are_one_sentence(tmp_path):
    datasets.Dataset.from_dict({"image": ["iVBORw0KGgo" * 500]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="'image' holds a text of 5500 characters, which is no path; turn base64 into"):
        load("hub", str(tmp_path))
