"""`street`: the same pictures for the same arguments, two looks apart, and every class where it belongs."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from hf_fst.data import LabelMap, load
from hf_fst.data.street import scene as street_scene
from hf_fst.data.street.dataset import NAMES, PALETTE, draw, street

SMALL = {"size": (48, 80), "num_train": 4, "num_validation": 2, "num_test": 3}
SIZE = (96, 160)
PEOPLE_AND_SIGNS = [NAMES.index(name) for name in ("pole", "traffic sign", "person")]


def digest(look: str, split: str, index: int, size=(48, 80), seed: int = 0) -> str:
    return hashlib.sha256(b"".join(part.tobytes() for part in draw(look, split, index, size, seed))).hexdigest()


def arrays(example: dict) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(example["image"]), np.asarray(example["label"])


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Forty pictures and labels of each look at the default size."""
    pairs = {look: [draw(look, "train", index, SIZE) for index in range(40)] for look in ("synthetic", "real")}
    return {look: tuple(np.stack([np.asarray(p[k]) for p in pairs[look]]) for k in (0, 1)) for look in pairs}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> datasets.DatasetDict:
    return street(tmp_path_factory.mktemp("street"), **SMALL)


def test_the_same_arguments_give_the_same_picture_whatever_was_drawn_before():
    alone = digest("real", "train", 7)
    for index in (3, 9):
        digest("real", "train", index)
    np.random.seed(5)
    torch.manual_seed(5)
    assert digest("real", "train", 7) == alone


def test_another_process_draws_the_same_pictures():
    # The scenes are imported without the packages around them, whose imports take most of a second process's time.
    program = f"""
import hashlib, sys, types
package = types.ModuleType("scenes")
package.__path__ = [{str(Path(street_scene.__file__).parent)!r}]
sys.modules["scenes"] = package
from scenes.scene import draw
for look in ("real", "synthetic"):
    parts = draw(look, "test", 4, (48, 80), 3)
    print(hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest())
"""
    lines = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert lines == [digest("real", "test", 4, seed=3), digest("synthetic", "test", 4, seed=3)]


def test_seeds_splits_looks_and_indices_all_show_different_scenes():
    labels = {
        (look, split, index, seed): draw(look, split, index, (48, 80), seed)[1].tobytes()
        for look in ("synthetic", "real")
        for split in ("train", "validation", "test")
        for index in (0, 1)
        for seed in (0, 1)
    }
    assert len(set(labels.values())) == len(labels) == 24


def test_drawing_leaves_the_global_random_states_alone():
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    draw("real", "train", 0, (48, 80))
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("size", [(32, 32), (33, 57), (96, 160), (200, 120)])
def test_any_size_is_drawn(size):
    image, label = draw("real", "train", 0, size)
    assert (image.mode, label.mode) == ("RGB", "L")
    assert np.asarray(image).shape == (*size, 3)
    assert np.asarray(label).shape == size


def test_a_larger_picture_shows_the_same_street():
    small_label = np.asarray(draw("real", "train", 2, (96, 160))[1])
    large_label = np.asarray(draw("real", "train", 2, (192, 320))[1])
    assert (large_label[1::2, 1::2] == small_label).mean() > 0.93  # but for the pixels along edges


def test_labels_are_the_ten_classes_in_a_street_s_proportions(drawn):
    for _, labels in drawn.values():
        share = np.bincount(labels.ravel(), minlength=256) / labels.size
        assert share[10:].sum() == 0
        assert (share[:10] > 0.003).all()
        common = {NAMES[k] for k in np.argsort(share)[::-1][:3]}
        assert common == {"road", "building", "vegetation"}
        assert (share[PEOPLE_AND_SIGNS] < 0.05).all()


def test_most_pictures_hold_most_classes(drawn):
    for _, labels in drawn.values():
        assert np.mean([len(np.unique(label)) for label in labels]) > 8


def test_the_sky_is_above_the_road(drawn):
    for _, labels in drawn.values():
        rows = np.broadcast_to(np.arange(SIZE[0])[:, None], SIZE)
        for label in labels:
            road, sky = rows[label == NAMES.index("road")], rows[label == NAMES.index("sky")]
            assert road.size > 0
            assert sky.size == 0 or sky.max() <= road.min() + 2


def test_a_class_is_where_its_color_is(drawn):
    images, labels = drawn["synthetic"]  # its colors are clean enough to tell
    red, green, blue = (images[..., channel].astype(float) for channel in range(3))
    leaves, sky = labels == NAMES.index("vegetation"), labels == NAMES.index("sky")
    assert (green[leaves] > np.maximum(red, blue)[leaves]).mean() > 0.8
    assert (blue[sky] > red[sky]).mean() > 0.95


def test_the_real_look_is_rougher_and_duller_than_the_synthetic_one(drawn):
    def roughness(look: str) -> float:
        """Mean step between neighbors on the road, in grey levels."""
        images, labels = drawn[look]
        grey, road = images.mean(-1), labels == NAMES.index("road")
        both = road[:, :, 1:] & road[:, :, :-1]
        return np.abs(np.diff(grey, axis=2))[both].mean()

    def saturation(look: str) -> float:
        images, labels = drawn[look]
        spread = images.max(-1).astype(float) - images.min(-1)
        return spread[labels != NAMES.index("road")].mean()

    assert roughness("real") > 1.25 * roughness("synthetic")
    assert saturation("synthetic") > 2 * saturation("real")


def test_pictures_of_the_real_look_differ_in_exposure_and_hue(drawn):
    brightness, hue = {}, {}
    for look, (images, labels) in drawn.items():
        roads = [image[label == NAMES.index("road")].mean(0) for image, label in zip(images, labels, strict=True)]
        brightness[look] = images.mean((1, 2, 3)).std()
        hue[look] = np.std([np.log(red / blue) for red, _, blue in roads])
    assert brightness["real"] > 1.3 * brightness["synthetic"]
    assert hue["real"] > 1.3 * hue["synthetic"]


def test_the_dataset_has_splits_columns_and_class_names(small):
    assert {split: len(rows) for split, rows in small.items()} == {"train": 4, "validation": 2, "test": 3}
    features = small["train"].features
    assert isinstance(features["image"], datasets.Image)
    assert isinstance(features["label"], LabelMap)
    assert features["label"].names == NAMES == [
        "road", "sidewalk", "building", "fence", "pole", "traffic sign", "vegetation", "sky", "person", "car",
    ]  # fmt: skip
    assert features["label"].palette == PALETTE
    assert len(PALETTE) == 10


def test_rows_are_what_draw_gives_in_every_order(small):
    for split, index in (("test", 2), ("train", 0), ("train", 3), ("train", 1)):
        image, label = arrays(small[split][index])
        expected_image, expected_label = draw("real", split, index, SMALL["size"])
        assert np.array_equal(image, np.asarray(expected_image))
        assert np.array_equal(label, np.asarray(expected_label))


def test_select_and_pickle_keep_the_pictures(small):
    chosen = small["train"].select([3, 1])
    copied = pickle.loads(pickle.dumps(chosen))
    for rows in (chosen, copied):
        for row, index in zip(rows, (3, 1), strict=True):
            assert np.array_equal(arrays(row)[0], np.asarray(draw("real", "train", index, SMALL["size"])[0]))


def test_streaming_gives_the_same_rows(small):
    streamed = street(streaming=True, **SMALL)
    assert isinstance(streamed, datasets.IterableDatasetDict)
    for split, rows in streamed.items():
        assert rows.features["label"].names == NAMES
        read = list(rows)
        assert len(read) == len(small[split])
        for row, expected in zip(read, small[split], strict=True):
            for a, b in zip(arrays(row), arrays(expected), strict=True):
                assert np.array_equal(a, b)


def test_a_second_call_draws_nothing(tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("drawn again")

    first = street(tmp_path, **SMALL)
    monkeypatch.setattr(sys.modules["hf_fst.data.street.dataset"], "draw", refuse)
    second = street(tmp_path, **SMALL)
    assert second["train"].cache_files == first["train"].cache_files
    with pytest.raises(datasets.exceptions.DatasetGenerationError) as error:
        street(tmp_path, **SMALL, seed=1)  # other arguments are other pictures
    assert "drawn again" in str(error.value.__cause__)


def test_a_smaller_split_is_the_beginning_of_a_larger_one(small, tmp_path):
    fewer = street(tmp_path, **{**SMALL, "num_train": 2})["train"]
    for row, expected in zip(fewer, small["train"].select(range(2)), strict=True):
        assert np.array_equal(arrays(row)[0], arrays(expected)[0])


def test_load_knows_street(tmp_path):
    rows = load("street", tmp_path, look="synthetic", size=[32, 48], num_train=1, num_validation=1, num_test=1)
    assert arrays(rows["train"][0])[0].shape == (32, 48, 3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"look": "night"}, "street has no look 'night'; choose one of synthetic, real."),
        (
            {"size": (31, 160)},
            "street cannot be drawn at size (31, 160); give (height, width) in pixels, each a whole number of 32 to "
            "4096.",
        ),
        (
            {"size": 96},
            "street cannot be drawn at size 96; give (height, width) in pixels, each a whole number of 32 to 4096.",
        ),
        (
            {"size": (96.0, 160)},
            "street cannot be drawn at size (96.0, 160); give (height, width) in pixels, each a whole number of 32 "
            "to 4096.",
        ),
        ({"num_train": 0}, "street cannot have num_train=0 pictures; give a whole number of at least 1."),
        ({"num_validation": -3}, "street cannot have num_validation=-3 pictures; give a whole number of at least 1."),
        ({"num_test": 2.5}, "street cannot have num_test=2.5 pictures; give a whole number of at least 1."),
        ({"seed": -1}, "street cannot use seed=-1; give a whole number of 0 to 4294967295."),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_bad_arguments_are_told_in_one_sentence(options, sentence, streaming):
    with pytest.raises(ValueError) as error:
        street(streaming=streaming, **options)
    assert str(error.value) == sentence
