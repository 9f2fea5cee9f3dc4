"""Label maps as pictures: pixels worked by hand."""

import numpy as np
import pytest

from hf_fst.drawing import overlays

PALETTE = [[200, 0, 0], [0, 100, 50], [10, 20, 30]]
NAMES = ["road", "car", "sky"]


def test_colorize_uses_the_palette_and_hatches_ignored_pixels():
    colors = overlays.colorize(np.array([[0, 1, 255], [2, -100, 0]]), PALETTE)
    assert colors.dtype == np.uint8
    assert colors.tolist() == [
        [[200, 0, 0], [0, 100, 50], [255] * 3],
        [[10, 20, 30], [255] * 3, [200, 0, 0]],
    ]
    # a gray line from lower left to upper right through every fourth pixel
    lines = overlays.colorize(np.full((2, 6), 255, dtype=np.uint8), PALETTE)[..., 0].tolist()
    assert lines == [[144, 255, 255, 255, 144, 255], [255, 255, 255, 144, 255, 255]]


def test_overlay_mixes_image_and_color_and_leaves_ignored_pixels_alone():
    image = np.array([[[100, 50, 0], [100, 50, 0]]], dtype=np.uint8)
    # .5·100 + .5·0 = 50, .5·50 + .5·100 = 75, .5·0 + .5·50 = 25
    assert overlays.overlay(image, np.array([[1, 255]]), PALETTE).tolist() == [[[50, 75, 25], [100, 50, 0]]]
    assert image.tolist() == [[[100, 50, 0], [100, 50, 0]]]


@pytest.mark.parametrize(
    ("label", "message"),
    [(3, "has label 3, but the palette has colors for 0 to 2"), (-1, "has label -1, but the palette")],
)
def test_labels_without_a_color_are_refused(label, message):
    with pytest.raises(ValueError, match=message):
        overlays.colorize(np.full((2, 2), label), PALETTE)


# what a dichromat sees, in linear RGB: Machado, Oliveira and Fernandes (2009), severity 1
SEEN = {
    "all": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # of linear sRGB


def cielab(colors, seen):
    """sRGB (N, 3) in 0..255 as a person with these eyes sees them, in CIELAB, where 2.3 is just noticeable."""
    colors = np.asarray(colors) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(seen).T, 0, 1)
    f = linear @ (XYZ / XYZ.sum(axis=1, keepdims=True)).T
    x, y, z = np.where(f > (6 / 29) ** 3, np.cbrt(f), f * (29 / 6) ** 2 / 3 + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize("eyes", SEEN)
def test_neighbors_in_the_default_palette_differ_for_all_eyes(eyes):
    colors = cielab(overlays.default_palette(150), SEEN[eyes])
    assert np.linalg.norm(np.diff(colors, axis=0), axis=1).min() > 6
    few = colors[:8]  # of so few classes any two do
    assert np.linalg.norm(few[:, None] - few, axis=-1)[~np.eye(8, dtype=bool)].min() > 6


def test_no_class_looks_like_ignored_pixels_or_is_black():
    palette = overlays.default_palette(255)
    for ignored in (overlays.PAPER, overlays.LINE, 0):
        assert np.abs(cielab(palette, SEEN["all"]) - cielab([[ignored] * 3], SEEN["all"])).sum(1).min() > 3


def test_default_palette_gives_every_class_its_own_color():
    palette = overlays.default_palette(60)
    assert palette.shape == (60, 3) and palette.dtype == np.uint8
    assert len({tuple(color) for color in palette.tolist()}) == 60
    assert overlays.default_palette(2).tolist() == [[0, 114, 178], [230, 159, 0]]


def test_legend_shows_a_swatch_of_each_class_and_wraps():
    wide = overlays.legend(NAMES, PALETTE, width=400, font_size=14)
    narrow = overlays.legend(NAMES, PALETTE, width=80, font_size=14)
    assert wide.shape[1] == 400 and narrow.shape[1] == 80
    assert narrow.shape[0] > wide.shape[0]
    for strip in (wide, narrow):
        counts = [(strip == color).all(-1).sum() for color in PALETTE]
        assert counts == [12 * 12] * 3  # 14 pixels square, less the outline
    only_car = overlays.legend(NAMES, PALETTE, labels=[1])
    assert [(only_car == color).all(-1).any() for color in PALETTE] == [False, True, False]


def test_with_legend_keeps_the_picture_on_top():
    picture = np.full((20, 90, 3), 7, np.uint8)
    result = overlays.with_legend(picture, NAMES, PALETTE)
    assert result.shape[0] > 20 and result.shape[1] == 90
    assert (result[:20] == 7).all() and (result[-1] == 255).all()


def test_tiles_keep_their_pixels():
    """10 x 4 is enlarged 32 times, 640 x 160 shrunk to a width of 320."""
    small, large = np.full((4, 10, 3), 7, np.uint8), np.full((160, 640, 3), 9, np.uint8)
    small[0, 0] = 250
    picture = overlays.tiled([[("a", small), ("b", large)]])
    assert picture.shape == (6 + 20 + 4 * 32 + 6, 6 + 2 * (320 + 6), 3)
    tile = picture[26 : 26 + 128, 6 : 6 + 320]
    assert (tile[:32, :32] == 250).all() and (tile[32:] == 7).all() and (tile[:32, 32:] == 7).all()
    assert (picture[26 : 26 + 80, 332 : 332 + 320] == 9).all()


def has_color(pixels, color):
    return (pixels == color).all(-1).any()


def test_grid_shows_each_map_in_its_column():
    image = np.full((40, 60, 3), 90, np.uint8)
    label, student, teacher = (np.full((40, 60), label) for label in (0, 1, 2))
    pixels = overlays.grid([(image, label, student, teacher)] * 2, NAMES, PALETTE)
    columns = np.array_split(pixels[30:200], 4, axis=1)  # below the titles of the first row
    colors = [[90, 90, 90], *PALETTE]
    assert [[has_color(column[:, 20:-20], color) for color in colors] for column in columns] == np.eye(4).tolist()


def test_grid_takes_rows_of_different_sizes_and_hatches_ignored_pixels():
    small, large = np.full((20, 30, 3), 90, np.uint8), np.full((80, 60, 3), 90, np.uint8)
    rows = [(small, np.full((20, 30), 255, np.uint8)), (large, np.ones((80, 60), int))]
    pixels = overlays.grid(rows, NAMES, PALETTE, titles=("image", "label"))
    assert has_color(pixels, PALETTE[1]) and has_color(pixels, [144, 144, 144])
    assert not has_color(pixels, PALETTE[0])
