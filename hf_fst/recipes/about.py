"""What model cards say about the datasets of a recipe."""

from __future__ import annotations

import re

from hf_fst.publishing.facts import DatasetFacts, hub_id
from hf_fst.recipes.data import RunData
from hf_fst.recipes.keys import Recipe
from hf_fst.training.config import FSTConfig

# name for people, license of the data where it has a plain one, address
KNOWN = {
    "street": ("street (drawn by hf_fst)", "Apache-2.0", None),
    "camvid": ("CamVid", "CC BY-NC 4.0", "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"),
    "cityscapes": (
        "Cityscapes",
        "non-commercial purposes only, terms on its page",
        "https://www.cityscapes-dataset.com",
    ),
    "gta5": ("GTA5", None, "https://download.visinf.tu-darmstadt.de/data/from_games/"),
    "synthia": ("SYNTHIA-RAND-CITYSCAPES", "CC BY-NC-SA 3.0", "https://synthia-dataset.net"),
    "voc": (
        "PASCAL VOC 2012",
        "images under Flickr's terms of use",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    ),
}

SHARE = re.compile(r"\d+/\d+")
NOTES = {"street": "its scenes are drawn, in both looks; weights trained on them know nothing of photographs."}


def data_facts(recipe: Recipe, data: RunData, config: FSTConfig) -> dict[str, DatasetFacts]:
    """Facts of the data under `labeled`, `unlabeled`, `evaluation` and `test`, as far as there is such."""
    unlabeled = recipe.unlabeled_dataset or recipe.dataset
    source_side = (recipe.dataset, recipe.dataset_options, recipe.data_dir)
    target_side = source_side
    if (recipe.unlabeled_dataset, recipe.unlabeled_options, recipe.unlabeled_data_dir) != (None, None, None):
        same = unlabeled == recipe.dataset
        folder = recipe.unlabeled_data_dir or (recipe.data_dir if same else None)
        target_side = (unlabeled, recipe.unlabeled_options, folder)
    eval_side = (data.evaluated, recipe.eval_options, recipe.eval_data_dir)
    if (recipe.eval_dataset, *eval_side[1:]) == (None, None, None):
        eval_side = target_side if data.evaluated == unlabeled else source_side
    elif eval_side[2] is None:
        known = {recipe.dataset: recipe.data_dir, unlabeled: target_side[2]}
        eval_side = (*eval_side[:2], known.get(data.evaluated))
    sides = {
        "labeled": ("train", data.labeled, *source_side),
        "unlabeled": ("train", data.unlabeled, *target_side),
        "evaluation": (data.validation_split, data.validation, *eval_side),
        "test": (data.test_split, data.test, *eval_side),
    }
    facts = {}
    for key, (split, view, name, options, data_dir) in sides.items():
        if view is None:
            continue
        title, license, source = KNOWN.get(name, ("own images", None, None))
        on_hub = hub_id(data_dir) if name == "hub" else None
        config = (options or {}).get("look") or (options or {}).get("config")
        if key == "labeled" and SHARE.fullmatch(str(recipe.labeled)):
            config = ", ".join(filter(None, (config, f"{recipe.labeled} of the labels")))
        if key == "labeled" and data.few:
            config = ", ".join(filter(None, (config, f"and {data.few} of {KNOWN.get(unlabeled, ('the target',))[0]}")))
        facts[key] = DatasetFacts(
            name=on_hub or name if name != "folder" else "own-images",
            title=on_hub or title,
            split=split,
            images=len(view),
            config=config if isinstance(config, str) else None,
            hub_id=on_hub,
            license=license,
            source=source,
            note=NOTES.get(name),
        )
    return facts
