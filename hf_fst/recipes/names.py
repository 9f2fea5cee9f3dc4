"""Recipes by name: those of `library/`, which ship with the package."""

from __future__ import annotations

import itertools
import textwrap
from pathlib import Path

from hf_fst.errors import MissingError, did_you_mean

LIBRARY = Path(__file__).parent / "library"


def recipe_names() -> list[str]:
    """The names of the library's recipes: the files' stems, with dashes."""
    return sorted(path.stem.replace("_", "-") for path in LIBRARY.glob("*.yaml"))


def comment_of(text: str) -> list[str]:
    """The lines of the comment at the top of a recipe, with their `#`."""
    return list(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))


def described_recipes(width: int | None = None) -> str:
    """The recipes of the library by name, with the first sentence of the comment at the top of each.

    Args:
        width: of the lines, 40 at least; longer sentences are wrapped. None for a line a recipe.
    """
    lines = []
    for name in recipe_names():
        words = " ".join(line[1:].strip() for line in comment_of(find_recipe(name).read_text(encoding="utf-8")))
        line = f"{name:26} {words.partition('. ')[0].rstrip('.:')}."
        lines.append(line if width is None else textwrap.fill(line, max(width, 40), subsequent_indent=" " * 27))
    return "\n".join(lines)


def find_recipe(given: str | Path, folder: Path = Path()) -> Path:
    """The file of a recipe: a name of the library (dashes count as underscores), or a path relative to `folder`.
    Raises `MissingError` if there is none."""
    if str(given).replace("_", "-") in recipe_names():
        return LIBRARY / f"{given}.yaml".replace("-", "_")
    path = folder / given
    if not path.is_file():
        cure = "give the path of a YAML file, or a name that `hf-fst train --list` shows."
        raise MissingError(
            f"There is no recipe {str(given)!r}; {did_you_mean(Path(given).stem, recipe_names(), cure)}"
        )
    return path
