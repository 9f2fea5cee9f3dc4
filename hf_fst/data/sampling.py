"""Which images are drawn: class statistics, Rare Class Sampling, several labeled sources."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset

from hf_fst.data.labels import IGNORED, LabelMap
from hf_fst.data.views import View, check_rows
from hf_fst.errors import UserError


def _count(row: dict, label_map: LabelMap) -> dict:
    counts = np.array(label_map.decode_example(row["label"]).histogram(), dtype=np.int64)
    return {"pixels": counts[: len(label_map.names)], "ignored": counts[IGNORED]}


def _key(stored: datasets.Dataset, label_map: LabelMap) -> str:
    """A name for the statistics: the same only for the same files (path, size, time) and the same id map."""
    digest = hashlib.sha256(json.dumps(asdict(label_map), sort_keys=True).encode())
    in_files = True
    for value in stored["label"]:
        path = value["path"]
        in_files = in_files and value["bytes"] is None and path is not None and os.path.exists(path)
        if not in_files:
            break
        status = os.stat(path)
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    if not in_files:
        digest.update(stored._fingerprint.encode())
    return digest.hexdigest()[:24]


def count_pixels(
    dataset: datasets.Dataset, num_proc: int | None = None, cache_dir: str | Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Counts the pixels of each class, int64 (N,C), and the ignored ones, int64 (N,), in each full-size mask.

    Computed once by `datasets.map` in several processes and kept; a changed file, order or id map is counted again.

    Args:
        dataset: with a column `label` (`LabelMap` with names).
        num_proc: processes; None for one a core, and one for small sets.
        cache_dir: where the counts are kept; None for the folder `hf_fst` in the cache of `datasets`.

    Raises `ValueError` without labels, `DataError` (naming file or row) for a mask that is missing or cannot be read.
    """
    label_map = dataset.features.get("label")
    if not isinstance(label_map, LabelMap) or not label_map.names:
        raise UserError("Class statistics need a column `label` with class names; give a labeled dataset.")
    stored = dataset.with_format(None).select_columns(["label"]).cast_column("label", datasets.Image(decode=False))
    check_rows(stored, ["label"])
    folder = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "hf_fst")
    folder.mkdir(parents=True, exist_ok=True)
    if num_proc is None:
        num_proc = min(os.cpu_count() or 1, 16, len(stored) // 64)
    counted = stored.map(
        _count,
        fn_kwargs={"label_map": label_map},
        remove_columns=["label"],
        features=datasets.Features(pixels=datasets.List(datasets.Value("int64")), ignored=datasets.Value("int64")),
        num_proc=num_proc if num_proc > 1 else None,
        cache_file_name=str(folder / f"counts-{_key(stored, label_map)}.arrow"),
        load_from_cache_file=True,
        desc="Counting pixels of each class",
    ).with_format("numpy")
    pixels = np.array(counted["pixels"][:], dtype=np.int64).reshape(len(stored), -1)
    return pixels, np.array(counted["ignored"][:], dtype=np.int64)


def class_pixels(
    dataset: datasets.Dataset, num_proc: int | None = None, cache_dir: str | Path | None = None
) -> np.ndarray:
    """The pixels of each class in each mask, int64 (N,C), as `count_pixels` counts them."""
    return count_pixels(dataset, num_proc, cache_dir)[0]


def look_at_labels(dataset: datasets.Dataset) -> list[str]:
    """Looks at all labels before something is trained on them.

    Returns: sentences about what is probably not meant: classes without a pixel, more than half of the pixels ignored.

    Raises:
        ValueError: nothing can be learned from the labels: one class name, no labeled pixel, one of two classes alone.
    """
    pixels, ignored = count_pixels(dataset)
    names, total = dataset.features["label"].names, pixels.sum(0)
    share = ignored.sum() / max(ignored.sum() + total.sum(), 1)
    missing = [name for name, count in zip(names, total, strict=True) if count == 0]
    if len(names) == 1:
        raise UserError(
            f"The only class is {names[0]!r}, so that there is nothing to tell it from; name the background too, as "
            f"['background', {names[0]!r}], with an id map where the masks need one."
        )
    if len(missing) == len(names):
        raise UserError(
            f"No pixel of the labels has a class, all are {IGNORED} (ignored); is the id map right? Masks of 0 and 255 "
            "need id_map: {0: 0, 255: 1}."
        )
    if len(names) == 2 and missing:
        binary = (
            " Its masks hold one id and 255, which is ignored; if they are drawn as 0 and 255, give id_map: "
            "{0: 0, 255: 1}."
            if share > 0
            else ""
        )
        raise UserError(
            f"No pixel of the labels is {missing[0]!r}, so that there is nothing to learn; check masks and id map."
            f"{binary}"
        )
    warnings = []
    if missing:
        warnings.append(
            f"No pixel of the labels is {', '.join(map(repr, missing))}; check class names and id map, or leave the "
            f"class{'es' * (len(missing) > 1)} out."
        )
    if share > 0.5:
        warnings.append(
            f"{share:.0%} of the pixels are ignored ({IGNORED}), so that little is learned from; check the id map, "
            "unless the labels are sparse."
        )
    return warnings


def class_probabilities(pixels: np.ndarray, temperature: float = 0.01) -> np.ndarray:
    """P(c) = softmax((1 - f_c) / T) over the classes that occur, 0 for others; f_c is the share of all labeled pixels.

    Rare Class Sampling of Hoyer, Dai, Van Gool (DAFormer, 2022).

    Args:
        pixels: (N,C) counts of pixels.
        temperature: T > 0; smaller draws rare classes more.

    Raises `ValueError` for T <= 0 or where no pixel is labeled.
    """
    if temperature <= 0:
        raise UserError(f"The temperature is {temperature}, but it must be greater than 0.")
    total = pixels.sum(0).astype(np.float64)
    if total.sum() == 0:
        raise UserError("No pixel of the dataset is labeled; rare classes cannot be found.")
    logits = np.where(total > 0, (1 - total / total.sum()) / temperature, -np.inf)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def class_table(pixels: np.ndarray, names: Sequence[str], temperature: float = 0.01) -> list[dict]:
    """A row for each class: `class`, `pixels`, `share` of all labeled pixels, `images` that have it, and `probability`.

    `probability` is that of drawing the class in Rare Class Sampling. Shares and probabilities lie in 0..1.
    """
    probability = class_probabilities(pixels, temperature)
    total = pixels.sum(0)
    return [
        {
            "class": name,
            "pixels": int(total[i]),
            "share": float(total[i] / total.sum()),
            "images": int((pixels[:, i] > 0).sum()),
            "probability": float(probability[i]),
        }
        for i, name in enumerate(names)
    ]


class RareClasses(Dataset):
    """Rare Class Sampling: a dataset whose items are drawn by class, whatever the index.

    Draws a class c from `class_probabilities`, then an image with more than `min_pixels` pixels of it, then crops
    until one has more than `min_pixels * min_crop_ratio` (at most `tries` more). Draws from torch's global generator
    of the CPU, which `Pairs` seeds.

    Args:
        view: the labeled images.
        pixels: (N,C) from `class_pixels`; computed where None.
        temperature: of `class_probabilities`.
        min_pixels: as published, for crops of 512 x 512.
        min_crop_ratio: share of `min_pixels` that a crop needs, in [0, 1].
        tries: further crops at most.
        crop: (height, width) or side of the crop; where given, `min_pixels` is scaled by its area over 512 x 512.

    Warns, naming it, of a class that no image has, or none has enough of: it is never drawn.
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
                f"min_pixels is {min_pixels}, min_crop_ratio {min_crop_ratio} and tries {tries}, but they must be at "
                "least 0 and min_crop_ratio at most 1."
            )
        if crop is not None:
            height, width = (crop, crop) if isinstance(crop, int) else crop
            min_pixels = min_pixels * height * width / 512**2
        self.view, self.pixels, self.names = view, pixels, names
        self.temperature, self.min_pixels = temperature, min_pixels
        self.min_crop_ratio, self.tries = min_crop_ratio, tries
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
        """The statistics, a row for each class (`class_table`), with the probabilities that are drawn with."""
        rows = class_table(self.pixels, self.names, self.temperature)
        return [row | {"probability": p} for row, p in zip(rows, self.probabilities.tolist(), strict=True)]


class Sources(Dataset):
    """Several labeled sources drawn with given probabilities, whatever the index: the source first, then an image of it.

    Draws from torch's global generator of the CPU, which `Pairs` seeds. Its length is the sum of the lengths.
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

    Raises `ValueError` for no source, an empty one, wrong probabilities, or sources with different class names.
    """
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
