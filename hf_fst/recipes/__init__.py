"""Recipes: a run as a YAML file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_fst.errors import UsageError
    from hf_fst.recipes.keys import Recipe
    from hf_fst.recipes.load import load_recipe, sweep_points

__all__ = ["Recipe", "UsageError", "load_recipe", "sweep_points"]

_HOMES = {"Recipe": "keys", "UsageError": "load", "load_recipe": "load", "sweep_points": "load"}


def __getattr__(name: str) -> object:
    """What stands above, when it is first asked for: the names of the recipes need not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
