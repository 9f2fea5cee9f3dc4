"""What a `LabelMap` decodes it also encodes: ids stay what they are through every way `datasets` stores them."""
# ruff: noqa: E501  one way a line

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_fst.data import DataError, LabelMap, View
from hf_fst.data.cityscapes import COLORS, ID_MAP, NAMES
from hf_fst.data.synthia import LABELS as SYNTHIA
from tests.data.trees import save_png16

RAW = np.array([[0, 1, 2, 3], [3, 2, 255, 0]], np.uint8)
TRAIN = np.array([[255, 0, 1, 2], [2, 1, 255, 255]], np.uint8)
MAPPED = LabelMap(names=["a", "b", "c"], id_map=[255, 0, 1, 2])


@pytest.fixture
def base(tmp_path):
    PIL.Image.fromarray(RAW).save(tmp_path / "m.png")
    PIL.Image.new("RGB", (4, 2)).save(tmp_path / "i.png")
    rows = {"image": [str(tmp_path / "i.png")] * 2, "label": [str(tmp_path / "m.png")] * 2}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(image=datasets.Image(), label=MAPPED))


def ids(dataset):
    return [np.asarray(row["label"]).tolist() for row in dataset]


def anew(row):
    return {"label": PIL.Image.fromarray(np.asarray(row["label"]))}


def through_parquet(dataset, tmp_path):
    dataset.map(anew).to_parquet(tmp_path / "m.parquet")
    return datasets.Dataset.from_parquet(str(tmp_path / "m.parquet"), cache_dir=str(tmp_path / "cache"))


def through_disk(dataset, tmp_path):
    dataset.map(anew).save_to_disk(tmp_path / "disk")
    return datasets.load_from_disk(tmp_path / "disk")


WAYS = {
    "map, the same image": lambda d, _: d.map(lambda row: {"label": row["label"]}),
    "map, a new image": lambda d, _: d.map(anew),
    "map, an array": lambda d, _: d.map(lambda row: {"label": np.asarray(row["label"])}),
    "map, an array of int64": lambda d, _: d.map(lambda row: {"label": np.asarray(row["label"]).astype(np.int64)}),
    "map, a batch of images": lambda d, _: d.map(lambda rows: {"label": rows["label"]}, batched=True),
    "map, a batch of arrays": lambda d, _: d.map(lambda rows: {"label": [np.asarray(x) for x in rows["label"]]}, batched=True),
    "map, its features": lambda d, _: d.map(anew, features=d.features),
    "map twice": lambda d, _: d.map(anew).map(anew),
    "map, formatted": lambda d, _: d.with_format("numpy").map(lambda row: {"label": row["label"]}).with_format(None),
    "map in two processes": lambda d, _: d.map(anew, num_proc=2),
    "from_list of rows": lambda d, _: datasets.Dataset.from_list([d[0], d[1]], features=d.features),
    "from_list of resized rows": lambda d, _: datasets.Dataset.from_list(
        [{**row, "label": row["label"].resize((4, 2), 0)} for row in d], features=d.features
    ),
    "from_dict of arrays": lambda d, _: datasets.Dataset.from_dict(
        {"image": [row["image"] for row in d], "label": [np.asarray(row["label"]) for row in d]}, features=d.features
    ),
    "from_generator": lambda d, _: datasets.Dataset.from_generator(lambda: iter(list(d)), features=d.features),
    "cast": lambda d, _: d.map(anew).cast(d.features),
    "cast_column": lambda d, _: d.map(anew).cast_column("label", MAPPED),
    "save_to_disk": through_disk,
    "parquet": through_parquet,
    "filter and shuffle": lambda d, _: d.map(anew).filter(lambda row: True).shuffle(seed=0),
    "sort and flatten": lambda d, _: d.map(anew).select([1, 0]).flatten_indices(),
    "streaming": lambda d, _: d.to_iterable_dataset(),
    "streaming and map": lambda d, _: d.to_iterable_dataset().map(lambda row: {"label": row["label"]}, features=d.features),
    "streaming, map and arrays": lambda d, _: d.to_iterable_dataset().map(
        lambda row: {"label": np.asarray(row["label"])}, features=d.features
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_ids_stay_through(base, tmp_path, way):
    assert ids(base) == [TRAIN.tolist()] * 2
    made = WAYS[way](base, tmp_path)
    assert ids(made) == [TRAIN.tolist()] * 2
    if isinstance(made, datasets.Dataset):
        assert View(made, lambda *both: both)[0]["labels"].tolist() == TRAIN.tolist()


def test_mapped_and_untouched_rows_stay_right_side_by_side(base):
    both = datasets.concatenate_datasets([base, base.map(anew)])
    mixed = datasets.interleave_datasets([base.map(anew), base])
    wider = datasets.concatenate_datasets([base.map(anew), base.map(lambda row: {"x": 1})])
    assert all(found == TRAIN.tolist() for made in (both, mixed, wider) for found in ids(made))


def test_another_feature_reads_the_raw_ids_of_mapped_rows_too(base):
    plain = LabelMap(names=["void", "a", "b", "c"])
    for made in (base, base.map(anew)):
        found = np.array(ids(made.cast_column("label", plain))[0])
        assert found[0].tolist()[1:] == [1, 2, 3]


def test_masks_of_colors_and_of_first_channels_come_back_too(tmp_path):
    save_png16(tmp_path / "s.png", np.dstack([[[3, 4], [10, 1]], np.full((2, 2), 700), np.zeros((2, 2))]))
    PIL.Image.fromarray(np.array([COLORS[7], COLORS[26]], np.uint8)[None]).save(tmp_path / "c.png")
    colors = LabelMap(names=NAMES, id_map=ID_MAP, colors=COLORS)
    for label_map, file in ((SYNTHIA, "s.png"), (colors, "c.png")):
        made = datasets.Dataset.from_dict(
            {"label": [str(tmp_path / file)]}, features=datasets.Features(label=label_map)
        )
        assert ids(made.map(anew)) == ids(made) == ids(made.map(anew).map(anew))


def test_ids_that_have_no_raw_id_or_no_class_are_one_sentence(base):
    merged = base.cast_column("label", LabelMap(names=["a", "b", "never"], id_map=[255, 0, 1, 1]))
    with pytest.raises(DataError, match="holds train id 2, which no raw id"):
        merged.map(lambda row: {"label": np.full((2, 4), 2, np.uint8)})
    with pytest.raises(DataError, match="holds 7 to 7, but train ids .* from 0 to 2"):
        base.map(lambda row: {"label": np.full((2, 4), 7, np.uint8)})


def test_pixels_without_a_sign_of_what_their_ids_are_are_one_sentence(base):
    def make(image):
        return datasets.Dataset.from_dict({"label": [image]}, features=datasets.Features(label=MAPPED))

    with pytest.raises(DataError, match="may hold the ids of a file or train ids"):
        make(PIL.Image.fromarray(np.array([[1, 2]], np.uint8)))
    assert ids(make(PIL.Image.fromarray(np.array([[1, 3]], np.uint8)))) == [[[0, 2]]]  # 3 is no train id
    assert ids(make(PIL.Image.fromarray(np.array([[255, 255]], np.uint8)))) == [[[255, 255]]]


@pytest.mark.parametrize(
    "labels", [TRAIN.astype(np.float32), TRAIN[None], np.where(TRAIN == 255, -100, TRAIN.astype(int))]
)
def test_whole_numbers_of_any_type_and_shape_are_train_ids(base, labels):
    made = datasets.Dataset.from_dict({"label": [labels]}, features=datasets.Features(label=MAPPED))
    assert ids(made) == [TRAIN.tolist()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["a", "b", "a"]}, "names classes 'a' and 'a', which are one name in logs"),
        ({"names": ["traffic light", "traffic_light"]}, "names classes 'traffic light' and 'traffic_light'"),
        ({"names": ["a", " "]}, "has an empty class name"),
        ({"names": ["a"], "id_map": [0, 1]}, "id_map has the train id 1, but the 1 class names have 0 to 0"),
        ({"names": ["a"], "id_map": {"x": 0}}, "give the train id"),
        ({"names": ["a"], "id_map": {300: 0}}, "all of 0 to 255"),
        ({"names": ["a"], "orientation": "left"}, "give 'upright', 'stored' or None"),
    ],
)
def test_wrong_names_and_maps_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        LabelMap(**options)


def test_a_map_of_256_ids_says_what_255_is(tmp_path):
    PIL.Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "m.png")
    stored = {"path": str(tmp_path / "m.png"), "bytes": None}
    binary = LabelMap(names=["background", "building"], id_map={0: 0, 255: 1})
    assert np.asarray(binary.decode_example(stored)).tolist() == [[0, 1]]
    PIL.Image.fromarray(np.array([[0, 7]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"out of range \(7\)"):
        binary.decode_example(stored)
