"""What `hf-fst eval` scores: a dataset that was named, or what a run was evaluated on, found again from its directory."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from accelerate import PartialState

from hf_fst.data import View, load
from hf_fst.data.check import Images, look_at
from hf_fst.errors import UsageError, UserError
from hf_fst.recipes.data import Chosen, choose, evaluated_images, scored_classes
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.load import load_recipe, objective_of, read_keys
from hf_fst.recipes.output import LOCAL_FILE, RECIPE_FILE
from hf_fst.recipes.sides import take_split

logger = logging.getLogger(__name__)


@dataclass
class Scored:
    """Images to score, and how a run looked at them.

    `dataset`, `data_dir` and `options` are what `hf_fst.data.load` was given, `names` the splits to score; the other
    fields are as `evaluate_model` takes them.
    """

    dataset: str
    data_dir: str | None
    options: dict
    splits: datasets.DatasetDict
    names: list[str]
    window: int | None = None
    stride: int | None = None
    crop: int | None = None
    classes: list[int] | None = None


def scored_images(
    model: str, dataset: str | None, data_dir: str | None, options: dict, split: str | None, allow_overlap: bool
) -> Scored:
    """The images to score.

    Args:
        model: a directory or a Hub id.
        dataset, data_dir, options: what `hf_fst.data.load` is given; without a dataset the run's own images are taken.
        split: of the dataset; by default `validation`, or what the run was evaluated on.
        allow_overlap: whether the run may have been trained on them.

    Raises:
        UsageError: no dataset is named, and the model is not a run.
        UserError: a dataset is not there, or the run was trained on some of its images.
    """
    recipe, chosen = recipe_of(model), None
    if dataset is None:
        if recipe is None:
            raise UsageError(
                f"{model} has no {RECIPE_FILE}, which says what to score; name a dataset, such as `street`."
            )
        if data_dir or options:
            raise UsageError("--data_dir or --options are given without a dataset; name the one that they belong to.")
        chosen = images_of(recipe)
        scored = _own(recipe, chosen, split)
    else:
        scored = Scored(dataset, data_dir, options, load(dataset, data_dir, **options), [split or "validation"])
        if recipe is not None and not allow_overlap:
            try:
                chosen = images_of(recipe)
            except UserError as error:
                logger.warning("Whether %s was trained on these images is not known: %s", model, error)
    if chosen is not None and not allow_overlap:
        for name in scored.names:
            if name in scored.splits:
                refuse_trained(recipe, chosen, scored.splits[name], name)
    return scored


def recipe_of(model: str | Path) -> Recipe | None:
    """The recipe of a run, with the folders of its data on this machine. `model` is its output directory, or one of
    its `checkpoint-N`; others have none."""
    directory = Path(model).parent if Path(model).name.startswith("checkpoint-") else Path(model)
    if not (directory / RECIPE_FILE).is_file():
        return None
    local = directory / LOCAL_FILE
    return load_recipe(directory / RECIPE_FILE, read_keys(local) if local.is_file() else {})


def images_of(recipe: Recipe) -> Chosen:
    """The images that a run was trained and evaluated on. Raises `UserError` where they are not on this machine."""
    return choose(recipe, objective_of(recipe))


def images_to_show(model: str | Path) -> datasets.Dataset | None:
    """Images that a run was evaluated on, if everybody may see them: a user's own, or drawn ones.

    None for other datasets, whose licenses may not allow it, for models without a recipe, and where the images are not
    on this machine any more.
    """
    try:
        recipe = recipe_of(model)
        chosen = None if recipe is None else images_of(recipe)
        if chosen is None or chosen.evaluation.name not in ("folder", "hub", "street"):
            return None
        return next((images for images in evaluated_images(recipe, chosen) if images is not None), None)
    except UserError:
        return None


def refuse_trained(recipe: Recipe, chosen: Chosen, images: datasets.Dataset, split: str) -> None:
    """Raises `UserError` for images of a `split` of which a run was trained on some: those with the same pixels.

    The check before the training opened the files of the run, and what it saw is kept.
    """
    parts = {"labeled": chosen.labeled, "labeled target": chosen.few, "unlabeled": chosen.unlabeled}
    known: dict[str, str] = {}
    with PartialState(cpu=not torch.accelerator.is_available()).main_process_first():  # the others read what it found
        for name, part in reversed(parts.items()):
            if part is not None:
                view = View(part, None, name != "unlabeled" or recipe.unlabeled_diagnostics)
                known |= dict.fromkeys(look_at(Images(view), name).digests, name)
        label_map = images.features.get("label")
        view = View(images, None, label_map is not None and bool(label_map.names))
        digests = look_at(Images(view), split).digests
    found = [known[digest] for digest in digests if digest and digest in known]
    if found:
        where = " and ".join(f"{found.count(name)} {name}" for name in parts if name in found)
        raise UserError(
            f"{len(found)} of the {len(images)} images of {split} are among those that the run was trained on ({where}); "
            "score others, or give --allow_overlap to score these all the same."
        )


def _own(recipe: Recipe, chosen: Chosen, split: str | None) -> Scored:
    """The validation and the test images of a run, or one split of the same dataset."""
    side = chosen.evaluation
    if split is not None:
        splits = {split: take_split(chosen.evaluated, side, split, labels=True)}
    else:
        names = (recipe.eval_split, recipe.test_split or "test")
        found = zip(names, evaluated_images(recipe, chosen), strict=True)
        splits = {name: images for name, images in found if images is not None}
    if not splits:
        raise UserError("The run was evaluated on nothing; name a dataset to score, or a --split of its own dataset.")
    names = next(iter(splits.values())).features["label"].names
    return Scored(
        side.name,
        side.data_dir,
        side.options or {},
        datasets.DatasetDict(splits),
        list(splits),
        window=recipe.options.get("eval_window"),
        stride=recipe.options.get("eval_stride"),
        crop=recipe.eval_crop,
        classes=scored_classes(recipe, names),
    )
