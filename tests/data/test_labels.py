"""The label feature: masks of every kind become class ids, or one sentence that names the file."""

import re

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader

from hf_fst.data import DataError, LabelMap, View, collate
from hf_fst.data.folders import read_id2label
from hf_fst.data.images import MAX_SIDE, decode_pixels
from hf_fst.data.labels import id_list
from hf_fst.errors import UserError
from tests.data.trees import save_gray, save_palette, save_png16

IDS = np.array([[0, 1, 2], [2, 255, 0]], dtype=np.uint8)


def stored(path):
    return {"path": str(path), "bytes": None}


def dataset(paths, label_map, column="label"):
    return datasets.Dataset.from_dict(
        {column: [str(p) for p in paths]}, features=datasets.Features({column: label_map})
    )


def test_gray_palette_and_16_bit_masks_decode_to_the_same_ids(tmp_path):
    save_gray(tmp_path / "gray.png", IDS)
    save_palette(tmp_path / "palette.png", IDS, np.random.default_rng(0).integers(0, 256, (256, 3)))
    PIL.Image.fromarray(IDS.astype(np.uint16)).save(tmp_path / "gray16.png")
    for name in ("gray", "palette", "gray16"):
        mask = LabelMap(names=["a", "b", "c"]).decode_example(stored(tmp_path / f"{name}.png"))
        assert mask.mode == "L"
        assert np.array_equal(np.asarray(mask), IDS)


def test_a_binary_mask_holds_the_ids_0_and_1(tmp_path):
    PIL.Image.fromarray(np.array([[True, False]])).save(tmp_path / "binary.png")
    assert np.asarray(LabelMap(names=["a", "b"]).decode_example(stored(tmp_path / "binary.png"))).tolist() == [[1, 0]]


def test_the_id_map_turns_raw_ids_into_train_ids(tmp_path):
    save_gray(tmp_path / "m.png", IDS)
    mask = LabelMap(names=["a", "b"], id_map=[255, 1, 0]).decode_example(stored(tmp_path / "m.png"))
    assert np.asarray(mask).tolist() == [[255, 1, 0], [0, 255, 255]]


def test_a_map_onto_other_classes_keeps_what_is_ignored_and_what_is_unknown(tmp_path):
    old = LabelMap(names=["a", "b", "c"], palette=[[1, 1, 1], [2, 2, 2], [3, 3, 3]], id_map=[1, 255, 2, None, 0])
    new = old.onto(["z", "y"], {"b": "y", "c": "z", "a": "y"})
    assert (new.names, new.palette, old.names) == (["z", "y"], [[3, 3, 3], [1, 1, 1]], ["a", "b", "c"])
    save_gray(tmp_path / "m.png", np.array([[0, 1, 2, 4, 255]]))
    assert np.asarray(new.decode_example(stored(tmp_path / "m.png"))).tolist() == [[1, 255, 0, 1, 255]]
    assert LabelMap(names=["a", "b"]).onto(["b"], {"b": "b"}).id_map == [255, 0]
    save_gray(tmp_path / "far.png", np.array([[3]]))
    assert "far.png has label ids out of range (3)" in fails(tmp_path / "far.png", new)


def test_rgb_masks_are_read_by_color_and_the_first_of_equal_colors_wins(tmp_path):
    colors = [[1, 2, 3], [1, 2, 3], [200, 0, 9]]
    pixels = np.array(colors, dtype=np.uint8)[[[2, 0], [1, 2]]]
    PIL.Image.fromarray(pixels).save(tmp_path / "m.png")
    label_map = LabelMap(names=["a", "b", "c"], colors=colors)
    assert np.asarray(label_map.decode_example(stored(tmp_path / "m.png"))).tolist() == [[2, 0], [0, 2]]


def test_the_first_channel_of_a_16_bit_png_keeps_ids_above_the_low_byte_out(tmp_path):
    save_png16(tmp_path / "m.png", np.array([[[3, 700, 0], [1, 2, 0]]]))
    label_map = LabelMap(names=["a", "b", "c", "d"], first_channel=True)
    assert np.asarray(label_map.decode_example(stored(tmp_path / "m.png"))).tolist() == [[3, 1]]
    save_png16(tmp_path / "far.png", np.array([[[256, 0, 0], [1, 2, 0]]]))  # the low byte alone would be 0
    with pytest.raises(DataError, match=r"far\.png has label ids out of range \(256\): 0 to 3 and 255"):
        label_map.decode_example(stored(tmp_path / "far.png"))


def test_the_feature_survives_select_map_shuffle_concatenation_and_streaming(tmp_path):
    for i in range(3):
        save_gray(tmp_path / f"{i}.png", IDS)
    label_map = LabelMap(names=["a", "b"], palette=[[1, 2, 3], [4, 5, 6]], id_map=[0, 1, 255])
    made = dataset([tmp_path / f"{i}.png" for i in range(3)], label_map)
    expected = [[0, 1, 255], [255, 255, 0]]
    changed = [
        made.select([2, 0]),
        made.shuffle(seed=0),
        made.map(lambda row: {"more": 1}),
        datasets.concatenate_datasets([made, made]),
        made.to_iterable_dataset(),
    ]
    for other in changed:
        assert other.features["label"] == label_map
        assert np.asarray(next(iter(other))["label"]).tolist() == expected


def test_the_feature_and_the_masks_survive_parquet(tmp_path):
    save_gray(tmp_path / "m.png", IDS)
    label_map = LabelMap(names=["a", "b"], id_map=[0, 1, 255])
    made = dataset([tmp_path / "m.png"], label_map)
    embedded = made.with_format("arrow").map(datasets.table.embed_table_storage, batched=True).with_format(None)
    embedded.to_parquet(tmp_path / "m.parquet")
    (tmp_path / "m.png").unlink()
    read = datasets.Dataset.from_parquet(str(tmp_path / "m.parquet"), cache_dir=str(tmp_path / "cache"))
    assert read.features["label"] == label_map
    assert np.asarray(read[0]["label"]).tolist() == [[0, 1, 255], [255, 255, 0]]


def fails(path, label_map=None):
    with pytest.raises(DataError) as caught:
        (label_map or LabelMap(names=["a", "b"])).decode_example(stored(path))
    return str(caught.value)


def test_ids_out_of_range_name_the_file(tmp_path):
    save_gray(tmp_path / "m.png", np.array([[0, 2, 7, 255]]))
    assert fails(tmp_path / "m.png") == (
        f"{tmp_path}/m.png has label ids out of range (2, 7): 0 to 1 and 255 (ignored) are accepted; correct the "
        "mask or the class names, or give an id_map, the train id or 255 of each raw id."
    )
    partial = LabelMap(names=["a", "b"], id_map={2: 0, 7: 255})
    assert "has label ids out of range (0): those of id_map and 255 (ignored) are" in fails(
        tmp_path / "m.png", partial
    )
    PIL.Image.fromarray(np.array([[0, 300]], dtype=np.uint16)).save(tmp_path / "wide.png")
    assert "wide.png has label ids out of range (300)" in fails(tmp_path / "wide.png")
    PIL.Image.fromarray(np.array([[0, -5]], dtype=np.int32)).save(tmp_path / "minus.tif")
    assert "minus.tif has label ids out of range (-5)" in fails(tmp_path / "minus.tif")


def test_rgb_masks_where_ids_are_expected_are_one_sentence(tmp_path):
    PIL.Image.fromarray(np.full((2, 2, 3), (0, 0, 9), dtype=np.uint8)).save(tmp_path / "m.png")
    assert fails(tmp_path / "m.png") == (
        f"{tmp_path}/m.png is a color image (RGB), but a mask holds one class id per pixel, as a gray image or as a "
        "palette image whose indices are the ids; convert it, or give the color of each id as `colors`, in a recipe "
        "under dataset_options, in Python to load() or LabelMap."
    )


def test_a_palette_image_whose_indices_are_no_ids_is_one_sentence(tmp_path):
    quantized = PIL.Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).quantize(16)
    quantized.save(tmp_path / "m.png")
    assert f"{tmp_path}/m.png has label ids out of range (2, 3, 4, 5, 6, ...): 0 to 1" in fails(tmp_path / "m.png")


def test_unknown_colors_and_gray_files_for_first_channel_are_one_sentence(tmp_path):
    PIL.Image.fromarray(np.full((2, 2, 3), 9, dtype=np.uint8)).save(tmp_path / "m.png")
    label_map = LabelMap(names=["a"], colors=[[0, 0, 0]])
    assert fails(tmp_path / "m.png", label_map) == (
        f"{tmp_path}/m.png has the color (9, 9, 9), which belongs to no class; correct the mask or `colors`."
    )
    save_gray(tmp_path / "g.png", IDS)
    assert "g.png is a L image, but the class id is expected in the first channel of an RGB image" in fails(
        tmp_path / "g.png", LabelMap(names=["a"], first_channel=True)
    )


@pytest.mark.parametrize("first_channel", [False, True])
def test_a_truncated_png_is_one_sentence(tmp_path, first_channel):
    save_png16(tmp_path / "m.png", np.random.default_rng(0).integers(0, 2, (40, 40, 3)))
    content = (tmp_path / "m.png").read_bytes()
    (tmp_path / "m.png").write_bytes(content[: len(content) // 2])
    message = fails(tmp_path / "m.png", LabelMap(names=["a", "b"], first_channel=first_channel))
    assert re.fullmatch(rf"{tmp_path}/m\.png is damaged \(.+\); replace it or remove it from the dataset\.", message)
    assert "\n" not in message


def test_files_that_are_no_images_or_missing_are_one_sentence(tmp_path):
    (tmp_path / "m.png").write_text("hello")
    assert fails(tmp_path / "m.png") == (
        f"{tmp_path}/m.png is not an image; replace it or remove it from the dataset."
    )
    assert fails(tmp_path / "gone.png") == (
        f"{tmp_path}/gone.png cannot be read (No such file or directory); check whether the dataset was moved."
    )


@pytest.mark.parametrize("first_channel", [False, True])
def test_a_70000_pixel_wide_image_is_one_sentence(tmp_path, first_channel):
    save_png16(tmp_path / "m.png", np.zeros((2, 70_000, 3)))
    assert MAX_SIDE == 32_768
    expected = f"{tmp_path}/m.png is 70000 x 2 pixels, but a side may have at most 32768; cut it into tiles."
    assert fails(tmp_path / "m.png", LabelMap(names=["a"], first_channel=first_channel)) == expected
    with pytest.raises(DataError, match="70000 x 2 pixels"):
        decode_pixels(stored(tmp_path / "m.png"))


def test_an_image_of_too_large_an_area_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 3)
    save_gray(tmp_path / "m.png", np.zeros((4, 4)))
    message = fails(tmp_path / "m.png")
    assert message.startswith(f"{tmp_path}/m.png has too many pixels") and "\n" not in message


def test_errors_in_workers_reach_the_user_as_the_same_sentence(tmp_path):
    for i in range(2):
        PIL.Image.fromarray(np.zeros((2, 4, 3), dtype=np.uint8)).save(tmp_path / f"{i}.jpg")
        save_gray(tmp_path / f"{i}.png", np.array([[0, 9, 0, 0], [0, 0, 0, 0]]))
    features = datasets.Features(image=datasets.Image(), label=LabelMap(names=["a"]))
    columns = {
        "image": [str(tmp_path / f"{i}.jpg") for i in range(2)],
        "label": [str(tmp_path / f"{i}.png") for i in range(2)],
    }
    made = datasets.Dataset.from_dict(columns, features=features)
    view = View(made, lambda image, mask: (image, mask))
    expected = (
        f"{tmp_path}/0.png has label ids out of range (9): 0 to 0 and 255 (ignored) are accepted; correct the "
        "mask or the class names, or give an id_map, the train id or 255 of each raw id."
    )
    for workers in (0, 1):
        with pytest.raises(DataError) as caught:
            next(iter(DataLoader(view, num_workers=workers, collate_fn=collate)))
        assert str(caught.value) == expected
    with pytest.raises(DataError) as caught:
        made.map(lambda row: {"sum": int(np.asarray(row["label"]).sum())}, num_proc=2)
    assert str(caught.value).replace("1.png", "0.png") == expected


@pytest.mark.parametrize(
    "colors", [[], {"0": [0, 0, 0]}, [[0, 0, 0], [255, 0]], [[0, 0, 0], "red"], [[0, 0, 256]], [[0.0, 0.5, 1.0]]]
)
def test_colors_that_are_none_are_refused_before_a_mask_is_blamed(colors):
    with pytest.raises(ValueError, match=r"^colors is .*; give an \[r, g, b\] of 0 to 255 for each raw id"):
        LabelMap(names=["a"], colors=colors)


@pytest.mark.parametrize("given", [[0.0, 255.0], np.array([0, 255]), {"0": 0, 1: "255"}, torch.tensor([0, 255])])
def test_ids_are_whole_numbers_of_any_type(given):
    assert id_list(given) == [0, 255]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": {0: "road", 1: "car"}}, "has the class names {0: 'road', 1: 'car'}; give a list of names"),
        ({"names": "road"}, "has the class names 'road'; give a list of names"),
        ({"names": [0, 1]}, r"has the class names \[0, 1\]; give a list of names"),
        ({"names": [f"c{i}" for i in range(256)]}, "names 256 classes, but 255 is the most"),
        ({"names": ["a"], "palette": [[0.5, 0, 0]]}, r"palette is .*; give an \[r, g, b\] of 0 to 255 for each class"),
        ({"names": ["a"], "palette": "red"}, "palette is 'red'; give an"),
        ({"names": ["a", "b"], "palette": [[1, 2, 3]]}, "palette has 1 colors for 2 classes; give one for each"),
    ],
)
def test_names_and_colors_that_do_not_fit_are_one_sentence(options, message):
    with pytest.raises(UserError, match=message):
        LabelMap(**options)


def test_a_masked_array_is_ignored_where_it_is_masked():
    given = np.ma.masked_array(np.array([[0, 1], [2, 9]], dtype=np.uint8), mask=[[0, 0], [0, 1]])
    features = datasets.Features(label=LabelMap(names=["a", "b", "c"]))
    made = datasets.Dataset.from_dict({"label": [given]}, features=features)
    assert np.asarray(made[0]["label"]).tolist() == [[0, 1], [2, 255]]


@pytest.mark.parametrize("kind", [tuple, np.array])
def test_names_and_colors_may_be_tuples_and_arrays_and_are_stored_as_lists(tmp_path, kind):
    colors = [[0, 0, 0], [255, 0, 0]]
    given = LabelMap(names=kind(["road", "car"]), palette=kind(colors), colors=kind(colors), id_map=kind([0, 1]))
    assert given == LabelMap(names=["road", "car"], palette=colors, colors=colors, id_map=[0, 1])
    made = datasets.Dataset.from_dict({"label": [np.array([[0, 1]])]}, features=datasets.Features(label=given))
    made.save_to_disk(tmp_path / "saved")
    assert datasets.load_from_disk(tmp_path / "saved").features["label"] == given
    assert read_id2label(kind(["road", "car"])) == ["road", "car"]
