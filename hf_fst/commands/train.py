"""`hf-fst train`."""

from __future__ import annotations

import argparse
import shlex

from hf_fst.commands.common import add_common

_TRAIN_FLAGS = ("--overwrite", "--resume", "--dry_run", "--json", "--debug", "--help")


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments of `train` without `--key value` and `--key=value`, and these by key; a key alone means true."""
    rest, overrides, tokens = [], {}, list(argv)
    while tokens:
        token = tokens.pop(0)
        if token in ("-o", "--output"):
            token = "--output_dir"
        name, equals, value = token.partition("=")
        name = name.replace("-", "_").replace("__", "--", 1) if name.startswith("--") else name
        if not name.startswith("--") or name in _TRAIN_FLAGS:
            rest.append(name if name in _TRAIN_FLAGS else token)
        elif name == "--sweep":
            rest += ["--sweep", value] if equals else ["--sweep", *tokens[:1]]
            tokens = tokens if equals else tokens[1:]
        else:
            if not equals:
                value = tokens.pop(0) if tokens and not tokens[0].startswith("--") else "true"
            overrides[name[2:]] = value
    return rest, overrides


class _TrainHelp(argparse.Action):
    """The help of `train` with all keys of a recipe."""

    def __call__(self, parser, namespace, values, option_string=None):
        from hf_fst.recipes.keys import key_table

        parser.print_help()
        print(f"\n{key_table()}")
        parser.exit()


def add(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train what a recipe says",
        description="Train what a recipe (a YAML file) says. The output directory gets the teacher as an ordinary\n"
        "checkpoint, the student in student/, results.json, a model card and pictures.",
        usage="hf-fst train RECIPE [-o DIR] [--key value ...] [--sweep NAME] [--overwrite | --resume] [--dry_run]",
        epilog="examples:\n"
        "  hf-fst train examples/recipes/street_da_fst_d.yaml\n"
        "  hf-fst train examples/recipes/street_da_fst_d.yaml --lookahead_steps 1 --seed 2 -o runs/one-step\n"
        "  hf-fst train examples/recipes/camvid_semi.yaml --sweep fst_w --data_dir camvid\n"
        "  hf-fst train my.yaml --model_config.hidden_size 64 --resume\n"
        "  accelerate launch examples/run_fst.py my.yaml      (the same on several GPUs)\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="the YAML file")
    parser.add_argument(  # read before these, as all keys are; here for the help
        "-o", "--output_dir", metavar="DIR", help="where the run goes (runs/ and the name of the recipe)"
    )
    parser.add_argument("--sweep", metavar="NAME", help="name or number of the point of a recipe with `sweep`")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the output directory")
    parser.add_argument("--resume", action="store_true", help="go on from its last complete checkpoint")
    parser.add_argument(
        "--dry_run", action="store_true", help="build model and schedule, make one small step, print sizes; no data"
    )
    add_common(parser)
    parser.add_argument("-h", "--help", action=_TrainHelp, nargs=0, help="show this and every key of a recipe")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, overrides: dict[str, str]) -> dict:
    from transformers.utils.logging import disable_progress_bar

    from hf_fst.recipes.load import load_recipe

    disable_progress_bar()  # of every file that is read or written; training has its own
    recipe = load_recipe(arguments.recipe, overrides, arguments.sweep)
    if arguments.dry_run:
        from hf_fst.recipes.dry_run import dry_run

        return dry_run(recipe)
    from hf_fst.recipes.run import run

    return run(
        recipe,
        overwrite=arguments.overwrite,
        resume=arguments.resume,
        command=_command(arguments, overrides),
        overrides=overrides,
    )


def _command(arguments: argparse.Namespace, overrides: dict[str, str]) -> str:
    """What was typed, without this machine's folders."""
    from hf_fst.recipes.run import LOCAL_KEYS, shareable

    words = ["hf-fst", "train", *shareable({"recipe": arguments.recipe}).values()]
    words += ["--sweep", arguments.sweep] if arguments.sweep else []
    for key, value in overrides.items():
        words += [f"--{key}", key.upper() if key in LOCAL_KEYS else str(shareable({key: value})[key])]
    words += [f"--{flag}" for flag in ("overwrite", "resume") if getattr(arguments, flag)]
    return shlex.join(words)
