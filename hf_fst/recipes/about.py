"""What model cards say about the datasets of a recipe."""

from __future__ import annotations

from hf_fst.config import FSTConfig
from hf_fst.reporting.facts import DatasetFacts, hub_id

from .data import RunData
from .keys import Recipe

# name for people, license of the data where it has a plain one, address
KNOWN = {
    "street": ("street (drawn by hf_fst)", "Apache-2.0", None),
    "camvid": ("CamVid", "CC BY-NC 4.0", "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/"),
    "cityscapes": ("Cityscapes", None, "https://www.cityscapes-dataset.com"),
    "gta5": ("GTA5", None, "https://download.visinf.tu-darmstadt.de/data/from_games/"),
    "synthia": ("SYNTHIA-RAND-CITYSCAPES", None, "https://synthia-dataset.net"),
    "voc": ("PASCAL VOC 2012", None, "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"),
}

NOTES = {"street": "its scenes are drawn, in both looks; weights trained on them know nothing of photographs."}


def data_facts(recipe: Recipe, data: RunData, config: FSTConfig) -> dict[str, DatasetFacts]:
    """Facts of the data under `labeled`, `unlabeled`, `evaluation` and `test`, as far as there is such."""
    unlabeled = recipe.unlabeled_dataset or recipe.dataset
    evaluated = data.evaluated
    sides = {
        "labeled": (recipe.dataset, "train", data.labeled, recipe.dataset_options, recipe.data_dir),
        "unlabeled": (unlabeled, "train", data.unlabeled, recipe.unlabeled_options, recipe.unlabeled_data_dir),
        "evaluation": (evaluated, data.validation_split, data.validation, recipe.eval_options, recipe.eval_data_dir),
        "test": (evaluated, data.test_split, data.test, recipe.eval_options, recipe.eval_data_dir),
    }
    facts = {}
    for key, (name, split, view, options, data_dir) in sides.items():
        if view is None:
            continue
        title, license, source = KNOWN.get(name, ("own images", None, None))
        on_hub = hub_id(data_dir or recipe.data_dir) if name == "hub" else None
        config = (options or {}).get("look")
        if key == "labeled" and recipe.labeled is not None:
            config = f"{len(view) - data.few} labeled images"
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
