"""Counts of pixels, and images that are drawn by rare classes."""

import logging
import warnings

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset

from hf_fst.data import LabelMap, Pairs, View, cached, load
from hf_fst.data import transforms as T
from hf_fst.data.sampling import (
    RareClasses,
    Sources,
    class_pixels,
    class_probabilities,
    class_table,
    combine,
)
from tests.data import trees

NAMES = ["road", "car", "sky"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def scenes(root, masks):
    """A folder dataset with these masks."""
    height, width = masks[0].shape
    trees.folder(root, count=len(masks), size=(height, width), names=tuple(NAMES))
    for i, ids in enumerate(masks):
        trees.save_gray(root / "masks" / f"scene{i}.png", ids)
    return load("folder", root)["train"]


def three(root):
    """Image 0 is all road, 1 has 8 pixels of car, 2 has 2 pixels of car and a row of ignored ones; nobody has sky."""
    masks = [np.zeros((10, 10)) for _ in range(3)]
    masks[1][0, :8] = 1
    masks[2][5, :2] = 1
    masks[2][9] = 255
    return scenes(root, masks)


def test_pixels_are_counted_by_image_and_class_without_ignored_ones(tmp_path):
    assert class_pixels(three(tmp_path / "d")).tolist() == [[100, 0, 0], [92, 8, 0], [88, 2, 0]]


def test_several_processes_count_the_same(tmp_path, monkeypatch):
    made = three(tmp_path / "d")
    alone = class_pixels(made)
    monkeypatch.setattr(cached, "FILES_A_PROCESS", 1)
    monkeypatch.setattr(cached.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "two")
    assert np.array_equal(class_pixels(made), alone) and any((tmp_path / "two/hf_fst").iterdir())


def test_counts_are_kept_and_counted_anew_when_a_mask_changes(tmp_path, monkeypatch):
    made = three(tmp_path / "d")
    class_pixels(made)

    def refuse(*args, **kwargs):
        raise AssertionError("a mask was read")

    with monkeypatch.context() as patch:
        patch.setattr(LabelMap, "decode_example", refuse)
        assert class_pixels(load("folder", tmp_path / "d")["train"])[1].tolist() == [92, 8, 0]
    trees.save_gray(tmp_path / "d/masks/scene1.png", np.full((10, 10), 2))
    assert class_pixels(made)[1].tolist() == [0, 0, 100]
    other = made.cast_column("label", LabelMap(names=NAMES, id_map=[1, 0, 2]))
    assert class_pixels(other)[0].tolist() == [0, 100, 0]


def test_probabilities_are_the_softmax_of_one_minus_the_share():
    pixels = np.array([[60, 10, 0], [20, 10, 0]])
    # Shares 0.8 and 0.2 at T = 0.5: weights e^(0.2 / 0.5) and e^(0.8 / 0.5), P(car) = 1 / (1 + e^-1.2); no sky.
    car = 1 / (1 + np.exp(-1.2))
    assert np.allclose(class_probabilities(pixels, 0.5), [1 - car, car, 0])
    assert np.allclose(class_probabilities(pixels, 0.01)[:2], [np.exp(-60), 1])


def test_the_table_has_a_row_for_each_class():
    rows = class_table(np.array([[60, 10, 0], [30, 0, 0]]), NAMES)
    assert [row["class"] for row in rows] == NAMES
    assert [row["pixels"] for row in rows] == [90, 10, 0]
    assert [row["share"] for row in rows] == [0.9, 0.1, 0.0]
    assert [row["images"] for row in rows] == [2, 1, 0]


def test_a_rare_class_is_drawn_from_images_with_enough_of_it(tmp_path):
    view = View(three(tmp_path / "d"), T.training(10, flip=0))
    with pytest.warns(UserWarning, match="^No image has the class 'sky'; Rare Class Sampling never draws it.$"):
        rare = RareClasses(view, min_pixels=5)
    assert len(rare) == 3
    torch.manual_seed(0)
    # At T = 0.01 it is always the car, and only image 1 has more than 5 pixels of it.
    assert all(int((rare[i]["labels"] == 1).sum()) == 8 for i in range(10))
    pixels = class_pixels(view.dataset)
    drawn = zip(class_table(pixels, NAMES), class_probabilities(pixels).tolist(), strict=True)
    assert rare.table() == [row | {"probability": probability} for row, probability in drawn]
    with pytest.warns(match="sky"), pytest.warns(match="No image has more than 8 pixels of the class 'car'"):
        RareClasses(view, min_pixels=8)


def test_classes_are_drawn_with_their_probabilities(tmp_path):
    view = View(three(tmp_path / "d"), T.training(10, flip=0))
    with pytest.warns(UserWarning, match="sky"):
        rare = RareClasses(view, temperature=2.0, min_pixels=5)
    torch.manual_seed(0)
    cars = sum(int((rare[0]["labels"] == 1).sum()) == 8 for _ in range(400)) / 400
    # Shares 280/290 and 10/290: P(car) = 1 / (1 + e^(-(270/290) / 2)) = 0.614; a third of road's draws are image 1.
    car = 1 / (1 + np.exp(-270 / 290 / 2))
    assert abs(cars - (car + (1 - car) / 3)) < 0.1  # four standard deviations are 0.09


def test_crops_are_drawn_again_until_they_have_enough_of_the_class(tmp_path):
    masks = np.zeros((1, 10, 100))
    masks[0, :, 90:] = 1
    view = View(scenes(tmp_path / "d", masks), T.training(10))
    with pytest.warns(UserWarning, match="sky"):
        once, often = (RareClasses(view, min_pixels=20, tries=tries) for tries in (0, 200))
    torch.manual_seed(0)
    # Of 91 places, 9 have more than 20 * 0.5 pixels of the car (2 to 10 columns): 10% at once, surely in 200 tries.
    found = [sum((rare[0]["labels"] == 1).sum() > 10 for _ in range(60)) for rare in (once, often)]
    assert found[0] < 20 and found[1] == 60


def test_min_pixels_scales_with_the_area_of_the_crop_on_request(tmp_path):
    view = View(three(tmp_path / "d"), T.training(10))
    with pytest.warns(UserWarning):
        assert RareClasses(view, min_pixels=5).min_pixels == 5
        assert RareClasses(view, min_pixels=3000, crop=(128, 64)).min_pixels == 3000 / 32
        assert RareClasses(view, min_pixels=3000, crop=16).min_pixels == pytest.approx(2.93, abs=0.01)


def test_a_class_without_enough_pixels_anywhere_is_a_warning_and_never_drawn(tmp_path):
    view = View(three(tmp_path / "d"), T.training(10))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rare = RareClasses(view, min_pixels=50)
    assert [str(warning.message) for warning in caught if warning.category is UserWarning] == [
        "No image has more than 50 pixels of the class 'car'; Rare Class Sampling never draws it (lower min_pixels).",
        "No image has the class 'sky'; Rare Class Sampling never draws it.",
    ]
    assert rare.probabilities.tolist() == [1, 0, 0]


def test_pairs_seed_the_draws_of_rare_classes(tmp_path):
    view = View(three(tmp_path / "d"), T.training(6))
    with pytest.warns(UserWarning):
        pairs = Pairs(RareClasses(view, temperature=2.0, min_pixels=1, min_crop_ratio=0), seed=4)
    first = [pairs[i]["pixel_values"] for i in range(6)]
    torch.rand(5)
    assert all(torch.equal(a, pairs[i]["pixel_values"]) for i, a in enumerate(first))
    assert len({tuple(a.flatten().tolist()) for a in first}) > 1


def test_sources_come_end_to_end_or_with_their_probabilities(tmp_path):
    many = View(scenes(tmp_path / "a", [np.zeros((4, 4))] * 9), T.training(4))
    few = View(scenes(tmp_path / "b", [np.ones((4, 4))]), T.training(4))
    whole = combine([many, few])
    assert isinstance(whole, ConcatDataset) and len(whole) == 10
    assert [int(whole[i]["labels"][0, 0]) for i in range(10)] == [0] * 9 + [1]
    half = combine([many, few], probabilities=[1, 1])
    assert isinstance(half, Sources) and len(half) == 10
    torch.manual_seed(0)
    assert 70 < sum(int(half[i % 10]["labels"][0, 0]) for i in range(200)) < 130
    never = combine([many, few], probabilities=[1, 0])
    assert not any(int(never[i]["labels"][0, 0]) for i in range(10))


def test_wrong_input_is_one_sentence(tmp_path):
    made = three(tmp_path / "d")
    view = View(made, T.training(4))
    bare = View(made, T.training(4), with_labels=False)
    other = View(made.cast_column("label", LabelMap(names=["x", "y", "z"])), T.training(4))
    cases = {
        "The temperature is 0, but it must be greater than 0.": lambda: class_probabilities(np.ones((1, 2)), 0),
        "No pixel of the dataset is labeled; rare classes cannot be found.": lambda: class_probabilities(
            np.zeros((1, 2))
        ),
        "Class statistics need a column `label` with class names; give a labeled dataset.": lambda: class_pixels(
            made.remove_columns("label")
        ),
        "The statistics are for 2 images and 3 classes, but the dataset has 3 and 3; count them again.": lambda: (
            RareClasses(view, np.ones((2, 3)))
        ),
        "Rare Class Sampling needs labels; give a view of a labeled dataset with its labels.": lambda: RareClasses(
            bare
        ),
        "Each labeled source needs labels; give views of labeled datasets with their labels.": lambda: combine(
            [view, bare]
        ),
        "No image has more than 1000 pixels of any class; lower min_pixels.": lambda: RareClasses(
            view, min_pixels=1000
        ),
        "The probabilities are [1] for 2 sources; give one for each, at least 0 and not all 0.": lambda: combine(
            [view, view], [1]
        ),
        "Each labeled source needs at least one image; leave out empty ones.": lambda: combine([]),
        "The labeled sources have different classes (['road', 'car', 'sky'] and ['x', 'y', 'z']); map them to the "
        "same.": lambda: combine([view, other]),
    }
    for message, wrong in cases.items():
        with pytest.raises(ValueError) as caught, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrong()
        assert str(caught.value) == message


def test_a_broken_mask_is_named_while_counting(tmp_path):
    made = three(tmp_path / "d")
    (tmp_path / "d/masks/scene1.png").write_text("no image")
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    with pytest.raises(ValueError) as caught:
        class_pixels(made)
    assert (
        str(caught.value)
        == f"{tmp_path}/d/masks/scene1.png is not an image; replace it or remove it from the dataset."
    )


class Counted(View):
    """Counts how many crops are drawn."""

    def finish(self, image, mask):
        self.crops = getattr(self, "crops", 0) + 1
        return super().finish(image, mask)


def test_a_crop_needs_its_share_of_the_pixels_that_an_image_needs(tmp_path):
    masks = np.zeros((1, 10, 10))
    masks[0, 0] = masks[0, 1, :5] = 1  # 15 pixels of the car in the image, 5 of them in every crop
    view = Counted(scenes(tmp_path / "d", masks), lambda image, mask: (image.float(), mask[1:2]))
    for min_pixels, ratio, crops in ((9, 0.5, 1), (10, 0.5, 5), (9, 1.0, 5), (4, 1.0, 1), (14, 0.0, 1)):
        with pytest.warns(UserWarning, match="sky"):
            rare = RareClasses(view, min_pixels=min_pixels, min_crop_ratio=ratio, tries=4)
        view.crops = 0
        rare[0]
        assert view.crops == crops, (min_pixels, ratio)  # 5 must be more than min_pixels * ratio


def test_a_row_without_a_mask_is_named_when_pixels_are_counted(tmp_path):
    made = three(tmp_path / "d")
    paths = made.cast_column("label", datasets.Image(decode=False))["label"][:]
    holed = datasets.Dataset.from_dict(
        {"label": [paths[0], None]}, features=datasets.Features(label=made.features["label"])
    )
    with pytest.raises(ValueError, match="^1 of 2 rows have no mask, the first is row 1"):
        class_pixels(holed)
