"""Label maps as pictures: colors, overlays on the image, a legend, and the grid of image, label, student, teacher.

matplotlib is imported where something is drawn: it takes a second or more, which importing the trainer need not wait for.
Images are uint8 (H, W, 3), label maps integer (H, W) with 255 (or -100) for ignored pixels, palettes (C, 3) in 0..255.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hf_fst.drawing.tables import in_a_picture
from hf_fst.errors import printable

#: ignored pixels are white with gray diagonals, for which no class can be taken; grays, and pixels from line to line
PAPER, LINE, EVERY = 255, 144, 4
TITLES = ("image", "label", "student", "teacher")
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
        ValueError: If the map is not (H, W) of integers, or has a label the palette has no color for.
    """
    index_map, palette = np.asarray(index_map), np.asarray(palette, dtype=np.uint8)
    if index_map.ndim != 2 or index_map.dtype.kind not in "iu":
        raise ValueError(f"A label map has shape (H, W) and integers, got {index_map.shape} of {index_map.dtype}.")
    ignored = _ignored(index_map)
    labels = np.where(ignored, 0, index_map)
    if labels.size and (labels.min() < 0 or labels.max() >= len(palette)):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"The label map has label {wrong}, but the palette has colors for 0 to {len(palette) - 1}.")
    colors = palette[labels]
    diagonals = np.add.outer(*map(np.arange, index_map.shape)) % EVERY == 0
    colors[ignored] = np.where(diagonals, LINE, PAPER)[ignored, None]
    return colors


def overlay(
    image: np.ndarray, index_map: np.ndarray, palette: Sequence[Sequence[int]], alpha: float = 0.5
) -> np.ndarray:
    """The image with the label map's colors laid over it, (1 - alpha)·image + alpha·color: uint8 (H, W, 3).

    Ignored pixels keep the image.

    Raises:
        ValueError: If the sizes differ, the image is not uint8 (H, W, 3), or alpha is outside 0..1.
    """
    image, index_map = np.asarray(image), np.asarray(index_map)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"An image has shape (H, W, 3) and uint8, got {image.shape} of {image.dtype}.")
    if image.shape[:2] != index_map.shape:
        raise ValueError(f"The image is {image.shape[:2]} (H, W) but its label map {index_map.shape}.")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, it must be between 0 (only the image) and 1 (only the colors).")
    mixed = np.rint((1 - alpha) * image + alpha * colorize(index_map, palette)).astype(np.uint8)
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
        names: Class names, (C,).
        palette: Their colors, (C, 3).
        labels: The classes to show, all by default.
        width: Of the strip in pixels; a name longer than that is cut off.
        font_size: In pixels.
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
    rows: Sequence[Sequence[np.ndarray | None]],
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
    path: str | Path,
    titles: Sequence[str] = TITLES,
    dpi: int = 110,
) -> None:
    """Write a picture with one row a sample and one column each for image, label, student and teacher, and a legend.

    Args:
        rows: For each sample its image, uint8 (H, W, 3), and label maps, (H, W) each; None leaves a place empty
            (no label). Sizes may differ between rows.
        names: Class names, (C,). The legend shows the classes that occur.
        palette: Their colors, (C, 3).
        path: Where to write the picture.
        titles: Of the columns, as many as a row has pictures.
        dpi: Pixels per inch; a column is three inches wide.

    Raises:
        ValueError: If there are no rows, a row has another number of pictures than there are titles, a map's size is
            not its image's, or a label has no color.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = [[None if picture is None else np.asarray(picture) for picture in row] for row in rows]
    if not rows:
        raise ValueError("A grid needs at least one sample, got none.")
    for index, (image, *maps) in enumerate(rows):
        if 1 + len(maps) != len(titles):
            raise ValueError(f"Sample {index} has {1 + len(maps)} pictures for {len(titles)} columns {list(titles)}.")
        for title, index_map in zip(titles[1:], maps, strict=True):
            if index_map is not None and index_map.shape != image.shape[:2]:
                raise ValueError(
                    f"Sample {index}: the image is {image.shape[:2]} (H, W) but its {title} {index_map.shape}."
                )
    maps = [index_map for row in rows for index_map in row[1:] if index_map is not None]
    patches = [
        Patch(facecolor=np.asarray(palette[label]) / 255, edgecolor="#808080", label=in_a_picture(names[label]))
        for label in labels_in(*maps)
    ]
    if any(_ignored(index_map).any() for index_map in maps):
        patches.append(Patch(facecolor="white", edgecolor="#909090", hatch="////", label="ignored"))

    column, title_height, line_height = 3.0, 0.3, 0.27
    width = column * len(titles)
    legend_columns = max(1, min(len(patches), int(width // (0.62 + 0.1 * max(map(len, names))))))
    legend_height = line_height * math.ceil(len(patches) / legend_columns) + 0.15
    heights = [column * row[0].shape[0] / row[0].shape[1] for row in rows]
    height = title_height + sum(heights) + legend_height
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    cells = figure.subplots(
        len(rows),
        len(titles),
        squeeze=False,
        gridspec_kw={
            "height_ratios": heights,
            "left": 0.004,
            "right": 0.996,
            "top": 1 - title_height / height,
            "bottom": legend_height / height,
            "wspace": 0.02,
            "hspace": 0.02 * column / (sum(heights) / len(heights)),
        },
    )
    for row, axes in zip(rows, cells, strict=True):
        for column_index, (picture, axis) in enumerate(zip(row, axes, strict=True)):
            axis.set_axis_off()
            if picture is None:
                axis.text(0.5, 0.5, f"no {titles[column_index]}", ha="center", va="center", transform=axis.transAxes)
            elif column_index == 0:
                axis.imshow(picture, aspect="auto")
            else:
                axis.imshow(colorize(picture, palette), aspect="auto", interpolation="nearest")
    for title, axis in zip(titles, cells[0], strict=True):
        axis.set_title(title, fontsize=13, pad=4)
    if patches:
        figure.legend(
            handles=patches, loc="lower center", ncols=legend_columns, fontsize=11, frameon=False, borderaxespad=0.2,
            handlelength=1.2, handleheight=1.0, columnspacing=1.4, labelspacing=0.3, bbox_to_anchor=(0.5, 0.0),
        )  # fmt: skip
    figure.savefig(path)
