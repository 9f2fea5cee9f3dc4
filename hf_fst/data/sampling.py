"""How images are drawn: class statistics, Rare Class Sampling, several labeled sources."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import datasets
import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset

from hf_fst.data.cached import map_files
from hf_fst.data.labels import LabelMap
from hf_fst.data.views import View, check_rows
from hf_fst.errors import DataError, UserError


def _count(row: dict, index: int, label_map: LabelMap) -> dict:
    try:
        return {"pixels": label_map.decode_example(row["label"]).histogram()[: len(label_map.names)], "error": None}
    except DataError as error:
        return {"pixels": [0] * len(label_map.names), "error": str(error)}


def class_pixels(dataset: datasets.Dataset, on_bad_image: str = "stop") -> np.ndarray:
    """Pixels of each class in each full-size mask, int64 (N,C); cached until a file or the id map changes.

    Args:
        dataset: with a column `label` (`LabelMap` with names).
        on_bad_image: with "skip" an unreadable mask counts as empty.

    Raises:
        UserError: there are no labels.
        DataError: a mask is missing or cannot be read; names the file or row.
    """
    label_map = dataset.features.get("label")
    if not isinstance(label_map, LabelMap) or not label_map.names:
        raise UserError("Class statistics need a column `label` with class names; give a labeled dataset.")
    stored = dataset.with_format(None).select_columns(["label"]).cast_column("label", datasets.Image(decode=False))
    check_rows(stored, ["label"])
    features = datasets.Features(pixels=datasets.List(datasets.Value("int64")), error=datasets.Value("string"))
    desc = "Counting pixels of each class"
    counted = map_files(stored, _count, features, "counts", desc, label_map=label_map)
    pixels = np.array(counted.with_format("numpy")["pixels"][:], dtype=np.int64).reshape(len(stored), -1)
    for row in [row for row, error in enumerate(counted["error"]) if error]:  # it may be readable by now
        again = _count(stored[row], row, label_map)
        if again["error"] and on_bad_image == "stop":
            raise DataError(again["error"])
        pixels[row] = again["pixels"]
    return pixels


def class_probabilities(pixels: np.ndarray, temperature: float = 0.01) -> np.ndarray:
    """P(c) = softmax((1 - f_c) / T) over the classes that occur, 0 for others; f_c is the share of all labeled pixels.

    Rare Class Sampling of Hoyer, Dai, Van Gool (DAFormer, 2022).

    Args:
        pixels: (N,C) counts of pixels.
        temperature: T > 0; smaller values draw rare classes more often.

    Raises:
        UserError: T <= 0, or no pixel is labeled.
    """
    if temperature <= 0:
        raise UserError(f"The temperature is {temperature}, but it must be greater than 0.")
    total = pixels.sum(0).astype(np.float64)
    if total.sum() == 0:
        raise UserError("No pixel of the dataset is labeled; rare classes cannot be found.")
    logits = np.where(total > 0, (1 - total / total.sum()) / temperature, -np.inf)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def class_table(pixels: np.ndarray, names: Sequence[str]) -> list[dict]:
    """A row for each class: `class`, `pixels`, `share` of all labeled pixels in 0..1, and `images` that have it."""
    total, images = pixels.sum(0), (pixels > 0).sum(0)
    shares = total / max(total.sum(), 1)
    return [
        {"class": name, "pixels": int(total[i]), "share": float(shares[i]), "images": int(images[i])}
        for i, name in enumerate(names)
    ]


class RareClasses(Dataset):
    """Rare Class Sampling: a dataset whose items are drawn by class, whatever the index.

    Draws a class c from `class_probabilities`, then an image with more than `min_pixels` pixels of it, then crops
    until one has more than `min_pixels * min_crop_ratio` (at most `tries` more). Uses torch's global CPU generator,
    which `Pairs` seeds.

    Args:
        view: the labeled images.
        pixels: (N,C) from `class_pixels`; computed if None.
        temperature: of `class_probabilities`.
        min_pixels: as published, for crops of 512 x 512.
        min_crop_ratio: share of `min_pixels` that a crop needs, in [0, 1].
        tries: further crops at most.
        crop: (height, width) or side of the crop; if given, `min_pixels` is scaled by its area over 512 x 512.

    Warns about classes that no image has enough of: they are never drawn.
    """

    def __init__(
        self,
        view: View,
        pixels: np.ndarray | None = None,
        temperature: float = 0.01,
        min_pixels: float = 3000,
        min_crop_ratio: float = 0.5,
        tries: int = 10,
        crop: int | tuple[int, int] | None = None,
    ):
        if not view.with_labels:
            raise UserError("Rare Class Sampling needs labels; give a view of a labeled dataset with its labels.")
        pixels = class_pixels(view.dataset) if pixels is None else np.asarray(pixels)
        names = view.label_map.names
        if pixels.shape != (len(view), len(names)):
            raise UserError(
                f"The statistics are for {pixels.shape[0]} images and {pixels.shape[1]} classes, but the dataset has "
                f"{len(view)} and {len(names)}; count them again."
            )
        if min_pixels < 0 or not 0 <= min_crop_ratio <= 1 or tries < 0:
            raise UserError(
                f"min_pixels is {min_pixels}, min_crop_ratio {min_crop_ratio} and tries {tries}; give 0 or more, and a "
                "min_crop_ratio of at most 1."
            )
        if crop is not None:
            height, width = (crop, crop) if isinstance(crop, int) else crop
            min_pixels = min_pixels * height * width / 512**2
        self.view, self.pixels, self.names = view, pixels, names
        self.min_pixels, self.min_crop_ratio, self.tries = min_pixels, min_crop_ratio, tries
        self.images = [torch.from_numpy(np.flatnonzero(column > min_pixels)) for column in pixels.T]
        probabilities = class_probabilities(pixels, temperature)
        for name, column, images in zip(names, pixels.T, self.images, strict=True):
            if column.sum() == 0:
                warnings.warn(f"No image has the class {name!r}; Rare Class Sampling never draws it.", stacklevel=2)
            elif len(images) == 0:
                warnings.warn(
                    f"No image has more than {min_pixels:g} pixels of the class {name!r}; Rare Class Sampling never "
                    "draws it (lower min_pixels).",
                    stacklevel=2,
                )
        probabilities[[len(images) == 0 for images in self.images]] = 0
        if probabilities.sum() == 0:
            raise UserError(f"No image has more than {min_pixels:g} pixels of any class; lower min_pixels.")
        self.probabilities = torch.from_numpy(probabilities / probabilities.sum())

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        category = int(torch.multinomial(self.probabilities, 1))
        images = self.images[category]
        read = self.view.read(int(images[torch.randint(len(images), ())]))
        item = self.view.finish(*read)
        for _ in range(self.tries):
            if (item["labels"] == category).sum() > self.min_pixels * self.min_crop_ratio:
                break
            item = self.view.finish(*read)
        return item

    def table(self) -> list[dict]:
        """The statistics, a row for each class (`class_table`), with the `probability` of drawing it."""
        rows = zip(class_table(self.pixels, self.names), self.probabilities.tolist(), strict=True)
        return [row | {"probability": probability} for row, probability in rows]


class Sources(Dataset):
    """Several labeled sources drawn with given probabilities, whatever the index: the source first, then an image of it.

    Uses torch's global CPU generator, which `Pairs` seeds. Its length is the sum of the lengths.
    """

    def __init__(self, sources: Sequence[Dataset], probabilities: Sequence[float]):
        if len(probabilities) != len(sources) or min(probabilities) < 0 or sum(probabilities) <= 0:
            raise UserError(
                f"The probabilities are {list(probabilities)} for {len(sources)} sources; give one for each, at least 0 "
                "and not all 0."
            )
        self.sources = list(sources)
        self.probabilities = torch.tensor(probabilities, dtype=torch.float64)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        source = self.sources[int(torch.multinomial(self.probabilities, 1))]
        return source[int(torch.randint(len(source), ()))]


def combine(sources: Sequence[View | RareClasses], probabilities: Sequence[float] | None = None) -> Dataset:
    """Several labeled sources as one: end to end, or with `probabilities` (need not sum to 1) one drawn for each item.
    Raises `UserError` for an empty source, wrong probabilities, or class names that differ."""
    if not sources or any(len(source) == 0 for source in sources):
        raise UserError("Each labeled source needs at least one image; leave out empty ones.")
    views = [source.view if isinstance(source, RareClasses) else source for source in sources]
    if not all(view.with_labels for view in views):
        raise UserError("Each labeled source needs labels; give views of labeled datasets with their labels.")
    names = [view.label_map.names for view in views]
    for other in names[1:]:
        if other != names[0]:
            raise UserError(
                f"The labeled sources have different classes ({names[0]} and {other}); map them to the same."
            )
    return ConcatDataset(sources) if probabilities is None else Sources(sources, probabilities)
