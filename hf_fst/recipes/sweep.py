"""Every point of a recipe's sweep, one after the other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_fst.drawing.tables import columns_of_terminal, percent, text_table
from hf_fst.errors import RunError
from hf_fst.recipes.dry_run import dry_run
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.load import load_recipe, sweep_points, to_config
from hf_fst.recipes.output import check_output, is_finished
from hf_fst.recipes.trials import networks_of, results_of, scores_of
from hf_fst.training.checkpoints import complete_checkpoints

ALL = "all"  # what --sweep is given


def is_all(given: str, sweep: str | None) -> bool:
    """Whether every point of a recipe is wanted; a point may itself be named `all`."""
    points = sweep_points(given) if sweep == ALL else []
    return bool(points) and ALL not in points


def train_all(
    given: str,
    overrides: dict[str, str],
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> dict[str, dict]:
    """Trains each point in its own process, so that time and memory are measured for that point only.

    Args:
        given: name or path of the recipe.
        overrides: values by key, as typed; below an `output_dir` each point has a folder of its name.
        overwrite: replace the runs that are there.
        resume: continue where it stopped; finished points stay as they are.

    Returns:
        What `results.json` of each point holds.

    Raises:
        UserError: a point is wrong, or an output directory is not empty; nothing was trained.
        RunError: a point failed; those before it are finished.
    """
    commands = {}
    for name in sweep_points(given):
        own = dict(overrides)
        if "output_dir" in own:
            own["output_dir"] = str(Path(own["output_dir"], name))
        recipe = load_recipe(given, own, name)
        folder = Path(recipe.options["output_dir"])
        to_config(recipe)
        flag = _flag(recipe, folder, overwrite, resume)
        if not flag:
            check_output(folder, overwrite=False, resume=False)
        typed = [f"--{key}={value}" for key, value in own.items()]
        commands[name] = folder, ["train", given, "--sweep", name, *typed, *flag]
    found = {}
    for number, (name, (folder, words)) in enumerate(commands.items(), start=1):
        print(f"[{number} of {len(commands)}] {name}", flush=True)
        code = _in_a_process(words)
        if code:
            done = ", ".join(found) or "none"
            raise RunError(
                f"The point {name} of the sweep failed (code {code}; finished: {done}); --resume continues."
            )
        found[name] = results_of(folder)
    print(f"\n{table(found)}")
    return {name: {k: v for k, v in results.items() if k != "log_history"} for name, results in found.items()}


def dry_run_all(given: str, overrides: dict[str, str]) -> dict[str, dict]:
    """What `dry_run` finds of each point."""
    return {name: dry_run(load_recipe(given, overrides, name), measure=True) for name in sweep_points(given)}


def table(found: dict[str, dict]) -> str:
    """Scores of both networks of each point: for domain adaptation the student's are published."""
    columns = ["point", "network", "steps", "s/step", "last mIoU (%)", "best mIoU (%)", "test mIoU (%)"]
    rows = []
    for name, results in found.items():
        seconds = results["seconds_per_step"]
        shown = "–" if seconds is None else f"{seconds:.2g}"
        for network in networks_of(results):
            scores = map(percent, scores_of(results, network).values())
            rows.append([name, network, f"{results['steps']:,}", shown, *scores])
    return text_table(columns, rows, columns_of_terminal())


def _flag(recipe: Recipe, folder: Path, overwrite: bool, resume: bool) -> Sequence[str]:
    """The flag to start a point with: a begun one resumes, or starts over if it has no checkpoint."""
    if not resume:
        return ["--overwrite"] * overwrite
    if is_finished(folder, to_config(recipe).report) or complete_checkpoints(folder):
        return ["--resume"]
    return ["--overwrite"] if folder.is_dir() else []


def _in_a_process(words: list[str]) -> int:
    output = 2 if sys.stdout is sys.stderr else None  # with --json
    code = subprocess.call([sys.executable, "-m", "hf_fst", *words], stdout=output)
    if code == 130:  # Ctrl-C went to both
        raise KeyboardInterrupt
    return code
