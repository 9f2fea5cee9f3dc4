"""Label maps as pictures: colors, overlays on the image, a legend, and the grid of image, label, student, teacher.

matplotlib is imported where something is drawn: it takes a second or more, which importing the trainer need not wait for.
Images are uint8 (H, W, 3), label maps integer (H, W) with 255 (or -100) for ignored pixels, palettes (C, 3) in 0..255.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hf_fst.errors import printable

#: ignored pixels are white with gray diagonals, for which no class can be taken; grays, and pixels from line to line
PAPER, LINE, EVERY = 255, 144, 4
TITLES = ("image", "label", "student", "teacher")
TILE, MARGIN, TITLE = 320, 6, 20  # of titled pictures, in pixels
# Okabe and Ito, "Color Universal Design" (2008): eight colors that stay apart for color-blind readers.
OKABE_ITO = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (128, 128, 128),
)


def default_palette(num_labels: int) -> np.ndarray:
    """Colors for datasets that bring none: Okabe and Ito's eight, then hues a golden angle apart, light and
    dark in turn, so that classes of neighboring ids stay apart without hue too. uint8 (C, 3)."""
    from matplotlib.colors import hsv_to_rgb

    extra = np.arange(max(0, num_labels - len(OKABE_ITO)))
    hues = np.stack([extra * 0.618034 % 1, 0.45 + 0.25 * (extra % 3), 0.95 - 0.4 * (extra % 2)], axis=-1)
    colors = np.concatenate([np.array(OKABE_ITO), np.rint(255 * hsv_to_rgb(hues.reshape(-1, 3)))])
    return colors[:num_labels].astype(np.uint8)


def colorize(index_map: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """The label map in the palette's colors, ignored pixels hatched: uint8 (H, W, 3).

    Raises:
        ValueError: the map has a label that the palette has no color for.
    """
    palette = np.asarray(palette, dtype=np.uint8)
    ignored = _ignored(index_map)
    labels = np.where(ignored, 0, index_map)
    if labels.size and (labels.min() < 0 or labels.max() >= len(palette)):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"The label map has label {wrong}, but the palette has colors for 0 to {len(palette) - 1}.")
    colors = palette[labels]
    diagonals = np.add.outer(*map(np.arange, index_map.shape)) % EVERY == 0
    colors[ignored] = np.where(diagonals, LINE, PAPER)[ignored, None]
    return colors


def overlay(image: np.ndarray, index_map: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """The image with the label map's colors over it, half and half: uint8 (H, W, 3). Ignored pixels keep the image."""
    mixed = np.rint(0.5 * image + 0.5 * colorize(index_map, palette)).astype(np.uint8)
    return np.where(_ignored(index_map)[..., None], image, mixed)


def _ignored(index_map: np.ndarray) -> np.ndarray:
    return (index_map == 255) | (index_map == -100)


def labels_in(*index_maps: np.ndarray) -> list[int]:
    """The labels that occur in any of the maps, ascending, ignored pixels left out."""
    return sorted({int(label) for index_map in index_maps for label in np.unique(index_map[~_ignored(index_map)])})


def legend(
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
    labels: Sequence[int] | None = None,
    width: int = 640,
    font_size: int = 14,
) -> np.ndarray:
    """A strip that names the colors, wrapped to a width in pixels: uint8 (h, width, 3), to be put under an overlay.

    Args:
        names: class names, (C,).
        palette: their colors, (C, 3).
        labels: the classes to show, all by default.
        width: of the strip in pixels; a name longer than that is cut off.
        font_size: in pixels.
    """
    labels = range(len(names)) if labels is None else labels
    names = [" ".join(printable(name).split()) for name in names]
    font = ImageFont.load_default(font_size)
    gap, swatch, line = font_size // 2, font_size, round(1.6 * font_size)
    places, x, y = [], gap, 0
    for label in labels:
        needed = swatch + gap + math.ceil(font.getlength(names[label])) + 2 * gap
        if x > gap and x + needed > width:
            x, y = gap, y + line
        places.append((label, x, y))
        x += needed
    strip = Image.new("RGB", (width, y + line + gap), "white")
    draw = ImageDraw.Draw(strip)
    for label, x, y in places:
        top = y + gap
        color = tuple(int(channel) for channel in palette[label])
        draw.rectangle((x, top, x + swatch - 1, top + swatch - 1), fill=color, outline="#808080")
        draw.text((x + swatch + gap, top + swatch / 2), names[label], fill="black", font=font, anchor="lm")
    return np.asarray(strip)


def with_legend(image: np.ndarray, names: Sequence[str], palette: Sequence[Sequence[int]], labels=None) -> np.ndarray:
    """The picture (H, W, 3) with a legend under it: uint8 (H + h, W, 3)."""
    font_size = max(11, min(28, image.shape[1] // 45))
    return np.concatenate([image, legend(names, palette, labels, image.shape[1], font_size)])


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
    titles: Sequence[str] = TITLES,
) -> np.ndarray:
    """Images beside their label maps, one row a sample, above a legend of the classes that occur: uint8 (H, W, 3).

    Args:
        rows: for each sample its image, uint8 (H, W, 3), and its label maps, (H, W) each.
        names: class names, (C,).
        palette: their colors, (C, 3).
        titles: of the columns, as many as a row has pictures.
    """
    shown = [[image, *(colorize(index_map, palette) for index_map in maps)] for image, *maps in rows]
    picture = tiled([[*zip(titles, row, strict=True)] for row in shown])
    labels = labels_in(*(index_map for row in rows for index_map in row[1:]))
    return np.concatenate([picture, legend(names, palette, labels, picture.shape[1])])


def tiled(rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> np.ndarray:
    """Titled pictures in rows, about 320 pixels wide: small ones are enlarged by whole factors, large ones shrunk."""
    rows = [[(title, _resized(picture)) for title, picture in row] for row in rows]
    width = max(picture.width for row in rows for _, picture in row) + MARGIN
    heights = [max(picture.height for _, picture in row) + MARGIN + TITLE for row in rows]
    canvas = Image.new("RGB", (MARGIN + width * max(map(len, rows)), MARGIN + sum(heights)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, (title, picture) in enumerate(row):
            left = MARGIN + column * width
            draw.text((left, top + TITLE / 2), title, fill="black", font=font, anchor="lm")
            canvas.paste(picture, (left, top + TITLE))
        top += height
    return np.asarray(canvas)


def _resized(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    if image.width <= 4 / 3 * TILE:
        factor = max(1, round(TILE / image.width))
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image.resize((TILE, max(1, round(image.height * TILE / image.width))), Image.Resampling.BOX)
