"""Each kind of file is read as the table in docs/data.md says, or refused by name."""

from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from hf_fst.data import DataError, LabelMap
from hf_fst.data.images import decode_pixels
from hf_fst.data.masks import decode_mask
from tests.data.kinds import IMAGES, MASKS, RGB, Kind, png, save, table, tiff

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def stored(path, as_bytes=False):
    return {"path": None, "bytes": path.read_bytes()} if as_bytes else {"path": str(path), "bytes": None}


def check(kind: Kind, path: Path, read):
    if kind.expected is None:
        with pytest.raises(DataError) as caught:
            read(stored(path))
        message = str(caught.value)
        assert message.startswith(str(path)) and kind.says in message and "\n" not in message
        with pytest.raises(DataError, match="given as bytes"):
            read(stored(path, as_bytes=True))
    else:
        assert np.array_equal(read(stored(path)), kind.expected)
        assert np.array_equal(read(stored(path, as_bytes=True)), kind.expected)


def decoded(value):
    """The pixels (H,W,3) of a stored image."""
    return decode_pixels(value)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", IMAGES, ids=lambda kind: kind.file)
def test_an_image_is_read_or_refused_as_the_table_says(tmp_path, kind):
    assert (kind.expected is None) == kind.result.startswith("refused")
    check(kind, kind.make(tmp_path), decoded)


@pytest.mark.parametrize("kind", MASKS, ids=lambda kind: kind.file)
def test_a_mask_is_read_or_refused_as_the_table_says(tmp_path, kind):
    assert (kind.expected is None) == kind.result.startswith("refused")
    label_map = LabelMap(names=["a", "b", "c"], colors=kind.colors)
    check(kind, kind.make(tmp_path), lambda value: np.asarray(label_map.decode_example(value)))


def test_the_page_shows_the_table():
    text = PAGE.read_text(encoding="utf-8")
    assert table(IMAGES, "images") in text and table(MASKS, "masks") in text


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("width", [5, 8])
def test_low_bit_masks_of_any_width_hold_the_ids_in_the_file(tmp_path, depth, width):
    ids = np.random.default_rng(0).integers(0, 2**depth, (4, width))
    assert np.array_equal(decode_mask(stored(png(ids, depth)(tmp_path)))[0], ids)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_images_stand_upright_in_each_orientation(tmp_path, orientation, suffix):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stripes = np.zeros((16, 24, 3), np.uint8)
    stripes[:8], stripes[8:, 12:] = 250, 100
    path = save(stripes, suffix, exif=exif)(tmp_path)
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }[orientation]
    assert decode_pixels(stored(path))[1] == orientation
    assert np.abs(decoded(stored(path)).astype(int) - turn(stripes).astype(int)).max() < 12


def test_a_preview_in_a_tiff_is_no_second_picture(tmp_path):
    small = PIL.Image.fromarray(RGB).resize((4, 3))
    path = save(RGB, "tif", save_all=True, append_images=[small])(tmp_path)
    assert np.array_equal(decoded(stored(path)), RGB)


def test_values_outside_the_range_that_a_tiff_states_are_one_sentence(tmp_path):
    path = tiff(np.array([[0.0, 7.0]], np.float32), low=0, high=5)(tmp_path)
    with pytest.raises(DataError, match="declares values of 0 to 5, but has 0 to 7"):
        decode_pixels(stored(path))


def test_a_sentence_about_32_bits_without_a_sign_shows_their_values(tmp_path):
    path = tiff(np.array([[5, 3_000_000_000]], np.uint32))(tmp_path)
    with pytest.raises(DataError, match="32-bit whole numbers from 5 to 3000000000, whose range is unclear"):
        decode_pixels(stored(path))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_photographs_have_the_same_pixels_whoever_decodes_them(subsampling, progressive):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    file = BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", subsampling=subsampling, progressive=progressive)
    stored = {"path": None, "bytes": file.getvalue()}
    read, turned = decode_pixels(stored)
    assert (turned, read.dtype) == (1, torch.uint8)
    np.testing.assert_array_equal(read.permute(1, 2, 0), np.asarray(PIL.Image.open(file)))
    with pytest.raises(DataError, match="truncated"):
        decode_pixels({"path": None, "bytes": file.getvalue()[:-300]})


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "avif"])
def test_animations_are_refused_whatever_holds_them(tmp_path, suffix):
    first, second = (PIL.Image.fromarray(pixels) for pixels in (RGB, RGB[::-1].copy()))
    first.save(tmp_path / f"file.{suffix}", save_all=True, append_images=[second])
    with pytest.raises(DataError, match="is an animation of 2 frames; save one image per file"):
        decode_pixels({"path": str(tmp_path / f"file.{suffix}"), "bytes": None})


@pytest.mark.parametrize("highest", [0, 1 << 13, (1 << 14) - 1, 1 << 14])
def test_fourteen_bits_in_sixteen_are_refused_and_more_are_read(tmp_path, highest):
    path = png(np.full((2, 3, 3), highest, np.uint16), 16)(tmp_path)
    if highest < 1 << 14:  # of three bands Pillow keeps the high bytes, so that 0 may be anything up to 255
        with pytest.raises(DataError, match="14 of them"):
            decode_pixels(stored(path))
    else:
        assert decoded(stored(path)).max() == highest >> 8
