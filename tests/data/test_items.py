"""Items of datasets of one's own: what is converted without a doubt, and what is one sentence."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import BatchFeature

from hf_fst.data.items import tidy
from hf_fst.data.pairing import collate

IDS = np.array([[0, 1, 2], [255, 1, 0]])
PIXELS = np.random.default_rng(0).normal(size=(3, 2, 3)).astype(np.float32)


def item(**changes):
    return {"pixel_values": torch.from_numpy(PIXELS), "labels": torch.from_numpy(IDS), **changes}


def in_mode_p() -> PIL.Image.Image:
    image = PIL.Image.fromarray(IDS.astype(np.uint8))
    image.putpalette([value for i in range(256) for value in (255 - i, i, 9)])
    return image


@pytest.mark.parametrize(
    "labels",
    [
        IDS.astype(np.uint8),
        IDS.astype(np.uint16),
        IDS.astype(np.int32),
        IDS.astype(np.float64),
        IDS.tolist(),
        IDS[None].tolist(),
        PIL.Image.fromarray(IDS.astype(np.uint8)),
        in_mode_p(),
        torch.from_numpy(IDS).to(torch.uint8)[None],
        torch.from_numpy(IDS).half(),
        np.ma.masked_array(np.where(IDS == 255, -1, IDS).astype(np.int8), mask=IDS == 255),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', getattr(value, 'mode', ''))}",
)
def test_labels_that_are_whole_numbers_are_read(labels):
    made = tidy(item(labels=labels))["labels"]
    assert made.dtype == torch.int64 and made.tolist() == IDS.tolist()


def test_labels_of_two_values_may_be_truth_values():
    made = tidy(item(labels=IDS == 1))["labels"]
    assert made.tolist() == [[0, 1, 0], [0, 1, 0]] and made.dtype == torch.int64


@pytest.mark.parametrize(
    "pixels",
    [PIXELS, PIXELS.astype(np.float64), PIXELS.tolist(), PIXELS[None], [PIXELS], torch.from_numpy(PIXELS)[None]],
    ids=["float32", "float64", "lists", "one of a batch", "list of one", "tensor of one"],
)
def test_pixels_that_are_floats_are_read_in_float32(pixels):
    made = tidy(item(pixel_values=pixels))["pixel_values"]
    assert made.dtype == torch.float32 and np.array_equal(made.numpy(), PIXELS)


def test_half_pixels_become_float32_and_double_tensors_stay():
    half = torch.from_numpy(PIXELS).half()
    assert torch.equal(tidy(item(pixel_values=half))["pixel_values"], half.float())
    assert tidy(item(pixel_values=half.double()))["pixel_values"].dtype == torch.float64


def test_what_an_image_processor_gives_is_an_item():
    given = BatchFeature({"pixel_values": [PIXELS], "labels": [IDS]})
    made = tidy(given)
    assert np.array_equal(made["pixel_values"].numpy(), PIXELS) and made["labels"].tolist() == IDS.tolist()
    assert set(collate([given, given])) == {"pixel_values", "labels"}


@pytest.mark.parametrize("valid", [np.eye(2, 3, dtype=np.uint8), torch.eye(2, 3), torch.eye(2, 3, dtype=torch.bool)])
def test_what_is_valid_may_be_of_any_type(valid):
    found = tidy(item(valid=valid))["valid"]
    assert found.dtype == torch.bool and found.tolist() == [[True, False, False], [False, True, False]]
    assert tidy(item(valid=valid))["labels"].tolist() == [[0, 255, 255], [255, 1, 255]]


def test_unlabeled_items_may_say_that_they_have_no_labels():
    assert set(tidy(item(labels=None, name="a.png"))) == {"pixel_values"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_values": None}, "In item 7 pixel_values are NoneType; give normalized floats"),
        ({"pixel_values": PIL.Image.new("RGB", (3, 2))}, "In item 7 pixel_values are Image; give normalized floats"),
        ({"pixel_values": (PIXELS * 9).astype(np.uint8)}, "In item 7 pixel_values are uint8; give normalized floats"),
        (
            {"pixel_values": np.zeros((20, 30, 3))},
            r"the shape \(20, 30, 3\), with the channels last.*permute\(2, 0, 1\)",
        ),
        ({"pixel_values": np.zeros((2, 3, 4, 4))}, r"pixel_values have the shape \(2, 3, 4, 4\), but \(3,H,W\)"),
        ({"pixel_values": np.zeros((3, 0, 4))}, r"pixel_values have the shape \(3, 0, 4\), but \(3,H,W\)"),
        ({"valid": torch.ones(3, 2)}, r"In item 7 valid has the shape \(3, 2\), but its pixel_values \(3, 2, 3\)"),
        ({"labels": [[0, 1], [2]]}, "In item 7 labels are a list; give one class id per pixel"),
        ({"labels": "mask.png"}, "In item 7 labels are a str; give one class id per pixel"),
        ({"labels": torch.eye(3).to_sparse()}, "In item 7 labels are a sparse_coo float32 Tensor; give one class id"),
        ({"labels": torch.from_numpy(IDS) * 1j}, "In item 7 labels are a strided complex64 Tensor; give one class id"),
        (
            {"pixel_values": torch.zeros(3, 2, 3).to_sparse()},
            "In item 7 pixel_values are sparse_coo float32 Tensor; give",
        ),
        ({"pixel_values": np.ma.masked_less(PIXELS, 0)}, "In item 7 pixel_values are MaskedArray; give normalized"),
        ({"labels": IDS + 0.25}, "In item 7 labels are float64 numbers with fractions"),
        ({"labels": np.full((2, 3), np.nan)}, "In item 7 labels are float64 numbers with fractions"),
        ({"labels": np.stack([IDS] * 3, -1)}, r"In item 7 labels have the shape \(2, 3, 3\), but \(H,W\) is expected"),
    ],
)
def test_what_could_mean_several_things_is_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        tidy(item(**changes), "item 7")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "^An item of the dataset is None, but a dict with pixel_values and labels is expected"),
        (torch.zeros(3, 4, 4), "^An item of the dataset is a Tensor, but a dict"),
        ((1, 2), "^An item of the dataset is a tuple, but a dict"),
        ({"image": 1, "mask": 2}, "has the keys image, mask, .* wrap a datasets.Dataset in hf_fst.data.View"),
    ],
)
def test_what_is_no_item_is_one_sentence_also_where_it_is_evaluated(given, message):
    for read in (tidy, lambda given: collate([given])):
        with pytest.raises(ValueError, match=message):
            read(given)


def test_items_of_one_batch_have_the_same_keys():
    with pytest.raises(ValueError, match=r"different keys \(pixel_values, labels and pixel_values\); give each image"):
        collate([item(), item(labels=None)])
