"""What model cards say about the datasets of a recipe."""

from __future__ import annotations

import re

from hf_fst.data.about import ABOUT
from hf_fst.publishing.facts import DatasetFacts, hub_id
from hf_fst.recipes.data import RunData
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.sides import Side

SHARE = re.compile(r"\d+/\d+")


def data_facts(recipe: Recipe, data: RunData) -> dict[str, DatasetFacts]:
    """Facts of the data of a run, for those of `labeled`, `unlabeled`, `evaluation` and `test` that it has."""
    views = {"evaluation" if part == "validation" else part: view for part, view in data.views.items()}
    facts = {key: _facts(data.sides[key], len(view)) for key, view in views.items()}
    variants = [facts["labeled"].config]
    if SHARE.fullmatch(str(recipe.labeled)):
        variants.append(f"{recipe.labeled} of the labels")
    if data.few:
        target = data.sides["unlabeled"].name
        variants.append(f"and {data.few} of {'the target' if target in ('folder', 'hub') else ABOUT[target].title}")
    facts["labeled"].config = ", ".join(filter(None, variants)) or None
    return facts


def _facts(side: Side, images: int) -> DatasetFacts:
    about = ABOUT[side.name]
    on_hub = hub_id(side.data_dir) if side.name == "hub" else None
    variant = (side.options or {}).get("look") or (side.options or {}).get("config")
    return DatasetFacts(
        name="own-images" if side.name == "folder" else on_hub or side.name,
        title=on_hub or about.title,
        split=side.split,
        images=images,
        config=variant if isinstance(variant, str) else None,
        hub_id=on_hub,
        license=about.license,
        source=about.source,
        note=about.note,
    )
