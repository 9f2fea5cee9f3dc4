"""`hf-fst compare`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from hf_fst.commands.parser import Command
from hf_fst.commands.train import RecipeName, Train
from hf_fst.errors import UsageError, did_you_mean


class Compare(Train):
    """Takes every key of a recipe as an option, like `train`, whose help lists them."""

    format_epilog = Command.format_epilog
    valued = ("--rules", "--seeds", "--budget", "--equal", "--jobs", "--output")


def compare(
    ctx: typer.Context,
    recipe: RecipeName,
    rules: Annotated[
        str, Option(metavar="RULE ...", help="Rules to compare.", show_default="supervised mean_teacher fst_d")
    ] = "supervised,mean_teacher,fst_d",
    seeds: Annotated[
        int, Option(min=1, metavar="N", help="Runs of each rule; runs with the same seed are paired.")
    ] = 3,
    budget: Annotated[str, Option(metavar="TIME", help="Total time, such as 90s, 30m or 8h.")] = "30m",
    equal: Annotated[
        str,
        Option(
            metavar="steps|time",
            help="What every rule gets the same amount of; with time, cheap rules take more steps.",
        ),
    ] = "steps",
    jobs: Annotated[int, Option(min=1, metavar="N", help="Runs at a time; the cores are shared among them.")] = 1,
    output: Annotated[
        str | None,
        Option("--output", "-o", metavar="DIR", help="The folder to write; runs/compare_RECIPE by default."),
    ] = None,
) -> dict:
    """Find the rule that pays off on your data: short runs of each, a table with intervals, and one sentence.

    The runs get as many steps as fit into the time. Rules that look ahead do so at every 12th step, which was level with
    every step in our measurements, at a third of its price, and leaves all rules more steps; --lookahead_every 1 tries
    every step. The table has the mean over the seeds and its 95 % interval, and differences from the mean teacher that
    are paired by seed. Every key of a recipe is also an option, --key value. The same command continues where it
    stopped.

    Examples:
      hf-fst compare folders --data_dir labeled --unlabeled_data_dir unlabeled --budget 30m
      hf-fst compare my.yaml --rules mean_teacher fst_d --seeds 5 --equal time --budget 2h
    """
    from hf_fst.method.rules import RULES
    from hf_fst.recipes.compare import compare
    from hf_fst.recipes.load import load_recipe

    names = rules.split(",")
    for name in names:
        if name not in RULES:
            raise UsageError(f"There is no rule {name!r}; {did_you_mean(name, RULES)}")
    if len(set(names)) != len(names) or len(names) < 2:
        raise UsageError(f"--rules is {rules!r}; give two or more, each once.")
    if equal not in ("steps", "time"):
        raise UsageError(f"--equal is {equal!r}; use steps or time.")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget)
    if match is None:
        raise UsageError(f"--budget is {budget!r}; give a time such as 90s, 30m or 8h.")
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    for key, instead in {"rule": "rules", "seed": "seeds", "output_dir": "output"}.items():
        if key in ctx.obj:
            raise UsageError(f"--{key} differs from run to run of a comparison; leave it out, or give --{instead}.")
    loaded = load_recipe(recipe, ctx.obj)
    words = [word for key, value in ctx.obj.items() for word in (f"--{key}", value)]
    folder = Path(output or f"runs/compare_{loaded.name}")
    return compare(recipe, loaded, words, names, range(seeds), seconds, equal, folder, jobs)
