"""A view makes the rows of a dataset into what a model takes."""

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_fst.data import DataError, LabelMap, Pairs, View, collate
from hf_fst.data import transforms as T
from tests.data.trees import save_gray


def identity(image, mask):
    return image.float(), mask


def make(tmp_path, size=(4, 6), mask_size=None, names=("a", "b"), suffix="png"):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    ids = np.random.default_rng(1).integers(0, 2, mask_size or size).astype(np.uint8)
    ids[0, 0] = 255
    PIL.Image.fromarray(pixels).save(tmp_path / f"image.{suffix}")
    save_gray(tmp_path / "mask.png", ids)
    features = datasets.Features(image=datasets.Image(), label=LabelMap(names=list(names)))
    columns = {"image": [str(tmp_path / f"image.{suffix}")], "label": [str(tmp_path / "mask.png")]}
    return datasets.Dataset.from_dict(columns, features=features), pixels, ids


def test_items_are_the_pixels_and_the_labels_with_int64_ids(tmp_path):
    made, pixels, ids = make(tmp_path)
    item = View(made, identity)[0]
    assert set(item) == {"pixel_values", "labels"}
    assert type(item["pixel_values"]) is torch.Tensor and type(item["labels"]) is torch.Tensor
    assert item["pixel_values"].is_contiguous()
    assert np.array_equal(item["pixel_values"].permute(1, 2, 0).numpy(), pixels)
    assert item["labels"].dtype == torch.int64
    assert np.array_equal(item["labels"].numpy(), ids)


def test_labels_are_not_read_where_they_are_not_wanted(tmp_path):
    made, _, _ = make(tmp_path)
    (tmp_path / "mask.png").unlink()
    assert set(View(made, identity, with_labels=False)[0]) == {"pixel_values"}


def test_a_dataset_without_labels_is_ordinary(tmp_path):
    made, _, _ = make(tmp_path)
    assert set(View(made.remove_columns("label"), identity)[0]) == {"pixel_values"}


def test_gray_palette_and_transparent_images_become_rgb(tmp_path):
    made, _, _ = make(tmp_path)
    for mode in ("L", "P", "RGBA", "1"):
        PIL.Image.new(mode, (6, 4)).save(tmp_path / "image.png")
        assert View(made, identity)[0]["pixel_values"].shape == (3, 4, 6)


def test_images_given_as_bytes_are_read_too(tmp_path):
    made, pixels, _ = make(tmp_path)
    rows = [{"path": None, "bytes": (tmp_path / "image.png").read_bytes()}]
    held = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features(image=datasets.Image()))
    assert np.array_equal(View(held, identity)[0]["pixel_values"].permute(1, 2, 0).numpy(), pixels)


def test_the_transform_is_applied_to_both(tmp_path):
    made, _, _ = make(tmp_path, size=(40, 60))
    item = View(made, T.training(16))[0]
    assert item["pixel_values"].shape == (3, 16, 16) and item["labels"].shape == (16, 16)


def test_the_dataset_and_its_label_map_stay_at_hand(tmp_path):
    made, _, _ = make(tmp_path)
    view = View(made, identity)
    assert view.dataset is made and view.label_map.names == ["a", "b"]


def test_a_mask_of_another_size_than_its_image_is_one_sentence(tmp_path):
    made, _, _ = make(tmp_path, mask_size=(5, 6))
    with pytest.raises(DataError) as caught:
        View(made, identity)[0]
    assert str(caught.value) == (
        f"The mask {tmp_path}/mask.png is 6 x 5 pixels, but its image {tmp_path}/image.png is 6 x 4; they must have the "
        "same size."
    )


def test_a_truncated_image_is_one_sentence(tmp_path):
    for suffix in ("png", "jpg"):
        made, _, _ = make(tmp_path, size=(40, 60), suffix=suffix)
        path = tmp_path / f"image.{suffix}"
        path.write_bytes(path.read_bytes()[:1200])
        with pytest.raises(
            DataError, match=rf"^{path} is damaged \(.+\); replace it or remove it from the dataset\.$"
        ):
            View(made, identity)[0]


def test_a_pointer_of_git_lfs_is_told_from_a_broken_image(tmp_path):
    made, *_ = make(tmp_path)
    (tmp_path / "image.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    with pytest.raises(DataError, match="image.png is a Git LFS pointer, not an image; fetch the files with `git lfs"):
        View(made, identity)[0]


def test_streamed_datasets_and_wrong_columns_are_one_sentence(tmp_path):
    made, _, _ = make(tmp_path)
    cases = {
        "A streamed dataset cannot be drawn by index; load it with streaming=False.": made.to_iterable_dataset(),
        "The dataset has no column `image` (its columns: label); rename the one with the images.": made.remove_columns(
            "image"
        ),
        "The column `label` is of type Image, but masks are expected; cast it with dataset.cast_column('label', "
        "hf_fst.data.LabelMap(names=[...])).": made.cast_column("label", datasets.Image()),
    }
    for message, wrong in cases.items():
        with pytest.raises(ValueError) as caught:
            View(wrong, identity)
        assert str(caught.value) == message


def test_rows_without_an_image_or_a_mask_are_one_sentence_with_the_row(tmp_path):
    made, _, _ = make(tmp_path)
    paths = {"image": str(tmp_path / "image.png"), "label": str(tmp_path / "mask.png")}
    for column, what in (("label", "mask"), ("image", "image")):
        rows = {name: [path, path, path] for name, path in paths.items()}
        rows[column][1] = None
        holed = datasets.Dataset.from_dict(rows, features=made.features)
        with pytest.raises(ValueError, match=f"^1 of 3 rows have no {what}, the first is row 1; leave them out"):
            View(holed, identity)
        assert len(View(holed.select([0, 2]), identity)) == 2  # the hole is not chosen
        with pytest.raises(ValueError, match="^1 of 2 rows .* the first is row 0;"):
            View(holed.select([1, 2]), identity)
    assert (
        len(View(datasets.Dataset.from_dict({**rows, "image": rows["label"]}, features=made.features), identity)) == 3
    )


def test_a_row_given_as_bytes_is_named_by_its_number(tmp_path):
    made, _, _ = make(tmp_path)
    rows = {"image": [{"bytes": b"no image", "path": None}] * 2, "label": [str(tmp_path / "mask.png")] * 2}
    view = View(datasets.Dataset.from_dict(rows, features=made.features), identity)
    with pytest.raises(DataError, match=r"^row 1 \(image\) is not an image;"):
        view[1]
    rows["image"] = [{"bytes": b"no image", "path": "0.jpg"}] * 2
    with pytest.raises(DataError, match=r"^row 1 \(0.jpg\) is not an image;"):
        View(datasets.Dataset.from_dict(rows, features=made.features), identity)[1]


def test_datasets_with_a_transform_of_their_own_and_whole_dictionaries_are_one_sentence(tmp_path):
    made, pixels, _ = make(tmp_path)
    with pytest.raises(ValueError, match="has a transform of its own .* View.dataset.with_format.None., transform"):
        View(made.with_transform(lambda rows: rows), identity)
    with pytest.raises(ValueError, match="A View needs one split, but this dataset has train"):
        View(datasets.DatasetDict(train=made), identity)
    for kind in ("torch", "numpy", "arrow"):
        assert np.array_equal(View(made.with_format(kind), identity)[0]["pixel_values"].permute(1, 2, 0), pixels)


def test_columns_of_bytes_are_one_sentence_with_the_cast_to_make(tmp_path):
    made, _, _ = make(tmp_path)
    raw = datasets.Dataset.from_dict({"image": [b"x"], "label": [b"y"]})
    with pytest.raises(ValueError, match=r"cast it with dataset.cast_column\('image', datasets.Image\(\)\)"):
        View(raw, identity)


def test_padding_is_told_apart_from_pixels_without_label(tmp_path):
    made, _, ids = make(tmp_path, size=(4, 6))
    for with_labels in (True, False):
        torch.manual_seed(0)
        item = View(made, T.training((8, 8), flip=0.0), with_labels)[0]
        assert item["valid"].dtype == torch.bool
        assert item["valid"][:4, :6].all() and item["valid"].sum() == 4 * 6
        if with_labels:  # one pixel has no label, and is no padding
            assert (item["labels"] == 255).sum() == 64 - 24 + (ids == 255).sum()


@pytest.mark.parametrize("fill", [0, 255, {tv_tensors.Image: 0, tv_tensors.Mask: 255}])
@pytest.mark.parametrize(
    "step",
    [
        lambda fill: v2.RandomCrop(16, pad_if_needed=True, fill=fill),
        lambda fill: v2.Pad(3, fill=fill),
        lambda fill: v2.RandomRotation(45, expand=True, fill=fill),
        lambda fill: v2.RandomZoomOut(p=1.0, fill=fill),
        lambda fill: v2.CenterCrop(16),
    ],
    ids=["crop", "pad", "rotation", "zoom", "center"],
)
def test_what_transforms_of_torchvision_fill_up_with_is_padding_whatever_they_fill(tmp_path, step, fill):
    made, *_ = make(tmp_path, size=(10, 12))
    item = View(made, v2.Compose([step(fill), to_floats_alone()]))[0]
    assert item["labels"][~item["valid"]].eq(255).all() and (item["labels"] == 255).sum() == (~item["valid"]).sum() + 1
    assert 90 <= item["valid"].sum() <= 150 < item["valid"].numel()  # 120 pixels, but for rounding where they turn


def test_a_transform_that_changes_ids_leaves_what_is_valid_alone(tmp_path):
    made, *_ = make(tmp_path, size=(10, 12))
    table = torch.arange(256).roll(1)
    step = v2.Lambda(lambda mask: tv_tensors.Mask(table[mask.long()]), tv_tensors.Mask)
    plain, changed = (View(made, v2.Compose([*steps, to_floats_alone()]))[0] for steps in ((), (step,)))
    assert changed["valid"].all() and torch.equal(changed["labels"], table[plain["labels"]])


def to_floats_alone():
    """What a transform of torchvision needs at its end."""
    return v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True)


def test_a_transform_of_ones_own_may_say_what_is_valid(tmp_path):
    made, *_ = make(tmp_path)
    item = View(made, lambda image, mask: (image.float(), mask, np.ones((4, 6), np.uint8)))[0]
    assert item["valid"].dtype == torch.bool and item["valid"].all()
    assert "valid" not in View(made, identity)[0]


@pytest.mark.parametrize("per_labeled", [1, 2])
def test_a_batch_knows_the_padding_of_its_unlabeled_images(tmp_path, per_labeled):
    made, *_ = make(tmp_path, size=(4, 6))
    view = View(made, T.training((8, 8)))
    pairs = Pairs(view, view, unlabeled_per_labeled=per_labeled)
    batch = collate([pairs[0], pairs[1]])
    assert batch["unlabeled_valid"].shape == (2 * per_labeled, 8, 8) and batch["valid"].shape == (2, 8, 8)
    assert batch["unlabeled_valid"].sum() == 2 * per_labeled * 24
