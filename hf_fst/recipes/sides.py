"""The sides of a recipe: which datasets it names, and which of their images have labels."""

from __future__ import annotations

import inspect
import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import datasets

from hf_fst.data import DATASETS, load
from hf_fst.data.camvid import FRACTIONS
from hf_fst.data.folders import read_id2label
from hf_fst.data.labels import check_names
from hf_fst.data.sampling import class_pixels
from hf_fst.data.splits import nested_order, read_list
from hf_fst.errors import UsageError, UserError, did_you_mean
from hf_fst.recipes.keys import Recipe

# the keys for the dataset of a side, its folder, and its further options
KEYS = {
    "labeled": ("dataset", "data_dir", "dataset_options"),
    "unlabeled": ("unlabeled_dataset", "unlabeled_data_dir", "unlabeled_options"),
    "evaluation": ("eval_dataset", "eval_data_dir", "eval_options"),
}


@dataclass(frozen=True)
class Side:
    """One side of a recipe: a dataset by its name in `DATASETS`, its place and further options, and the split used."""

    name: str
    data_dir: str | None
    options: dict | None
    split: str = "train"


def sides(recipe: Recipe) -> dict[str, Side]:
    """The sides that a recipe names: `labeled`; `unlabeled`, unless it is the rest of the labeled one; `evaluation`,
    unless it is one of these two. A side without a folder of its own has that of another one of the same dataset.
    Raises `UsageError` if it names no dataset."""
    if recipe.dataset is None:
        raise UsageError(f"dataset is missing; give one of {', '.join(sorted(DATASETS))}.")
    found: dict[str, Side] = {}
    for key, names in KEYS.items():
        name, data_dir, options = (getattr(recipe, each) for each in names)
        if name is data_dir is options is None:
            continue
        name = name or [*found.values()][-1].name
        known = {side.name: side.data_dir for side in found.values()}
        split = recipe.eval_split or "" if key == "evaluation" else "train"
        found[key] = Side(name, data_dir or known.get(name), options, split)
    return found


def forgotten(named: dict[str, Side]) -> bool:
    """Whether the unlabeled images would be everything in the labeled folder, masks too; no other folder was named."""
    labeled, unlabeled = named["labeled"], named.get("unlabeled")
    return (
        unlabeled is not None
        and unlabeled.name == labeled.name == "folder"
        and unlabeled.data_dir == labeled.data_dir is not None
        and (unlabeled.options or {}).get("images") == "."
    )


def load_side(
    recipe: Recipe, side: Side, labeled: int | str | None = None, key: str = "labeled"
) -> datasets.DatasetDict:
    """The splits of a side; a loader that can choose the labeled images itself gives `unlabeled` too.

    Args:
        recipe: gives `id2label`, `split_seed` and `on_bad_image`.
        side: the side to load.
        labeled: how much of train is labeled, as in the recipe.
        key: the side's name in `sides`; errors name its options on the command line.
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
        options.setdefault("on_bad_image", recipe.options.get("on_bad_image", "stop"))
    try:
        return load(side.name, side.data_dir, **options)
    except UserError as error:
        _, data_dir, more = KEYS[key]
        message = re.sub(r"\bdata_dir\b", f"--{data_dir}", str(error))
        if side.name == "folder" and "There is no folder" in message and data_dir not in message:
            message = f"{message.rstrip('.')}, or give their names as --{more}.images and --{more}.masks."
        if side.name == "folder" and "images have no mask" in message and "masks have no image" in message:
            ends = f"--{more}.image_suffix and --{more}.mask_suffix"
            message = f"{message.rstrip('.')}; or say how the names of a pair end, as {ends}."
        if message.startswith("validation_share"):
            message = f"{message.rstrip('.')}, such as --{more}.validation_share 0.3."
        raise type(error)(message) from error


def common_classes(
    class_map: dict[str, str | list[str]], source: list[str] | None, target: list[str] | None
) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """The classes of a run between two label sets.

    Args:
        class_map: for a class of the labeled images, the source, the target's class or classes; a list makes them one.
        source: class names of the labeled images; None where they are not known.
        target: class names of the others; None where they are not known.

    Returns:
        The names of the run's classes, in the target's order: the target's names, and for a list the source's first. Then
        the one of these that each class of the source becomes, and that each of the target becomes.

    Raises:
        UsageError: a class that is not there, or one that is named twice.
    """
    groups = {own: (given,) if isinstance(given, str) else tuple(given) for own, given in class_map.items()}
    names: dict[tuple[str, ...], str] = {}
    for own, group in groups.items():
        names.setdefault(group, group[0] if len(group) == 1 else own)
    of_source = {own: names[group] for own, group in groups.items()}
    of_target = {name: new for group, new in names.items() for name in group}
    for side, given, known in (("dataset", of_source, source), ("the target", of_target, target)):
        for name in given:
            if known is not None and name not in known:
                hint = did_you_mean(name, known, f"its classes are {', '.join(known)}.")
                raise UsageError(f"class_map names {name!r}, which is no class of {side}; {hint}")
    for name in of_target:
        if sum(group.count(name) for group in names) > 1:
            raise UsageError(f"class_map has {name!r} of the target in two places that differ; make them the same.")
    check_names(list(names.values()), "class_map")
    ordered = [of_target[name] for name in target or of_target if name in of_target]
    return list(dict.fromkeys(ordered)), of_source, of_target


def share_classes(
    class_map: dict[str, str | list[str]], loaded: dict[str, datasets.DatasetDict]
) -> dict[str, datasets.DatasetDict]:
    """The sides of a recipe with the classes that its `class_map` gives them; other classes are read as ignored.
    Raises `UserError` where the map does not fit the classes, or these have no names or, for one target, two sets of
    names."""
    if len(loaded) == 1:
        raise UsageError(
            "class_map is set, but all images are of one dataset; set unlabeled_dataset, or leave it out."
        )
    own: dict[str, list[str]] = {}
    for key, splits in loaded.items():
        side = "source" if key == "labeled" else "target"
        for label_map in (part.features["label"] for part in splits.values() if "label" in part.features):
            if label_map.names is None:
                raise UserError(f"class_map goes by names, but the {side} does not name its classes; give id2label.")
            if own.setdefault(side, label_map.names) != label_map.names:
                raise UserError(
                    f"class_map is for one target, but the images that are evaluated have {', '.join(label_map.names)} "
                    f"and the unlabeled ones {', '.join(own[side])}; give both the same classes."
                )
    names, of_source, of_target = common_classes(class_map, own.get("source"), own.get("target"))
    shared = {}
    for key, splits in loaded.items():
        classes = of_source if key == "labeled" else of_target
        shared[key] = datasets.DatasetDict(splits)
        for split, part in splits.items():
            if "label" in part.features:
                shared[key][split] = part.cast_column("label", part.features["label"].onto(names, classes))
    return shared


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
    loaded: datasets.DatasetDict, side: Side, labeled: int | str | None, seed: int, on_bad_image: str = "stop"
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The labeled images of a side and the rest, None without a rest.

    Args:
        loaded: the side's splits.
        labeled: a share such as 1/8, a count, a list file, or None for all.
        seed: of the choice.
        on_bad_image: "stop" or "skip", if the mask of an image that may be chosen cannot be read.
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
        present = class_pixels(train, on_bad_image=on_bad_image)
        chosen = sorted(int(row) for row in nested_order(rows, present, seed, count)[:count])
    rest = sorted(set(range(len(train))) - set(chosen))
    return train.select(chosen), train.select(rest)


def labeled_by(recipe: Recipe, side: Side) -> str | None:
    """What the choice of the labeled images of a side goes by, in words; None where all of them are labeled."""
    if recipe.labeled is None:
        return None
    lists = recipe.labeled if _is_list_file(recipe.labeled) else (side.options or {}).get("splits")
    if lists is not None:
        return PurePosixPath(str(lists).replace("\\", "/")).name
    shipped = side.name == "camvid" and recipe.split_seed == 0 and recipe.labeled in {*FRACTIONS, *FRACTIONS.values()}
    return "the lists of hf_fst" if shipped else f"split_seed {recipe.split_seed}"


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
                f"{path} names {line!r}, which matches {len(found)} images of train; give names that match exactly one."
            )
        chosen += found
    return chosen
