"""The datasets of a recipe as model inputs."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import datasets
from torch.utils.data import Dataset

from hf_fst.data import DATASETS, LabelMap, View, load
from hf_fst.data.folders import read_id2label
from hf_fst.data.sampling import RareClasses, class_pixels, combine
from hf_fst.data.splits import nested_order, read_list
from hf_fst.data.transforms import CenterCrop, Evaluation, size_within, training
from hf_fst.errors import UsageError, UserError
from hf_fst.evaluation.confusion import CLASS_LISTS
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.recipes.keys import Recipe
from hf_fst.training.config import FSTConfig

# numbers of `RareClasses` that a recipe may set
_RARE = ("temperature", "min_pixels", "min_crop_ratio", "tries", "scale_by_crop")


@dataclass
class RunData:
    """What a run trains and is evaluated on; `unlabeled`, `validation` and `test` may be None. `evaluated` names the
    dataset of the last two, `few` is the number of target images with labels among the labeled ones."""

    labeled: Dataset
    unlabeled: View | None
    validation: View | None
    test: View | None
    evaluated: str
    validation_split: str
    test_split: str
    names: list[str]
    palette: list[list[int]] | None
    rare: RareClasses | None
    few: int


def build_data(recipe: Recipe, config: FSTConfig, objective: str) -> RunData:
    """Loads and checks the datasets of a recipe.

    Raises:
        UsageError: the recipe contradicts itself.
        ValueError, FileNotFoundError: the data is not as the recipe says.
    """
    if recipe.dataset is None:
        raise UsageError(f"dataset is missing; give one of {', '.join(sorted(DATASETS))}.")
    sides = _unlabeled_side(recipe), _eval_side(recipe)
    labeled_dict = _load(recipe, recipe.dataset, recipe.data_dir, recipe.dataset_options, recipe.labeled)
    labeled, rest = _take_labeled(labeled_dict, recipe.labeled, recipe.split_seed)
    label_map = labeled.features.get("label")
    if not isinstance(label_map, LabelMap):
        raise UserError(f"The dataset {recipe.dataset!r} has no labels in train; give a labeled one.")
    if not label_map.names:
        raise UserError(f"The dataset {recipe.dataset!r} does not name its classes; give id2label.")

    target_dict, few, unlabeled = labeled_dict, None, rest
    if sides[0] is not None:
        target_dict = _load(recipe, *sides[0], recipe.target_labeled)
        target, rest = _take_labeled(target_dict, recipe.target_labeled, recipe.split_seed, "unlabeled_dataset")
        few, unlabeled = (None, target) if recipe.target_labeled is None else (target, rest)
    elif recipe.target_labeled is not None:
        raise UsageError("target_labeled is set, but there is no unlabeled_dataset to take it from; use labeled.")
    if OBJECTIVES[objective].needs_unlabeled:
        if unlabeled is None:
            raise UsageError(
                f"objective {objective!r} learns from unlabeled images, but there are none; set "
                "unlabeled_dataset, or labeled for a part of `dataset`, or use rule: supervised."
            )
        if len(unlabeled) == 0:
            raise UserError("The unlabeled set is empty; label fewer images, or use rule: supervised.")
    if sides[1] is not None:
        evaluated, eval_dict = sides[1][0], _load(recipe, *sides[1])
    elif sides[0] is not None and recipe.eval_split in target_dict:
        evaluated, eval_dict = sides[0][0], target_dict
    else:
        evaluated, eval_dict = recipe.dataset, labeled_dict
    validation, test = _evaluated(recipe, config, eval_dict)

    scale = _pair(recipe.resize)
    unlabeled_scale = _pair(recipe.unlabeled_resize) or scale
    eval_scale = _pair(recipe.eval_resize) or unlabeled_scale
    crop = recipe.crop_size or _first_size(labeled, scale)
    crop = crop if isinstance(crop, int) else tuple(crop)
    random_scale = recipe.random_resize and tuple(recipe.random_resize)
    labeled_view = View(labeled, training(crop, scale, random_scale, recipe.cat_max_ratio))
    rare = _rare(labeled_view, recipe, crop)
    together = labeled_view if rare is None else rare
    if few is not None:
        share = recipe.target_labeled_share
        few_view = View(
            _labels_needed(few, "train"), training(crop, unlabeled_scale, random_scale, recipe.cat_max_ratio)
        )
        together = combine([together, few_view], None if share is None else [1 - share, share])
    views = {"validation": validation, "test": test}
    for split, dataset in views.items():
        if dataset is not None:
            views[split] = View(dataset, CenterCrop(recipe.eval_crop) if recipe.eval_crop else Evaluation(eval_scale))
            _same_classes(label_map.names, dataset, split)
    unlabeled_view = None
    if unlabeled is not None and OBJECTIVES[objective].needs_unlabeled:
        unlabeled_view = View(unlabeled, training(crop, unlabeled_scale, random_scale), recipe.unlabeled_diagnostics)
        if unlabeled_view.with_labels:
            _same_classes(label_map.names, unlabeled, "the unlabeled set")
    return RunData(
        together,
        unlabeled_view,
        views["validation"],
        views["test"],
        evaluated,
        recipe.eval_split or "",
        recipe.test_split or "test",
        list(label_map.names),
        label_map.palette,
        rare,
        0 if few is None else len(few),
    )


def scored_classes(recipe: Recipe, names: list[str]) -> list[int] | None:
    """The ids of `eval_classes`, None for all. Raises `UsageError` for a class or a list that there is not."""
    wanted = recipe.eval_classes
    if wanted is None:
        return None
    if isinstance(wanted, str):
        if wanted not in CLASS_LISTS:
            raise UsageError(
                f"eval_classes is {wanted!r}; use one of {', '.join(CLASS_LISTS)}, or a list of names or ids."
            )
        wanted = list(CLASS_LISTS[wanted])
    ids = []
    for entry in wanted:
        if entry not in (names if isinstance(entry, str) else range(len(names))):
            raise UsageError(f"eval_classes names {entry!r}, but the classes are {', '.join(names)}.")
        ids.append(names.index(entry) if isinstance(entry, str) else entry)
    return ids


def _pair(scale: list[int] | None) -> tuple[int, int] | None:
    return None if scale is None else (scale[0], scale[1])


def _unlabeled_side(recipe: Recipe) -> tuple | None:
    """Dataset, folder and options of the unlabeled side, None where it is the rest of `dataset`."""
    if recipe.unlabeled_dataset is recipe.unlabeled_data_dir is recipe.unlabeled_options is None:
        return None
    name = recipe.unlabeled_dataset or recipe.dataset
    same = name == recipe.dataset
    return name, recipe.unlabeled_data_dir or (recipe.data_dir if same else None), recipe.unlabeled_options


def _eval_side(recipe: Recipe) -> tuple | None:
    """The same of the evaluated side, None where it is the unlabeled one."""
    if recipe.eval_dataset is recipe.eval_data_dir is recipe.eval_options is None:
        return None
    name = recipe.eval_dataset or recipe.unlabeled_dataset or recipe.dataset
    known = {recipe.dataset: recipe.data_dir}
    if recipe.unlabeled_dataset or recipe.unlabeled_data_dir:
        known[recipe.unlabeled_dataset or recipe.dataset] = recipe.unlabeled_data_dir
    return name, recipe.eval_data_dir or known.get(name), recipe.eval_options


def _load(recipe: Recipe, name: str, data_dir: str | None, options: dict | None, labeled=None) -> datasets.DatasetDict:
    options = dict(options or {})
    accepted = inspect.signature(DATASETS[name]).parameters
    if recipe.id2label is not None:
        if name == "folder":
            options.setdefault("id2label", str(Path(recipe.id2label).expanduser().absolute()))
        elif name == "hub":
            options.setdefault("names", read_id2label(recipe.id2label))
        else:
            raise UsageError(f"id2label is set, but the dataset {name!r} names its classes itself; leave it out.")
    if labeled is not None and "labeled" in accepted and not _is_list_file(labeled):
        if isinstance(labeled, str) and name != "camvid":  # which knows the shares by their published counts
            labeled = _count(labeled, len(load(name, data_dir, **options)["train"]))
        options.setdefault("labeled", labeled)
        options.setdefault("seed", recipe.split_seed)
    return load(name, data_dir, **options)


def _split(loaded: datasets.DatasetDict, split: str, key: str) -> datasets.Dataset:
    if split not in loaded:
        raise UserError(f"{key} has no split {split!r} (it has {', '.join(loaded)}); choose another.")
    return loaded[split]


def _is_list_file(labeled: int | str | None) -> bool:
    return isinstance(labeled, str) and not _is_share(labeled)


def _is_share(labeled: str) -> bool:
    return all(part.strip().isdecimal() for part in labeled.split("/")) and labeled.count("/") == 1


def _count(labeled: int | str, total: int) -> int:
    """The number of labeled images; shares are rounded up, as the published splits are."""
    if isinstance(labeled, int):
        return labeled
    above, below = (int(part) for part in labeled.split("/"))
    if not 0 < above <= below:
        raise UsageError(f"labeled is {labeled!r}; give a share above 0 and up to 1.")
    return math.ceil(total * above / below)


def _take_labeled(
    loaded: datasets.DatasetDict, labeled: int | str | None, seed: int, key: str = "dataset"
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Labeled images and the rest, None without a rest."""
    train = _split(loaded, "train", key)
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
        order = nested_order(rows, class_pixels(train), seed, count)
        chosen = sorted(int(row) for row in order[:count])
    rest = sorted(set(range(len(train))) - set(chosen))
    return train.select(chosen), train.select(rest)


def _listed(train: datasets.Dataset, path: str) -> list[int]:
    """Rows whose image file ends like a line of the list, suffixes aside."""
    stored = train.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))["image"]
    files = [PurePosixPath(value["path"] or "").with_suffix("") for value in stored]
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


def _evaluated(
    recipe: Recipe, config: FSTConfig, loaded: datasets.DatasetDict
) -> tuple[datasets.Dataset | None, datasets.Dataset | None]:
    """The validation and the test set, None where there is none or none is wanted."""
    validation = test = None
    wanted = config.eval_strategy != "no" or config.eval_on_start
    if recipe.eval_split and (recipe.eval_split in loaded or wanted):
        validation = _labels_needed(_split(loaded, recipe.eval_split, "The evaluated dataset"), recipe.eval_split)
    elif wanted:
        set_off = [
            "eval_strategy: no" if config.eval_strategy != "no" else None,
            "eval_on_start: false" if config.eval_on_start else None,
            "load_best_model_at_end: false" if config.load_best_model_at_end else None,
        ]
        raise UsageError(
            "eval_split is false, but the recipe asks for evaluations while training; set "
            f"{' and '.join(filter(None, set_off))}."
        )
    if recipe.test_split:
        test = _labels_needed(_split(loaded, recipe.test_split, "The evaluated dataset"), recipe.test_split)
    elif recipe.test_split is None and "label" in (loaded["test"].features if "test" in loaded else ()):
        test = loaded["test"]
    return validation, test


def _labels_needed(dataset: datasets.Dataset, split: str) -> datasets.Dataset:
    if "label" not in dataset.features:
        raise UserError(f"The split {split!r} has no labels to evaluate on; choose another or false.")
    return dataset


def _same_classes(names: list[str], dataset: datasets.Dataset, where: str) -> None:
    theirs = dataset.features["label"].names
    if theirs is not None and list(theirs) != list(names):
        raise UserError(
            f"Training has the classes {', '.join(names)} but {where} has {', '.join(theirs)}; both must have the same, "
            "in the same order."
        )


def _first_size(dataset: datasets.Dataset, scale: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the first image once it is resized."""
    image, _ = View(dataset, transform=None, with_labels=False).read(0)
    size = tuple(image.shape[-2:])
    return size_within(size, scale) if scale else size


def _rare(view: View, recipe: Recipe, crop) -> RareClasses | None:
    wanted = recipe.rare_class_sampling
    if not wanted and wanted != {}:
        return None
    numbers = dict(wanted) if isinstance(wanted, dict) else {}
    for key in numbers:
        if key not in _RARE:
            raise UsageError(f"rare_class_sampling has no {key!r}; it has {', '.join(_RARE)}.")
    return RareClasses(view, crop=crop if numbers.pop("scale_by_crop", False) else None, **numbers)
