"""Masks and images that EXIF turns are brought to one orientation, or refused."""

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from hf_fst.data import DataError, LabelMap, View, geometry

TURN = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


def scene(size, seed=0):
    """Ids (H,W) of two classes without symmetry, and a noisy image in which class 1 is brighter."""
    height, width = size
    ids = np.zeros(size, np.uint8)
    ids[height // 8 : height // 2, : width // 3] = 1
    ids[: height // 5, width // 2 :] = 1
    rng = np.random.default_rng(seed)
    pixels = (ids[..., None] * 90 + 60 + rng.integers(0, 50, (*size, 3))).astype(np.uint8)
    return ids, pixels


def pair(place, size, image_tag, mask_upright, mask_tag=1, flat=False, orientation=None, suffix="png"):
    """A view of one image stored with `image_tag`, and its mask, upright or on the stored pixels."""
    ids, pixels = scene(size)
    pixels = np.full_like(pixels, 99) if flat else pixels
    stored, upright = PIL.Image.fromarray(ids), PIL.Image.fromarray(ids).transpose(TURN[image_tag])
    tags = [PIL.Image.Exif() for _ in range(2)]
    tags[0][0x0112], tags[1][0x0112] = image_tag, mask_tag
    PIL.Image.fromarray(pixels).save(place / f"image.{suffix}", exif=tags[0])
    (upright if mask_upright else stored).save(place / "mask.png", exif=tags[1])
    features = datasets.Features(image=datasets.Image(), label=LabelMap(names=["a", "b"], orientation=orientation))
    rows = {"image": [str(place / f"image.{suffix}")], "label": [str(place / "mask.png")]}
    return View(datasets.Dataset.from_dict(rows, features=features), lambda *both: both), np.asarray(upright)


@pytest.mark.parametrize("mask_upright", [False, True])
@pytest.mark.parametrize("size", [(40, 40), (40, 64)])
@pytest.mark.parametrize("tag", range(2, 9))
def test_masks_stored_upright_or_as_the_pixels_lie_on_their_image(tmp_path, tag, size, mask_upright):
    view, upright = pair(tmp_path, size, tag, mask_upright)
    image, labels = view.read(0)
    assert image.shape[-2:] == labels.shape and np.array_equal(labels.numpy(), upright)


@pytest.mark.parametrize("mask_upright", [False, True])
def test_a_mask_that_carries_the_tag_of_its_image_is_turned_once(tmp_path, mask_upright):
    view, upright = pair(tmp_path, (40, 64), 6, mask_upright, mask_tag=6, suffix="tif")
    assert np.array_equal(view.read(0)[1].numpy(), upright)


@pytest.mark.parametrize("orientation", ["upright", "stored"])
def test_where_nothing_tells_the_orientation_it_is_asked_for(tmp_path, orientation):
    view, _ = pair(tmp_path, (40, 40), 6, True, flat=True)
    with pytest.raises(
        DataError, match=r"image\.png has EXIF orientation 6 .*give mask_orientation as 'upright' or 'stored'"
    ):
        view.read(0)
    view, upright = pair(tmp_path, (40, 40), 6, orientation == "upright", flat=True, orientation=orientation)
    assert np.array_equal(view.read(0)[1].numpy(), upright)


def test_a_mask_of_one_class_needs_no_decision(tmp_path):
    view, _ = pair(tmp_path, (40, 40), 3, True, flat=True)
    PIL.Image.new("L", (40, 40), 1).save(tmp_path / "mask.png")
    assert (view.read(0)[1] == 1).all()


def test_a_size_that_no_turn_explains_is_one_sentence_about_exif(tmp_path):
    view, _ = pair(tmp_path, (40, 64), 6, True)
    PIL.Image.new("L", (30, 64)).save(tmp_path / "mask.png")
    with pytest.raises(
        DataError, match=r"is 30 x 64 pixels, but its image .*image\.png is 40 x 64; .*EXIF orientation 6"
    ):
        view.read(0)


@pytest.mark.parametrize(("strengths", "clear"), [((1.4, 1.0), False), ((1.6, 1.0), True), ((0.0, 0.0), False)])
def test_edges_decide_where_they_are_clearly_stronger_in_one_reading(monkeypatch, strengths, clear):
    ids, pixels = scene((32, 32))
    mask, picture = PIL.Image.fromarray(ids), torch.from_numpy(pixels).permute(2, 0, 1)
    known = {mask.tobytes(): strengths[0]}
    monkeypatch.setattr(geometry, "_edges", lambda way, picture: known.get(way.tobytes(), strengths[1]))
    arguments = mask, 1, picture, 6, None, ("m.png", "i.jpg")
    if clear:
        assert geometry.brought_together(*arguments).tobytes() == mask.tobytes()
    else:
        with pytest.raises(DataError, match="give mask_orientation"):
            geometry.brought_together(*arguments)


def test_edges_count_above_the_mean_step_and_from_a_few_borders_on():
    slope = torch.arange(32).repeat(3, 32, 1).to(torch.uint8) * 4  # equal steps everywhere
    ids = np.zeros((32, 32), np.uint8)
    ids[:, 16:] = 1
    steep = slope.clone()
    steep[..., 16:] += 60
    found = [geometry._edges(PIL.Image.fromarray(mask), image) for mask, image in ((ids, slope), (ids, steep))]
    assert found[0] == pytest.approx(2, abs=0.2) and found[1] == pytest.approx(61, abs=1)  # half of the steps are 0
    for side, enough in ((3, False), (4, True)):  # 12 and 16 pairs of pixels at the border
        ids = np.zeros((32, 32), np.uint8)
        ids[8 : 8 + side, 8 : 8 + side] = 1
        image = torch.from_numpy(ids * 200).expand(3, -1, -1)
        assert (geometry._edges(PIL.Image.fromarray(ids), image) > 0) is enough
