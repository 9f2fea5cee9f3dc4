"""Recipes: a run as a YAML file."""

from __future__ import annotations

from hf_fst.errors import UsageError
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.load import load_recipe, sweep_points

__all__ = ["Recipe", "UsageError", "load_recipe", "sweep_points"]
