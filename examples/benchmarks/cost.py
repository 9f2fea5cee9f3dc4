r"""Seconds and memory of one iteration under each rule or with each method, as ratios to a control in one run.

    python examples/benchmarks/cost.py
    python examples/benchmarks/cost.py --set methods --name cost_methods --recipe street-da-lite -- \
        --model fpn-efficientnet-lite0

Trains the model of a recipe with each, and beside it the control: the two trainings take turns of 12 steps in one
process, since the speed of a machine changes from minute to minute, and look-aheads at every 12th step count in full. A
turn gives the mean of its steps and the ratio to the turn of the control before it; the table has the medians of the
turns. On a CPU the seconds are those of the processor.
What stands after `--` goes to the recipe. Writes docs/results/NAME.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers import TrainerCallback, set_seed

from hf_fst.evaluation.machine import hardware, versions
from hf_fst.recipes.data import build_data
from hf_fst.recipes.load import load_recipe, to_config
from hf_fst.recipes.network import build_network
from hf_fst.training.settings import resolve
from hf_fst.training.trainer import FSTTrainer

ROOT = Path(__file__).resolve().parents[2]
RULES = {
    "supervised": {"rule": "supervised", "objective": "supervised"},
    "mean teacher": {"rule": "mean_teacher"},
    "Naive-FST": {"rule": "naive_fst"},
    "Improved-FST": {"rule": "improved_fst"},
    "FST-D, K = 2": {"rule": "fst_d", "lookahead_steps": "2"},
    "FST-D, K = 3": {"rule": "fst_d", "lookahead_steps": "3"},
    "FST-D, K = 3, M = 4": {"rule": "fst_d", "lookahead_steps": "3", "lookahead_every": "4"},
    "FST-D, K = 3, M = 12": {"rule": "fst_d", "lookahead_steps": "3", "lookahead_every": "12"},
    "FST-W, N = 2": {"rule": "fst_w", "lookahead_students": "2"},
    "FST-W, N = 3": {"rule": "fst_w", "lookahead_students": "3"},
}
LIVE = {"rule": "mean_teacher", "teacher_follows": "live"}  # no teacher: the student labels
METHODS = {
    "supervised": {"rule": "supervised", "objective": "supervised"},
    "cut_mix": {"rule": "mean_teacher", "objective": "cut_mix"},
    "class_mix": {"rule": "mean_teacher", "objective": "class_mix"},
    "cps, no teacher": {"objective": "cps", **LIVE},
    "unimatch": {"rule": "mean_teacher", "objective": "unimatch"},
    "unimatch_v2": {"rule": "mean_teacher", "objective": "unimatch_v2"},
    "proda": {"rule": "mean_teacher", "objective": "proda", "prototype_passes": "1"},
    "u2pl": {"rule": "mean_teacher", "objective": "u2pl"},
    "cpsl": {"rule": "mean_teacher", "objective": "cpsl", "prototype_passes": "1"},
    "cct, no teacher": {"objective": "cct", **LIVE},
    "gct, no teacher": {"objective": "gct", **LIVE},
    "cps": {"rule": "mean_teacher", "objective": "cps"},
    "unimatch, no teacher": {"objective": "unimatch", **LIVE},
}
SETS = {"rules": (RULES, "mean teacher"), "methods": (METHODS, "supervised")}  # what is measured, and its control


CYCLE = 12  # steps of a turn, a multiple of every M


class Turn(TrainerCallback):
    """One of two trainings that take turns of `CYCLE` steps; times each turn, loading included, on a CPU in its seconds.

    Args:
        begins: whether it takes the first turn.
    """

    def __init__(self, begins: bool):
        self.may_go, self.begins, self.seconds = threading.Semaphore(int(begins)), begins, []

    def now(self, device: torch.device) -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def wait(self, device: torch.device) -> None:
        self.may_go.acquire()
        self.start = self.now(device)

    def on_train_begin(self, args, state, control, **kwargs):
        self.wait(args.device)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % CYCLE:
            return
        self.seconds.append((self.now(args.device) - self.start) / CYCLE)
        self.other.may_go.release()
        if self.begins or state.global_step < state.max_steps:  # the last one has nobody to wait for
            self.wait(args.device)


def trainer_of(recipe_file: str, settings: dict[str, str], cycles: int, turn: Turn, directory: str) -> FSTTrainer:
    """A trainer of a recipe that takes turns and writes nothing but its end."""
    fixed = {
        "output_dir": directory,
        "max_steps": str(CYCLE * cycles),
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": "false",
        "eval_on_start": "false",
        "logging_strategy": "no",
        "disable_tqdm": "true",
        "report": "false",
        "check": "false",
    }
    recipe = load_recipe(recipe_file, {**fixed, **settings})
    config = to_config(recipe)
    set_seed(0)
    data = build_data(recipe, config, resolve(config).objective)
    return FSTTrainer(
        model=build_network(recipe, data.names),
        args=config,
        train_dataset=data.labeled,
        unlabeled_dataset=data.unlabeled,
        callbacks=[turn],
    )


def measure(recipe_file: str, settings: list[dict[str, str]], cycles: int) -> tuple[list[list[float]], int]:
    """Seconds of a step in each turn of a control and of another, and bytes that the other's look-ahead holds.

    The first turn of both, in which memory is allocated, is left out.
    """
    turns = [Turn(begins=True), Turn(begins=False)]
    turns[0].other, turns[1].other = turns[1], turns[0]
    with tempfile.TemporaryDirectory() as directory:
        trainers = [
            trainer_of(recipe_file, one, cycles + 1, turn, f"{directory}/{turn.begins}")
            for one, turn in zip(settings, turns, strict=True)
        ]

        def train(turn: Turn, trainer: FSTTrainer) -> None:
            try:
                trainer.train()
            finally:  # where one fails, the other goes on
                turn.other.may_go.release(cycles + 1)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(train, turns, trainers))
        return [turn.seconds[1:] for turn in turns], trainers[1].lookahead_memory()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="cost", help="of the table: docs/results/NAME.json")
    parser.add_argument("--set", choices=SETS, default="rules", help="what is measured")
    parser.add_argument("--recipe", default="hf_fst/recipes/library/base/street_da.yaml")
    parser.add_argument("--turns", type=int, default=8, help=f"of {CYCLE} steps each")
    own = sys.argv[1:] if arguments is None else arguments
    split = own.index("--") if "--" in own else len(own)
    args, more = parser.parse_args(own[:split]), own[split + 1 :]
    given = {key.removeprefix("--"): value for key, value in zip(more[::2], more[1::2], strict=True)}
    measures, control = SETS[args.set]
    rows = []
    for name, settings in measures.items():
        both = [{**given, **measures[control]}, {**given, **settings}]
        (before, own), memory = measure(args.recipe, both, args.turns)
        ratio = statistics.median(b / a for a, b in zip(before, own, strict=True))
        values = {"seconds": statistics.median(own), "ratio": ratio, "memory": memory / 2**20}
        rows.append({"name": name, "seeds": {"0": values}})
        print(f"{name}: {ratio:.3f} of {control}", flush=True)
    clock = "seconds" if torch.cuda.is_available() else "processor seconds"
    words = f"--set {args.set} --name {args.name} --recipe {args.recipe} --turns {args.turns}"
    if given:
        words += " -- " + shlex.join(more).replace(given.get("data_dir", "DATA_DIR"), "DATA_DIR")
    content = {
        "title": f"Cost of an iteration, {Path(args.recipe).stem}",
        "command": f"python examples/benchmarks/cost.py {words}",
        "device": hardware("cuda" if torch.cuda.is_available() else "cpu"),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "columns": [
            {"key": "seconds", "title": f"{clock} per iteration", "format": "seconds"},
            {"key": "ratio", "title": f"to {'the ' if ' ' in control else ''}{control}", "format": "number"},
            {"key": "memory", "title": "held for the look-ahead (MiB)", "format": "number"},
        ],
        "rows": rows,
        "note": f"Medians of {args.turns} turns of {CYCLE} iterations, each right after a turn of the control; "
        "loading of images is included. The memory is that of the kept present and, for FST-W, of the mean future.",
    }
    target = ROOT / "docs" / "results" / f"{args.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{target.relative_to(ROOT)} written; now make tables")
    return 0


if __name__ == "__main__":
    sys.exit(main())
