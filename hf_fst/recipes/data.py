"""The datasets of a recipe as model inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import datasets
import numpy as np
from torch.utils.data import Dataset

from hf_fst.data import LabelMap, View
from hf_fst.data.check import Images, Report, check
from hf_fst.data.labels import plain_names
from hf_fst.data.sampling import RareClasses, class_pixels, combine
from hf_fst.data.transforms import CenterCrop, Evaluation, size_within, training
from hf_fst.errors import DataError, Gathered, UsageError, UserError
from hf_fst.evaluation.confusion import CLASS_LISTS
from hf_fst.evaluation.counting import LABEL_FREE, is_label_free
from hf_fst.kinds import fits, in_words
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.sides import Side, forgotten, load_side, share_classes, sides, take_labeled, take_split
from hf_fst.training.config import FSTConfig

# images that the score without labels is measured on, where no split is evaluated
MOST_WITHOUT_LABELS = 100
# what a recipe may set of `RareClasses`
RARE = {"temperature": float, "min_pixels": float, "min_crop_ratio": float, "tries": int, "scale_by_crop": bool}


@dataclass
class RunData:
    """What a run trains on and is evaluated on.

    Args:
        labeled: labeled crops, those of `few` target images among them.
        unlabeled: unlabeled crops, if the objective learns from any.
        validation: the images that are evaluated while training, if any.
        test: those that are evaluated once at the end, if any.
        sides: where these come from, under `labeled`, `unlabeled`, `evaluation` and `test`.
        names: of the classes, by id.
        palette: their colors.
        rare: the sampler of `labeled` by class, if any.
        few: the number of target images with labels.
        crop: (height, width) of the training crops.
        report: what a look at all their files found, if the recipe asks for one.
    """

    labeled: Dataset
    unlabeled: View | None
    validation: View | None
    test: View | None
    sides: dict[str, Side]
    names: list[str]
    palette: list[list[int]] | None
    rare: RareClasses | None
    few: int
    crop: tuple[int, int]
    report: Report | None

    @property
    def views(self) -> dict[str, Dataset]:
        """The parts that there are, by name."""
        parts = ("labeled", "unlabeled", "validation", "test")
        return {part: getattr(self, part) for part in parts if getattr(self, part) is not None}


@dataclass
class Chosen:
    """The images of a recipe as they are stored.

    Args:
        sides: that the recipe names, under `labeled`, `unlabeled` and `evaluation`.
        labeled: those whose labels are learned from.
        few: those of the target whose labels are learned from, if any.
        unlabeled: those without, if the objective learns from any.
        without_labels: the same, whether or not the objective learns from them.
        evaluation: the side that is evaluated.
        evaluated: its splits.
    """

    sides: dict[str, Side]
    labeled: datasets.Dataset
    few: datasets.Dataset | None
    unlabeled: datasets.Dataset | None
    without_labels: datasets.Dataset | None
    evaluation: Side
    evaluated: datasets.DatasetDict


def choose(recipe: Recipe, objective: str) -> Chosen:
    """Loads the datasets of a recipe and chooses what is labeled; not every `objective` needs unlabeled images. Raises
    `UserError` where the recipe contradicts itself or its data."""
    named = sides(recipe)
    share = {"labeled": recipe.labeled, "unlabeled": recipe.target_labeled}
    if forgotten(named):
        if OBJECTIVES[objective].needs_unlabeled:
            fault = "missing" if recipe.unlabeled_data_dir is None else "data_dir, which holds masks too"
            raise UsageError(
                f"unlabeled_data_dir is {fault}; name the folder of the images without labels with --unlabeled_data_dir "
                "FOLDER, or learn from the labeled images alone with --rule supervised."
            )
        del named["unlabeled"]
    loaded, faults = {}, Gathered()
    for key, side in named.items():
        with faults:
            loaded[key] = load_side(recipe, side, share.get(key), key)
    faults.end()
    if recipe.class_map is not None:
        loaded = share_classes(recipe.class_map, loaded)
    how = recipe.split_seed, recipe.options.get("on_bad_image", "stop")
    labeled, unlabeled = take_labeled(loaded["labeled"], named["labeled"], recipe.labeled, *how)
    few = None
    if "unlabeled" in named:
        taken = take_labeled(loaded["unlabeled"], named["unlabeled"], recipe.target_labeled, *how)
        few, unlabeled = (None, taken[0]) if recipe.target_labeled is None else taken
    elif recipe.target_labeled is not None:
        raise UsageError("target_labeled is set, but there is no unlabeled_dataset to take it from; use labeled.")
    evaluated = "unlabeled" if recipe.eval_split in loaded.get("unlabeled", ()) else "labeled"
    evaluated = "evaluation" if "evaluation" in named else evaluated
    evaluation = replace(named[evaluated], split=recipe.eval_split or "")
    return Chosen(named, labeled, few, _needed(unlabeled, objective), unlabeled, evaluation, loaded[evaluated])


def build_data(recipe: Recipe, config: FSTConfig, objective: str) -> RunData:
    """Loads and checks the datasets of a recipe for an objective; `config` says whether training is evaluated. Raises
    `UserError` where the recipe contradicts itself or its data."""
    chosen = choose(recipe, objective)
    named, labeled, few, unlabeled = chosen.sides, chosen.labeled, chosen.few, chosen.unlabeled
    label_map = _label_map(labeled, named["labeled"])
    validation, test = evaluated_images(recipe, chosen, config)

    diagnosed = unlabeled if recipe.unlabeled_diagnostics else None
    sets = {"validation": validation, "test": test, "the unlabeled set": diagnosed, "the target": few}
    for part, dataset in sets.items():
        if dataset is not None:
            _same_classes(label_map.names, dataset, part)
    scale, factors = recipe.resize, recipe.random_resize
    unlabeled_scale = recipe.unlabeled_resize or scale
    crop = recipe.crop_size or _first_size(labeled, scale)
    crop = (crop, crop) if isinstance(crop, int) else (crop[0], crop[1])
    look = CenterCrop(recipe.eval_crop) if recipe.eval_crop else Evaluation(recipe.evaluated_size)

    def cropped(images: datasets.Dataset, size: list[int] | None, mixed: float, with_labels=True) -> Images:
        return Images(View(images, training(crop, size, factors, mixed), with_labels), crop, size, factors)

    parts = {"labeled": cropped(labeled, scale, recipe.cat_max_ratio)}
    if few is not None:
        parts["labeled target"] = cropped(few, unlabeled_scale, recipe.cat_max_ratio)
    if unlabeled is not None:
        parts["unlabeled"] = cropped(unlabeled, unlabeled_scale, 1.0, recipe.unlabeled_diagnostics)
    parts |= {
        name: Images(View(images, look))
        for name, images in (("validation", validation), ("test", test))
        if images is not None
    }
    own = {name: images for name, images in parts.items() if name != "validation" or "label" in validation.features}
    report = check(own, label_map.names) if recipe.check else None
    views = {name: images.view for name, images in parts.items()}
    together = views["labeled"]
    rare = _rare(together, recipe, crop, None if report is None else report.parts["labeled"].class_pixels)
    together = together if rare is None else rare
    if few is not None:
        share = recipe.target_labeled_share
        together = combine([together, views["labeled target"]], None if share is None else [1 - share, share])
    return RunData(
        together,
        views.get("unlabeled"),
        views.get("validation"),
        views.get("test"),
        {
            "labeled": named["labeled"],
            "unlabeled": named.get("unlabeled", named["labeled"]),
            "evaluation": chosen.evaluation,
            "test": replace(chosen.evaluation, split=recipe.test_split or "test"),
        },
        list(label_map.names),
        label_map.palette,
        rare,
        0 if few is None else len(few),
        crop,
        report,
    )


def scored_classes(recipe: Recipe, names: list[str]) -> list[int] | None:
    """The ids of `eval_classes`, None for all. Raises `UsageError` for an unknown class or list."""
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


def _label_map(labeled: datasets.Dataset, side: Side) -> LabelMap:
    """Names and colors of the classes of the labeled images."""
    label_map = labeled.features.get("label")
    if not isinstance(label_map, LabelMap):
        raise UserError(f"The dataset {side.name!r} has no labels in {side.split}; give a labeled one.")
    if not label_map.names:
        raise UserError(f"The dataset {side.name!r} does not name its classes; give id2label.")
    return label_map


def _needed(unlabeled: datasets.Dataset | None, objective: str) -> datasets.Dataset | None:
    """The unlabeled images if the objective learns from any."""
    if not OBJECTIVES[objective].needs_unlabeled:
        return None
    if unlabeled is None:
        raise UsageError(
            f"objective {objective!r} learns from unlabeled images, but there are none; set "
            "unlabeled_dataset, or labeled for a part of `dataset`, or use rule: supervised."
        )
    if len(unlabeled) == 0:
        raise UserError("The unlabeled set is empty; label fewer images, or use rule: supervised.")
    return unlabeled


def evaluated_images(
    recipe: Recipe, chosen: Chosen, config: FSTConfig | None = None
) -> tuple[datasets.Dataset | None, datasets.Dataset | None]:
    """The validation and the test set, each None if it is missing or not wanted; `config` says whether there are
    evaluations while training, which need a validation set."""
    validation = test = None
    loaded, side = chosen.evaluated, chosen.evaluation
    wanted = config is not None and (config.eval_strategy != "no" or config.eval_on_start)
    if wanted and is_label_free(config.metric_for_best_model) and side.split not in loaded:
        validation = _without_labels(chosen.without_labels)
    elif side.split and (side.split in loaded or wanted):
        validation = take_split(loaded, side, side.split, labels=True)
    elif wanted:
        off = {
            "eval_strategy: no": config.eval_strategy != "no",
            "eval_on_start: false": config.eval_on_start,
            "load_best_model_at_end: false": config.load_best_model_at_end,
        }
        raise UsageError(
            "eval_split is false, but the recipe asks for evaluations while training; set "
            f"{' and '.join(key for key, is_on in off.items() if is_on)}."
        )
    if recipe.test_split:
        test = take_split(loaded, side, recipe.test_split, labels=True)
    elif recipe.test_split is None and "test" in loaded and "label" in loaded["test"].features:
        test = loaded["test"]
    return validation, test


def _without_labels(unlabeled: datasets.Dataset | None) -> datasets.Dataset:
    """Unlabeled images, evenly spaced, that the score without labels is measured on."""
    if unlabeled is None:
        raise UsageError(
            f"metric_for_best_model is {LABEL_FREE}, but there is no validation split and no unlabeled image; give "
            "either."
        )
    few = unlabeled.select(range(0, len(unlabeled), -(-len(unlabeled) // MOST_WITHOUT_LABELS)))
    return few.remove_columns([name for name in few.column_names if name != "image"])


def _same_classes(names: list[str], dataset: datasets.Dataset, where: str) -> None:
    label_map = dataset.features.get("label")
    theirs = names if label_map is None or label_map.names is None else label_map.names
    if plain_names(theirs) != plain_names(names):
        raise UserError(
            f"Training has the classes {', '.join(names)} but {where} has {', '.join(theirs)}; both must have "
            "the same, in the same order."
        )


def _first_size(dataset: datasets.Dataset, scale: list[int] | None) -> tuple[int, int]:
    """Height and width of the first image that can be read, once it is resized."""
    view = View(dataset, transform=None, with_labels=False)
    for row in range(len(view)):
        try:
            height, width = view.read(row)[0].shape[-2:]
        except DataError:
            if row == len(view) - 1:
                raise
        else:
            return size_within((height, width), scale) if scale else (height, width)


def _rare(view: View, recipe: Recipe, crop: tuple[int, int], pixels: np.ndarray | None) -> RareClasses | None:
    wanted = recipe.rare_class_sampling
    if not wanted and wanted != {}:
        return None
    numbers = dict(wanted) if isinstance(wanted, dict) else {}
    if pixels is None:
        pixels = class_pixels(view.dataset, on_bad_image=recipe.options.get("on_bad_image", "stop"))
    for key, value in numbers.items():
        if key not in RARE:
            raise UsageError(f"rare_class_sampling has no {key!r}; it has {', '.join(RARE)}.")
        if not fits(value, RARE[key]):
            raise UsageError(f"{key} of rare_class_sampling is {value!r}; give {in_words(RARE[key])}.")
    return RareClasses(view, pixels, crop=crop if numbers.pop("scale_by_crop", False) else None, **numbers)
