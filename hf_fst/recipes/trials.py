"""Runs of one recipe with several methods and seeds: made within a time limit, kept, and compared seed by seed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_fst.drawing.tables import interval
from hf_fst.evaluation.counting import LABEL_FREE
from hf_fst.prediction.files import write_json
from hf_fst.publishing.report import HISTORY_FILE
from hf_fst.recipes.output import RECIPE_FILE, RESULTS_FILE

#: failures in a row at the start after which the other runs are given up
TRIES = 3


@dataclass(frozen=True, eq=False)
class Trial:
    """One run.

    Args:
        method: its row in tables.
        seed: of the run; runs of the same seed are paired.
        options: keys of the recipe, by name.
        cost: of a run in passes over the data, from which it follows what fits into a time limit.
    """

    method: str
    seed: int
    options: Mapping[str, object]
    cost: float = 1.0

    @property
    def name(self) -> str:
        """A name for its folder."""
        return f"{self.method.translate(str.maketrans(' ,=/', '____'))}-{self.seed}"

    def words(self, recipe: str, more: Sequence[str]) -> list[str]:
        """Its command line without the output directory; its own options override those in `more`."""
        own = [word for key, value in self.options.items() for word in (f"--{key}", json.dumps(value).strip('"'))]
        return ["train", recipe, *more, "--seed", str(self.seed), *own]


def run_trials(
    recipe: str,
    trials: Sequence[Trial],
    folder: Path,
    more: Sequence[str] = (),
    jobs: int = 1,
    deadline: float = math.inf,
    say=print,
) -> dict[Trial, dict]:
    """Makes runs through `hf-fst train`, in the order given; one that was made with the same words is not made again.

    Args:
        recipe: name or path.
        trials: what to run, the most important first.
        folder: keeps a folder and a log of each.
        more: words that go to every run, such as `["--data_dir", "images"]`.
        jobs: runs at a time; the cores are shared among them, if `OMP_NUM_THREADS` does not say otherwise.
        deadline: of `time.monotonic()`. A run that would not end before it is not started; one still running is stopped.
        say: gets a line for each run.

    Returns:
        What `results.json` of each finished run holds, with its `log_history`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting, running, found = list(trials), {}, {}
    seconds, failed = 0.0, 0  # most that a pass has taken, and runs without results
    while waiting or running:
        while waiting and len(running) < jobs:
            trial = waiting.pop(0)
            words = trial.words(recipe, more)
            typed = folder / f"{trial.name}.json"
            same = typed.is_file() and json.loads(typed.read_text(encoding="utf-8")) == words
            if same and (results := results_of(folder / trial.name)) is not None:
                found[trial] = results
            elif time.monotonic() + seconds * trial.cost <= deadline:
                write_json(typed, words)
                running[trial] = (_start(folder / trial.name, words, jobs), time.monotonic())
            else:
                say(f"{trial.name}: skipped, it would not finish in time")
        time.sleep(0.2)
        for trial, (process, begun) in list(running.items()):
            late = time.monotonic() > deadline
            if process.poll() is None and not late:
                continue
            del running[trial]
            if process.poll() is None:
                process.kill()
                process.wait()
                say(f"{trial.name}: stopped, time is up")
            elif (results := results_of(folder / trial.name)) is not None:
                found[trial], took = results, time.monotonic() - begun
                seconds = max(seconds, took / trial.cost)
                say(f"{trial.name}: {took:.0f} s")
            else:
                say(f"{trial.name}: failed, see {folder / trial.name}.log")
                failed += 1
                if failed == TRIES and not found:
                    waiting.clear()
                    say(f"The first {TRIES} runs failed; the others are skipped.")
    return found


def _start(run: Path, words: list[str], jobs: int) -> subprocess.Popen:
    words = [*words, "--output_dir", str(run), "--disable_tqdm", "true"]
    if (run / RECIPE_FILE).is_file():
        words.append("--overwrite")
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}
    with open(run.with_name(f"{run.name}.log"), "w", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "hf_fst", *words], stdout=log, stderr=subprocess.STDOUT, env=environment
        )


def results_of(run: Path) -> dict | None:
    """What a finished run measured, None where it has not ended."""
    try:
        results = json.loads((run / RESULTS_FILE).read_text(encoding="utf-8"))
        return results | {"log_history": json.loads((run / HISTORY_FILE).read_text(encoding="utf-8"))}
    except FileNotFoundError:
        return None


def networks_of(results: dict) -> list[str]:
    """The networks of a run, the one that it is for last."""
    return ["student"] if results["rule"] == "supervised" else ["student", "teacher"]


def scores_of(results: dict, network: str | None = None) -> dict[str, float | None]:
    """mIoU in 0..1 of a network of a run, by default the one that it is for: the teacher, under `supervised` the student.

    Returns:
        `last` and `best` on the validation images, `test` on the test images with the weights that were kept; None
        where there was no such evaluation.
    """
    network = network or networks_of(results)[-1]
    found = dict.fromkeys(("last", "best", "test"))
    for entry in results["metrics"]:
        tested = entry is results["metrics"][-1] and "test" in entry["split"]
        found["test" if tested else entry["weights"]] = entry[network]["mean_iou"]
    found["best"] = found["last"] if found["best"] is None else found["best"]
    return {key: found[key] for key in ("last", "best", "test")}


def curve_of(results: dict) -> list[tuple[int, float]]:
    """(step, mIoU in 0..1) of every evaluation of a run; without labels, (step, label_free in 0..1)."""
    scored = f"eval_{'student' if results['rule'] == 'supervised' else 'teacher'}_mean_iou"
    curves = (
        [(entry["step"], entry[key]) for entry in results["log_history"] if key in entry]
        for key in (scored, f"eval_{LABEL_FREE}")
    )
    return next(filter(None, curves), [])


def paired(values: Mapping[int, float], control: Mapping[int, float]) -> tuple[float, float]:
    """`interval` of the differences over the seeds that both have."""
    return interval([values[seed] - control[seed] for seed in values if seed in control])
