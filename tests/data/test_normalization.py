"""What transforms do to colors is what the image processor does; datasets follow it wherever their transforms are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from torch.utils.data import Subset
from torchvision import tv_tensors
from torchvision.transforms import v2
from transformers import (
    BeitImageProcessor,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    SegformerImageProcessor,
)

from hf_fst.data import LabelMap, View
from hf_fst.data.agreement import following
from hf_fst.data.sampling import RareClasses, combine
from hf_fst.data.transforms import CenterCrop, Evaluation, Normalization, Normalize, training
from hf_fst.errors import UserError
from hf_fst.evaluation.runner import Prepare

ODD = {"image_mean": [0.2, 0.3, 0.4], "image_std": [0.5, 0.6, 0.7]}
PROCESSORS = {
    "halves": BeitImageProcessor(do_resize=False),
    "own numbers": SegformerImageProcessor(do_resize=False, **ODD),
    "one number for all channels": SegformerImageProcessor(do_resize=False, image_mean=0.25, image_std=0.125),
    "another factor": SegformerImageProcessor(do_resize=False, rescale_factor=1 / 127.5, **ODD),
    "no factor": SegformerImageProcessor(
        do_resize=False, do_rescale=False, image_mean=[120.0] * 3, image_std=[60.0] * 3
    ),
    "a factor alone": SegformerImageProcessor(do_resize=False, do_normalize=False),
    "blue first": MobileViTImageProcessor(),
}
OTHER = Normalization((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))


def picture(height=24, width=32) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_transform_gives_what_the_processor_gives(name):
    processor, image = PROCESSORS[name], tv_tensors.Image(picture())
    options = {"do_resize": False, "do_center_crop": False}
    wanted = processor(images=picture(), return_tensors="pt", **options)["pixel_values"][0]
    for transform in (
        training((24, 32), flip=0, processor=processor),
        Evaluation(processor=processor),
        CenterCrop((24, 32), processor=processor),
    ):
        found = transform(image, tv_tensors.Mask(torch.zeros(24, 32, dtype=torch.uint8)))[0]
        assert torch.allclose(found.as_subclass(torch.Tensor), wanted.float(), atol=1e-5)
    again = Normalization.of(processor).colors(wanted)
    assert np.array_equal(again, picture().permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_std": [0.2, 0.0, 0.2]},
        {"image_std": [0.2, -0.2, 0.2]},
        {"image_mean": [0.2, 0.3]},
        {"image_mean": "grey"},
        {"image_mean": [0.1, float("nan"), 0.1]},
        {"rescale_factor": 0},
        {"rescale_factor": None},
    ],
    ids=str,
)
def test_numbers_that_normalize_nothing_are_refused(wrong):
    with pytest.raises(UserError, match="is no normalization; give one or three finite numbers"):
        Normalization.of(SegformerImageProcessor(do_resize=False, **wrong))


def test_a_processor_that_does_more_is_refused():
    """EfficientNet's divides twice by the deviation."""
    with pytest.raises(UserError, match="EfficientNetImageProcessor does more to colors"):
        training(8, processor=EfficientNetImageProcessor())


def view(transform) -> View:
    rows = {"image": [picture(16, 16).permute(1, 2, 0).numpy()] * 3, "label": [np.eye(16, dtype=np.uint8)] * 3}
    names = LabelMap(names=["no", "yes"])
    return View(Dataset.from_dict(rows).cast_column("image", Image()).cast_column("label", names), transform)


def nested(transform) -> dict:
    plain = view(transform)
    rare = RareClasses(view(transform), min_pixels=1)
    return {
        "a view": plain,
        "rare classes": rare,
        "sources": combine([plain, rare], [0.5, 0.5]),
        "joined": combine([plain, rare]),
        "a subset of what is joined": Subset(combine([plain, rare]), [4, 1]),
        "own steps around ours": view(v2.Compose([v2.RandomHorizontalFlip(0), v2.Compose([Normalize()])])),
    }


@pytest.mark.parametrize("name", nested(Evaluation()))
def test_a_dataset_follows_the_processor_and_stays_what_it_was(name):
    dataset = nested(training(16, flip=0))[name]
    made = following(dataset, OTHER, "train_dataset")
    usual, wanted = (
        n(tv_tensors.Image(picture(16, 16))).as_subclass(torch.Tensor) for n in (Normalize(), Normalize(OTHER))
    )
    torch.manual_seed(0)
    assert torch.equal(made[0]["pixel_values"], wanted) and len(made) == len(dataset)
    assert torch.equal(dataset[0]["pixel_values"], usual)
    assert following(dataset, Normalization(), "train_dataset") is dataset


@pytest.mark.parametrize("name", nested(Evaluation()))
def test_numbers_that_a_dataset_was_given_are_not_overruled(name):
    dataset = nested(Evaluation(processor=OTHER))[name]
    if name == "own steps around ours":
        dataset = view(v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(OTHER.mean, OTHER.std)]))
    assert following({"one": dataset}, OTHER, "eval_dataset")["one"] is dataset
    with pytest.raises(UserError, match=r"images of eval_dataset\['one'\] are normalized with mean 0\.2, 0\.3, 0\.4"):
        following({"one": dataset}, Normalization(), "eval_dataset")
    with pytest.raises(UserError, match="blue first"):
        following(dataset, Normalization(OTHER.mean, OTHER.std, bgr=True), "eval_dataset")


def test_what_is_not_ours_is_left_alone():
    items = [{"pixel_values": torch.zeros(3, 4, 4), "labels": torch.zeros(4, 4)}]
    own = view(lambda image, mask: (image.float(), mask))
    assert (
        following(items, OTHER, "") is items
        and following(own, OTHER, "") is own
        and following(None, OTHER, "") is None
    )


@pytest.mark.parametrize(
    "said",
    [
        {"image_mean": [0.5] * 4, "image_std": [0.5] * 4},
        {"image_std": [0.5, 0.0, 0.5]},
        {"image_std": [-1.0, 1.0, 1.0]},
        {"image_mean": "half"},
        {"image_mean": [float("nan"), 0.0, 0.0]},
        {"rescale_factor": 0},
        {"rescale_factor": "1/255"},
    ],
)
def test_evaluation_and_prediction_refuse_what_is_no_normalization_too(said):
    with pytest.raises(UserError, match="is no normalization; give one or three finite numbers"):
        Prepare(SegformerImageProcessor(do_resize=False, **said))
