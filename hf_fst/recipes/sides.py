"""The sides of a recipe: which datasets it names, and which of their images have labels."""

from __future__ import annotations

import inspect
import math
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import datasets

from hf_fst.data import DATASETS, load
from hf_fst.data.folders import read_id2label
from hf_fst.data.sampling import class_pixels
from hf_fst.data.splits import nested_order, read_list
from hf_fst.errors import UsageError, UserError
from hf_fst.recipes.keys import Recipe


@dataclass(frozen=True)
class Side:
    """One side of a recipe.

    Args:
        name: a name out of `DATASETS`.
        data_dir: where it lies.
        options: further options of that dataset.
        split: the split that is used.
    """

    name: str
    data_dir: str | None
    options: dict | None
    split: str = "train"


def sides(recipe: Recipe) -> dict[str, Side]:
    """The sides that a recipe names: `labeled`; `unlabeled`, unless it is the rest of the labeled one; `evaluation`,
    unless it is one of these two. A side lies where another one of the same name does if it has no folder of its own.

    Raises:
        UsageError: it names no dataset.
    """
    if recipe.dataset is None:
        raise UsageError(f"dataset is missing; give one of {', '.join(sorted(DATASETS))}.")
    found = {"labeled": Side(recipe.dataset, recipe.data_dir, recipe.dataset_options)}
    own = {
        "unlabeled": (recipe.unlabeled_dataset, recipe.unlabeled_data_dir, recipe.unlabeled_options),
        "evaluation": (recipe.eval_dataset, recipe.eval_data_dir, recipe.eval_options),
    }
    for key, (name, data_dir, options) in own.items():
        if name is data_dir is options is None:
            continue
        *_, before = found.values()
        name = name or before.name
        known = {side.name: side.data_dir for side in found.values()}
        split = "train" if key == "unlabeled" else recipe.eval_split or ""
        found[key] = Side(name, data_dir or known.get(name), options, split)
    return found


def load_side(recipe: Recipe, side: Side, labeled: int | str | None = None) -> datasets.DatasetDict:
    """The splits of a side; a loader that can choose the labeled images itself gives `unlabeled` too.

    Args:
        recipe: gives `id2label` and `split_seed`.
        side: which.
        labeled: how much of train is labeled, as in the recipe.
    """
    options = dict(side.options or {})
    accepted = inspect.signature(DATASETS[side.name]).parameters
    if recipe.id2label is not None:
        if side.name == "folder":
            options.setdefault("id2label", str(Path(recipe.id2label).expanduser().absolute()))
        elif side.name == "hub":
            options.setdefault("names", read_id2label(recipe.id2label))
        else:
            raise UsageError(f"id2label is set, but the dataset {side.name!r} names its classes itself; leave it out.")
    if labeled is not None and "labeled" in accepted and not _is_list_file(labeled):
        if isinstance(labeled, str) and side.name != "camvid":  # which knows the shares by their published counts
            labeled = _count(labeled, len(load(side.name, side.data_dir, **options)["train"]))
        options.setdefault("labeled", labeled)
        options.setdefault("seed", recipe.split_seed)
    return load(side.name, side.data_dir, **options)


def take_split(loaded: datasets.DatasetDict, side: Side, split: str, labels: bool = False) -> datasets.Dataset:
    """A split of a loaded side. Raises `UserError` where it is not there, or has no labels but needs them."""
    if split not in loaded:
        raise UserError(
            f"The dataset {side.name!r} has no split {split!r} (it has {', '.join(loaded)}); choose another."
        )
    if labels and "label" not in loaded[split].features:
        raise UserError(f"The split {split!r} of {side.name!r} has no labels; choose one with labels.")
    return loaded[split]


def take_labeled(
    loaded: datasets.DatasetDict, side: Side, labeled: int | str | None, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The labeled images of a side and the rest, None without a rest.

    Args:
        loaded: its splits.
        side: which.
        labeled: a share such as 1/8, a count, a list file, or None for all.
        seed: of the choice.
    """
    train = take_split(loaded, side, "train", labels=labeled is not None)
    if labeled is None or "unlabeled" in loaded:
        return train, loaded.get("unlabeled")
    if _is_list_file(labeled):
        chosen = _listed(train, labeled)
    else:
        count = _count(labeled, len(train))
        if not 1 <= count < len(train):
            raise UserError(
                f"labeled is {labeled} ({count} of {len(train)} images); at least 1 must be labeled and 1 not."
            )
        rows = [str(i) for i in range(len(train))]
        chosen = sorted(int(row) for row in nested_order(rows, class_pixels(train), seed, count)[:count])
    rest = sorted(set(range(len(train))) - set(chosen))
    return train.select(chosen), train.select(rest)


def _is_list_file(labeled: int | str) -> bool:
    if isinstance(labeled, int):
        return False
    return not (labeled.count("/") == 1 and all(part.strip().isdecimal() for part in labeled.split("/")))


def _count(labeled: int | str, total: int) -> int:
    """The number of labeled images; shares are rounded up, as the published splits are."""
    if isinstance(labeled, int):
        return labeled
    above, below = (int(part) for part in labeled.split("/"))
    if not 0 < above <= below:
        raise UsageError(f"labeled is {labeled!r}; give a share above 0 and up to 1.")
    return math.ceil(total * above / below)


def _listed(train: datasets.Dataset, path: str) -> list[int]:
    """Rows whose image file ends like a line of the list, suffixes aside."""
    stored = train.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))["image"]
    names = [unicodedata.normalize("NFC", value["path"] or "") for value in stored]
    files = [PurePosixPath(name).with_suffix("") for name in names]
    chosen = []
    for line in read_list(path):
        parts = PurePosixPath(line.replace("\\", "/"))
        wanted = {parts.parts, parts.with_suffix("").parts}
        found = [i for i, file in enumerate(files) if file.parts[-len(parts.parts) :] in wanted]
        if len(found) != 1:
            raise UserError(
                f"{path} names {line!r}, which {len(found)} images of train have; give names that are there once."
            )
        chosen += found
    return chosen
