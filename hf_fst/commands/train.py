"""`hf-fst train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option
from typer.core import TyperOption

from hf_fst.commands.parser import Command

FLAGS = ("--overwrite", "--resume", "--dry_run", "--list", "--print_config", "--json", "--debug", "--help")
SHORT = ("-o",)
LISTS = ("--rules",)  # options that take several words


def split_overrides(argv: list[str], valued: tuple[str, ...] = ("--sweep",)) -> tuple[list[str], dict[str, str]]:
    """The arguments of a command without `--key value` and `--key=value`, and these by key; a key alone means true.

    Args:
        argv: the words after the command.
        valued: options of the command itself that take a value; the words of one in `LISTS` are joined with commas.
    """
    rest, overrides, tokens = [], {}, list(argv)
    while tokens:
        token = tokens.pop(0)
        if token in (*SHORT, "--output"):
            token = "--output" if "--output" in valued else "--output_dir"
        name, equals, value = token.partition("=")
        name = name.replace("-", "_").replace("__", "--", 1) if name.startswith("--") else name
        if name in valued:
            values = [value] if equals else []
            while tokens and not equals and (not values or name in LISTS) and not tokens[0].startswith("--"):
                values.append(tokens.pop(0))
            rest += [name, ",".join(values)] if values else [name]
        elif not name.startswith("--") or name in FLAGS:
            rest.append(name if name in FLAGS else token)
        else:
            if not equals:
                follows = tokens and not tokens[0].startswith("--") and tokens[0] not in SHORT
                value = tokens.pop(0) if follows else "true"
            overrides[name[2:]] = value
    return rest, overrides


class Train(Command):
    """Takes every key of a recipe as an option, and lists them in its help."""

    valued = ("--sweep",)

    def get_params(self, ctx: typer.Context) -> list:
        params = super().get_params(ctx)
        if ctx.resilient_parsing:  # a shell completes
            from hf_fst.recipes.keys import all_keys

            params += [TyperOption(param_decls=[f"--{key}"], type_descriptor=str) for key in all_keys()]
        return params

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        args, ctx.obj = split_overrides(args, self.valued)
        if ctx.obj and not ctx.resilient_parsing:
            from hf_fst.recipes.keys import all_keys, refuse_unknown

            for key in ctx.obj:  # before anything heavy is loaded
                refuse_unknown(key.partition(".")[0], all_keys())
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: typer.Context, formatter) -> None:
        from hf_fst.recipes.keys import key_table

        super().format_epilog(ctx, formatter)
        formatter.write(f"\n{key_table()}\n")


def recipes_from(incomplete: str) -> list[str]:
    """The recipes whose names begin so, for a shell that completes."""
    from hf_fst.recipes.names import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def known(recipe: str) -> str:
    """A recipe that can be found, before anything heavy is loaded."""
    from hf_fst.recipes.names import find_recipe

    find_recipe(recipe)
    return recipe


RecipeName = Annotated[
    str,
    Argument(
        metavar="RECIPE",
        help="The name of a recipe, or the path of a YAML file.",
        autocompletion=recipes_from,
        callback=known,
    ),
]


def show_recipes(wanted: bool) -> None:
    if wanted:
        from hf_fst.drawing.tables import columns_of_terminal
        from hf_fst.recipes.names import described_recipes

        typer.echo(described_recipes(columns_of_terminal()))
        raise typer.Exit


def train(
    ctx: typer.Context,
    recipe: RecipeName,
    sweep: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="Name or number of the point of a recipe with `sweep`; `all` trains every point, with a table at the "
            "end, and with --resume continues where it stopped.",
        ),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the run in the output directory.")] = False,
    resume: Annotated[
        bool,
        Option(
            "--resume",
            help="Continue from the last complete checkpoint with the same settings; a finished run is left as it is.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        Option(
            "--dry_run",
            help="Print sizes and memory, and with the data at hand the time of a step. Nothing is written.",
        ),
    ] = False,
    print_config: Annotated[
        bool,
        Option(
            "--print_config",
            help="Print the recipe with the comment of its file and its defaults and overrides applied, and exit.",
        ),
    ] = False,
    list_recipes: Annotated[
        bool,
        Option("--list", callback=show_recipes, is_eager=True, help="List the recipes that ship with the package."),
    ] = False,
) -> dict:
    """Train what a recipe says.

    The output directory gets the teacher as an ordinary checkpoint, the student in student/, results.json, a model card
    and pictures. It is runs/ and the name of the recipe, or what -o (--output_dir) says. Every key of a recipe is also an
    option, --key value; they are listed below.

    Examples:
      hf-fst train --list
      hf-fst train street-da
      hf-fst train street-da --lookahead_steps 1 --seed 2 -o runs/one-step
      hf-fst train camvid-semi --sweep fst_w --data_dir camvid
      hf-fst train camvid-semi --sweep all --data_dir camvid
      hf-fst train my.yaml --model_config.hidden_size 64 --resume
      accelerate launch examples/run_fst.py my.yaml      (the same on several GPUs)
    """
    from transformers.utils.logging import disable_progress_bar

    from hf_fst.recipes.load import load_recipe

    disable_progress_bar()  # of every file that is read or written; training has its own
    overrides = ctx.obj
    if sweep == "all" and not print_config:
        from hf_fst.recipes.sweep import dry_run_all, is_all, train_all

        if is_all(recipe, sweep):
            if dry_run:
                return dry_run_all(recipe, overrides)
            try:
                return train_all(recipe, overrides, overwrite=overwrite, resume=resume)
            except KeyboardInterrupt as stop:
                again = _typed(recipe, overrides, ["--sweep", sweep, "--resume"])
                raise KeyboardInterrupt(f"Stopped. To continue: {again}") from stop
    loaded = load_recipe(recipe, overrides, sweep)
    if print_config:
        from hf_fst.data.files import read_text
        from hf_fst.recipes.load import as_dict, as_text
        from hf_fst.recipes.names import comment_of, find_recipe

        typer.echo("".join(f"{line}\n" for line in comment_of(read_text(find_recipe(recipe)))), nl=False)
        typer.echo(as_text(as_dict(loaded)), nl=False)
        return {}
    if dry_run:
        from hf_fst.recipes.dry_run import dry_run

        return dry_run(loaded, measure=True)
    from hf_fst.recipes.run import run

    words = ["--sweep", sweep] if sweep else []
    command = _command(recipe, overrides, words, overwrite=overwrite, resume=resume)
    try:
        return run(loaded, overwrite=overwrite, resume=resume, command=command, overrides=overrides)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_stopped(recipe, overrides, words, loaded.options["output_dir"])) from stop


def _stopped(recipe: str, overrides: dict[str, str], words: list[str], output_dir: str) -> str:
    """How to continue after Ctrl-C, in a sentence."""
    from hf_fst.training.checkpoints import complete_checkpoints

    saved = complete_checkpoints(Path(output_dir))
    if saved:
        return f"Stopped. To continue from {saved[-1]}: {_typed(recipe, overrides, [*words, '--resume'])}"
    there = Path(output_dir).is_dir()  # the run may have begun
    again = _typed(recipe, overrides, [*words, *["--overwrite"] * there])
    return f"Stopped before the first checkpoint (save_steps says when one is written). To start again: {again}"


def _typed(recipe: str, overrides: dict[str, str], words: list[str]) -> str:
    """A command for this machine."""
    return shlex.join(["hf-fst", "train", recipe, *(f"--{key}={value}" for key, value in overrides.items()), *words])


def _command(recipe: str, overrides: dict[str, str], words: list[str], **flags: bool) -> str:
    """What was typed, without this machine's folders."""
    from hf_fst.recipes.output import as_typed, shareable

    words = ["hf-fst", "train", *shareable({"recipe": recipe}).values(), *words]
    typed = as_typed(overrides)
    for key in overrides:
        words += [f"--{key}", typed.get(key, key.upper())]
    return shlex.join([*words, *(f"--{flag}" for flag, given in flags.items() if given)])
