"""Resizing, crops, flips, padding and normalization of images and their masks."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from hf_fst.data import transforms as T


def ramp(height, width, dtype=torch.uint8):
    """An image and a mask that tell where a pixel came from: row in channel 0 and the mask, column in channel 1."""
    rows = torch.arange(height, dtype=dtype)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=dtype)[None].expand(height, width)
    return tv_tensors.Image(torch.stack([rows, columns, rows])), tv_tensors.Mask(rows.clone())


def raw(pixel_values):
    """Takes the normalization back: 0..255."""
    return (pixel_values * torch.tensor(T.STD)[:, None, None] + torch.tensor(T.MEAN)[:, None, None]) * 255


def test_sizes_within_a_scale_are_the_published_ones():
    assert T.size_within((1052, 1914), T.SCALES["gta5"]) == (704, 1280)
    assert T.size_within((760, 1280), T.SCALES["synthia"]) == (760, 1280)
    assert T.size_within((1024, 2048), T.SCALES["cityscapes"]) == (512, 1024)
    assert T.size_within((100, 100), (1024, 512)) == (512, 512)
    assert T.size_within((1914, 1052), (720, 1280)) == T.size_within((1914, 1052), (1280, 720)) == (1280, 704)


def test_images_are_resized_bilinearly_without_blur_and_masks_by_nearest_neighbor():
    image, mask = ramp(8, 16)
    small, labels = T.ResizeWithin((8, 4))(image, mask)
    # Half-pixel centers: output row i lies between the rows 2i and 2i+1, so it is 2i + 0.5, rounded to even or up.
    assert small.shape == (3, 4, 8)
    assert (small[0, :, 0].float() - torch.tensor([0.5, 2.5, 4.5, 6.5])).abs().max() <= 0.5
    assert labels.tolist() == [[row] * 8 for row in (0, 2, 4, 6)]
    large, labels = T.ResizeWithin((32, 16))(image, mask)
    assert large.shape == (3, 16, 32)
    assert set(labels.unique().tolist()) <= set(range(8))


def test_shrinking_does_not_blur():
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[:, :, ::4] = 200
    # At a quarter of the size column i is read at 4i + 1.5, between the dark columns 4i + 1 and 4i + 2.
    assert (T.ResizeWithin((4, 4))(tv_tensors.Image(image)) == 0).all()


def test_normalization_is_that_of_imagenet():
    image = tv_tensors.Image(torch.full((3, 2, 2), 255, dtype=torch.uint8))
    pixel_values, _ = T.Evaluation()(image)
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert pixel_values.dtype == torch.float32
    assert np.allclose(pixel_values[:, 0, 0].tolist(), expected, atol=1e-6)


def test_crops_and_flips_move_image_and_mask_together():
    image, mask = ramp(40, 60)
    torch.manual_seed(0)
    places, flips = set(), set()
    for _ in range(50):
        pixel_values, labels = T.training(16)(image, mask)
        assert pixel_values.shape == (3, 16, 16) and labels.shape == (16, 16)
        back = raw(pixel_values).round().int()
        assert torch.equal(back[0], labels.int())
        columns = back[1, 0].tolist()
        assert columns in (list(range(columns[0], columns[0] + 16)), list(range(columns[0], columns[0] - 16, -1)))
        flips.add(columns[0] > columns[1])
        places.add((int(labels[0, 0]), min(columns)))
    assert flips == {True, False}
    assert len(places) > 30
    assert max(row for row, _ in places) <= 24 and max(column for _, column in places) <= 44


def test_flip_0_and_1_never_and_always_mirror():
    image, mask = ramp(4, 4)
    assert raw(T.training(4, flip=0)(image, mask)[0])[1, 0].round().tolist() == [0, 1, 2, 3]
    assert raw(T.training(4, flip=1)(image, mask)[0])[1, 0].round().tolist() == [3, 2, 1, 0]


def test_small_images_are_padded_with_0_after_normalization_and_labels_with_255():
    image, mask = ramp(3, 5)
    pixel_values, labels = T.training((6, 8), flip=0)(image, mask)
    assert pixel_values.shape == (3, 6, 8)
    assert torch.equal(raw(pixel_values)[0, :3, :5].round().int(), mask.int())
    assert (pixel_values[:, 3:] == 0).all() and (pixel_values[:, :, 5:] == 0).all()
    assert (labels[3:] == 255).all() and (labels[:, 5:] == 255).all()
    assert torch.equal(labels[:3, :5], mask)


def halves(share):
    """A mask 100 wide: class 0 left, then a strip of `share` with class 1 at the right end; the rest of class 0."""
    mask = torch.zeros(20, 100, dtype=torch.uint8)
    mask[:, 100 - share :] = 1
    return tv_tensors.Image(torch.zeros(3, 20, 100, dtype=torch.uint8)), tv_tensors.Mask(mask)


def test_crops_avoid_windows_that_one_class_fills():
    image, mask = halves(40)
    torch.manual_seed(0)
    plain, chosen = T.Crop(20), T.Crop(20, cat_max_ratio=0.75)

    def mixed(crop):
        windows = [crop(image, mask)[1] for _ in range(200)]
        return sum(0.25 < (window == 1).float().mean() < 0.75 for window in windows) / 200

    # Of the 81 places, the 9 with 6 to 14 columns of class 1 are mixed: 11% at once, 73% with 10 redraws.
    assert abs(mixed(plain) - 9 / 81) < 0.07
    assert abs(mixed(chosen) - (1 - (72 / 81) ** 11)) < 0.11


def test_ignored_pixels_do_not_count_for_the_class_ratio():
    crop = T.Crop(4, cat_max_ratio=0.75)
    half = torch.full((4, 4), 255)
    half[0, :2], half[0, 2:] = 1, 2
    assert crop._is_mixed(half)
    half[0, 2:] = 255
    assert not crop._is_mixed(half)  # one class alone
    assert not crop._is_mixed(torch.full((4, 4), 255))


def test_random_scales_lie_below_1_half_of_the_time():
    image, mask = ramp(100, 100)
    torch.manual_seed(0)
    resize = T.ResizeRandomly(0.5, 2.0)
    sizes = [resize(image, mask)[1].shape[0] for _ in range(300)]
    assert min(sizes) >= 50 and max(sizes) <= 200
    assert 110 < sum(size < 100 for size in sizes) < 190
    assert min(sizes) < 60 and max(sizes) > 180


def test_the_evaluation_resizes_the_image_and_leaves_the_label_at_full_size():
    image, mask = ramp(64, 128)
    pixel_values, labels = T.Evaluation((64, 32))(image, mask)
    assert pixel_values.shape == (3, 32, 64)
    assert labels is mask
    assert T.Evaluation()(image, None)[0].shape == (3, 64, 128)


def test_the_center_crop_takes_the_middle_and_pads():
    image, mask = ramp(9, 3)
    pixel_values, labels = T.CenterCrop(5)(image, mask)
    assert pixel_values.shape == (3, 5, 5)
    assert labels[:, 0].tolist() == [2, 3, 4, 5, 6]
    assert (labels[:, 3:] == 255).all()


def test_an_image_without_a_mask_goes_through_every_pipeline():
    image, _ = ramp(30, 40)
    for pipeline in (T.training(16, scale=(64, 32), random_scale=(0.5, 2.0), cat_max_ratio=0.75), T.CenterCrop(16)):
        pixel_values, labels = pipeline(image, None)
        assert pixel_values.shape == (3, 16, 16) and labels is None


def test_pipelines_draw_from_the_global_generator_of_torch_alone():
    image, mask = ramp(60, 80)
    pipeline = T.training(16, random_scale=(0.5, 2.0), cat_max_ratio=0.75)
    torch.manual_seed(3)
    first = pipeline(image, mask)
    np.random.seed(5)
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(first, pipeline(image, mask), strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.training(0), "crop is 0; give sides of 1 to 32768 pixels."),
        (lambda: T.training("512"), "crop is '512'; give sides of 1 to 32768 pixels."),
        (lambda: T.training(512.0), "crop is 512.0; give sides of 1 to 32768 pixels."),
        (lambda: T.training(8, flip=1.5), "flip is 1.5, but it must lie between 0 and 1."),
        (lambda: T.training(8, cat_max_ratio=-1), "cat_max_ratio is -1, but it must lie between 0 and 1."),
        (lambda: T.ResizeRandomly(2, 0.5), "The factors are 2 and 0.5; give 0 < low <= 1 <= high <= 100."),
    ],
)
def test_numbers_out_of_range_are_one_sentence(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message
