"""`hf-fst check`."""

from __future__ import annotations

import json as json_module
import shutil
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from hf_fst.commands.parser import Command
from hf_fst.commands.train import RecipeName, Train
from hf_fst.errors import UserError, printable, refuse_unwritable


class Check(Train):
    """Takes every key of a recipe as an option, like `train`, whose help lists them."""

    valued = ("--sweep", "--json")
    format_epilog = Command.format_epilog


def check(
    ctx: typer.Context,
    recipe: RecipeName,
    sweep: Annotated[
        str | None, Option(metavar="NAME", help="Name or number of the point of a recipe with `sweep`.")
    ] = None,
    json: Annotated[
        str | None, Option("--json", metavar="FILE", help="Write everything that was found into FILE, as JSON.")
    ] = None,
) -> dict:
    """Open every file of a recipe and say what is wrong.

    Reads all images and masks that the recipe would train on, be evaluated and tested on: sizes, classes and their share
    of the pixels, ignored pixels, padding of the crops, files that cannot be used, images that occur in two parts. The
    exit code is 1 where something is wrong. What was found is kept, so that the next check, and the one that `hf-fst
    train` makes before its first step (unless --check false), opens only what has changed. Every key of a recipe is also
    an option, as in `hf-fst train`.

    Examples:
      hf-fst check folders --data_dir labeled --unlabeled_data_dir unlabeled
      hf-fst check camvid-semi --sweep fst_d --data_dir camvid --json found.json
    """
    from hf_fst.recipes.check import check_recipe, page
    from hf_fst.recipes.load import load_recipe

    loaded = load_recipe(recipe, ctx.obj, sweep)
    if json is not None:
        _refuse_file(Path(json))
    report, notes = check_recipe(loaded)
    print(printable(page(report, notes, loaded.name, shutil.get_terminal_size().columns)), end="")
    if json is not None:
        found = {"recipe": loaded.name, **report.as_dict(), "notes": notes}
        Path(json).write_text(json_module.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"failed": bool(report.findings)}


def _refuse_file(path: Path) -> None:
    """Refuses a file that cannot be written, or that holds something else, before everything is read."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--json is {str(path)!r}, but there is no folder for such a file; name another.")
    if path.is_file() and b'"findings"' not in path.read_bytes():  # perhaps the recipe, or the names of the classes
        raise UserError(f"--json is {str(path)!r}, which holds something other than findings; name another file.")
    refuse_unwritable(path.parent)
