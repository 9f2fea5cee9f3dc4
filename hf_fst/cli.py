"""`hf-fst` on the command line: its commands, and what their words mean."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Annotated

import typer

from hf_fst.commands.card import card
from hf_fst.commands.check import Check, check
from hf_fst.commands.compare import Compare, compare
from hf_fst.commands.convert import convert
from hf_fst.commands.demo import demo
from hf_fst.commands.evaluate import evaluate
from hf_fst.commands.export import export
from hf_fst.commands.label import label
from hf_fst.commands.outcome import USAGE, failed, reported, say
from hf_fst.commands.parser import SETTINGS, Command, Group
from hf_fst.commands.predict import predict
from hf_fst.commands.push import push
from hf_fst.commands.train import Train, train
from hf_fst.errors import UserError

COMMANDS = {
    "Train": {"train": train, "compare": compare, "check": check},
    "Use a model": {"eval": evaluate, "predict": predict, "label": label, "demo": demo},
    "Import, export and publish": {"convert": convert, "export": export, "card": card, "push": push},
}


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hf_fst {importlib.metadata.version('hf_fst')}")
        raise typer.Exit


def hf_fst(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train networks for semantic segmentation with a teacher that looks ahead.

    hf-fst COMMAND --help explains a command and shows examples.

    Examples:
      hf-fst train street-da
      hf-fst check folders --data_dir labeled --unlabeled_data_dir unlabeled
      hf-fst train folders --data_dir labeled --unlabeled_data_dir unlabeled
      hf-fst eval runs/street_da street --options look=real
      hf-fst predict runs/street_da images/ -o out/ --overlays
      hf-fst push runs/street_da me/street-da --private
    """


app = typer.Typer(cls=Group, context_settings=SETTINGS, rich_markup_mode=None)
app.callback()(hf_fst)
for panel, commands in COMMANDS.items():
    for name, function in commands.items():
        kind = {train: Train, compare: Compare, check: Check}.get(function, Command)
        app.command(name, cls=kind, context_settings=SETTINGS, rich_help_panel=panel)(reported(function))


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code: 0, 1 for failures, 2 for wrong usage, 130 where Ctrl-C stopped it."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = typer.main.get_command(app).main(argv or ["--help"], prog_name="hf-fst", standalone_mode=False)
    except SystemExit as stop:  # after completion
        return stop.code or 0
    except typer.TyperException as error:
        known = argv[:1] if any(argv[0] in commands for commands in COMMANDS.values()) else []
        help = " ".join(["hf-fst", *known, "--help"])
        say(f"{' '.join(error.format_message().split()).rstrip('.')}; `{help}` shows how to use it.")
        return USAGE
    except UserError as error:
        if "--debug" in argv:
            raise
        return failed(error)
    return code if argv else USAGE


if __name__ == "__main__":
    sys.exit(main())
