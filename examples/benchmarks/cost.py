r"""Seconds and memory of one iteration under each rule or with each method, as ratios to a control in one run.

    python examples/benchmarks/cost.py
    python examples/benchmarks/cost.py --set methods --name cost_methods --recipe street-da-lite -- \
        --model fpn-efficientnet-lite0
    python examples/benchmarks/cost.py --name cost_camvid --recipe hf_fst/recipes/library/base/camvid_semi.yaml -- \
        --data_dir camvid

Trains the model of a recipe for a few steps with each in turn, several rounds, and each time the control right before it,
since the speed of a machine changes from minute to minute. A round gives the mean of its steps, which are a multiple of
12, so that look-aheads now and then count in full, and the ratio to the control; the table has the medians of the rounds.
On a CPU the seconds are those of the processor.
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
import time
from collections import defaultdict
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


class Clock(TrainerCallback):
    """Seconds of each step, on a CPU those of the processor."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = self.now(args.device)

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(self.now(args.device) - self.start)

    def now(self, device: torch.device) -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def measure(recipe_file: str, settings: dict[str, str], steps: int, warm_up: int) -> tuple[list[float], int]:
    """Seconds of the steps after the warm-up, and bytes that the look-ahead holds beside student and teacher."""
    with tempfile.TemporaryDirectory() as directory:
        fixed = {
            "output_dir": directory,
            "max_steps": str(steps + warm_up),
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
        clock = Clock()
        trainer = FSTTrainer(
            model=build_network(recipe, data.names),
            args=config,
            train_dataset=data.labeled,
            unlabeled_dataset=data.unlabeled,
            callbacks=[clock],
        )
        trainer.train()
        return clock.seconds[warm_up:], trainer.lookahead_memory()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="cost", help="of the table: docs/results/NAME.json")
    parser.add_argument("--set", choices=SETS, default="rules", help="what is measured")
    parser.add_argument("--recipe", default="hf_fst/recipes/library/base/street_da.yaml")
    parser.add_argument("--steps", type=int, default=12, help="of a round, a multiple of 12")
    parser.add_argument("--rounds", type=int, default=3)
    own = sys.argv[1:] if arguments is None else arguments
    split = own.index("--") if "--" in own else len(own)
    args, more = parser.parse_args(own[:split]), own[split + 1 :]
    if args.steps % 12:
        parser.error(f"--steps is {args.steps}, but a round needs whole rounds of M = 12 steps; give a multiple of 12")
    given = {key.removeprefix("--"): value for key, value in zip(more[::2], more[1::2], strict=True)}
    measures, control = SETS[args.set]
    seconds, ratios, memory = defaultdict(list), defaultdict(list), {}
    for _ in range(args.rounds):
        for name, settings in measures.items():
            before, _ = measure(args.recipe, {**given, **measures[control]}, args.steps, warm_up=2)
            measured, memory[name] = measure(args.recipe, {**given, **settings}, args.steps, warm_up=2)
            seconds[name].append(statistics.fmean(measured))
            ratios[name].append(seconds[name][-1] / statistics.fmean(before))
    rows, clock = [], "seconds" if torch.cuda.is_available() else "processor seconds"
    for name in measures:
        median, ratio = statistics.median(seconds[name]), statistics.median(ratios[name])
        values = {"seconds": median, "ratio": ratio, "memory": memory[name] / 2**20}
        rows.append({"name": name, "seeds": {"0": values}})
    words = f"--set {args.set} --name {args.name} --recipe {args.recipe} --steps {args.steps} --rounds {args.rounds}"
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
        "note": f"Medians of {args.rounds} rounds of {args.steps} iterations, each right after as many of the control; "
        "loading of images is included. The memory is that of the kept present and, for FST-W, of the mean future.",
    }
    target = ROOT / "docs" / "results" / f"{args.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{target.relative_to(ROOT)} written; now make tables")
    return 0


if __name__ == "__main__":
    sys.exit(main())
