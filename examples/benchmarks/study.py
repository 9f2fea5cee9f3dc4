"""What the look-ahead gives over its controls: methods and paired seeds on one task, within a time limit.

    python examples/benchmarks/study.py street street-da-lite --start 300 --steps 600 --budget 8h
    python examples/benchmarks/study.py photos drawn-to-camvid --start 300 --budget 10m --jobs 9 -- --unlabeled_data_dir D
    python examples/benchmarks/study.py field street-da-lite --start 150 --field 25s -- --model fpn-efficientnet-lite0

Each run is one `hf-fst train`. Runs that are there already are not made again; the most important contrasts come first,
and what would not end in time is left out. With --start every seed first learns from labels alone for so many steps, and
all methods continue from that network. With --field the methods of other papers are compared, each with as many steps as
fit into so much time of one core by docs/results/cost_methods.json (`cost.py --set methods`). What stands after `--` goes
to every run. The scores go to docs/results/NAME.json; `make tables` renders the table and draws the curves.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import re
import shlex
import sys
import time
from pathlib import Path

from cost import METHODS
from tables import render_results

from hf_fst.models import TwoBranches
from hf_fst.models.loading import load
from hf_fst.recipes.load import load_recipe
from hf_fst.recipes.trials import Trial, curve_of, run_trials, scores_of

ROOT = Path(__file__).resolve().parents[2]
CONTROL, FIELD_CONTROL = "mean teacher", "statistics alone"
COLUMNS = [
    {"key": "test", "title": "test mIoU (%)", "format": "percent"},
    {"key": "over", "title": "", "format": "points"},
    {"key": "last", "title": "validation, last (%)", "format": "percent"},
    {"key": "best", "title": "validation, best (%)", "format": "percent"},
    {"key": "cost", "title": "seconds a step", "format": "seconds"},
    {"key": "steps", "title": "steps", "format": "integer"},
]
K, N = 3, 3
PAIRS = {"cps": 0, "gct": 64}  # objectives of two branches, and how wide their flaw detectors are


def methods(steps: int, memory: float) -> dict[str, tuple[dict, float]]:
    """What is compared, the most important contrasts first: options and cost in mean-teacher steps.

    Args:
        steps: of a run.
        memory: of the teacher, in steps.
    """
    every = max(1, steps // 4)
    base = {"max_steps": steps, "teacher_memory": memory, "eval_steps": every, "save_steps": every, "report": False}
    ahead = base | {"lookahead_every": 1}
    deep = ahead | {"rule": "fst_d", "lookahead_steps": K}
    mean = base | {"rule": "mean_teacher"}
    faster = 1 / (1 - (1 - 1 / memory) ** (K + 1))  # of μ^(K+1), where μ is that of this memory
    alone = base | {"rule": "supervised", "objective": "supervised"}

    def longer(options: dict, factor: float) -> dict:
        every = max(1, round(factor * steps / 4))
        return options | {"max_steps": round(factor * steps), "eval_steps": every, "save_steps": every}

    found = {
        CONTROL: (mean, 1),
        "FST-D, M=12": (deep | {"lookahead_every": 12}, 1 + K / 12),
        "supervised": (alone, 0.5),
        "mean teacher, faster": (mean | {"teacher_memory": faster}, 1),
        "FST-D, M=1": (deep, 1 + K),
        "mean teacher, time of M=12": (longer(mean, 1 + K / 12), 1 + K / 12),
        "statistics alone": (mean | {"learning_rate": 0}, 1),
        "FST-D, M=4": (deep | {"lookahead_every": 4}, 1 + K / 4),
        "FST-D, M=12, faster": (deep | {"lookahead_every": 12, "teacher_memory": faster}, 1 + K / 12),
        "mean teacher, slower": (mean | {"teacher_memory": 4 * memory}, 1),
        "FST-D, M=12, slower": (deep | {"lookahead_every": 12, "teacher_memory": 4 * memory}, 1 + K / 12),
        "mean teacher, time of M=1": (longer(mean, 1 + K), 1 + K),
        "FST-D, M=1, faster": (deep | {"teacher_memory": faster}, 1 + K),
        "Improved-FST": (ahead | {"rule": "improved_fst"}, 2),
        "FST-W": (ahead | {"rule": "fst_w", "lookahead_students": N}, 1 + N),
        "FST-D, M=4, carry": (deep | {"lookahead_every": 4, "lookahead_state": "carry"}, 1 + K / 4),
        "FST-D, M=4, different": (deep | {"lookahead_every": 4, "lookahead_batches": "different"}, 1 + K / 4),
        "supervised, 4 times the steps": (longer(alone, 4), 2),
    }
    return found


def field(seconds: float, memory: float) -> dict[str, tuple[dict, float]]:
    """The methods of other papers in equal time, in the form of `methods`; `seconds` are those of one core's steps."""
    rows = json.loads((ROOT / "docs" / "results" / "cost_methods.json").read_text(encoding="utf-8"))["rows"]
    cost = {row["name"]: row["seeds"]["0"]["seconds"] for row in rows}
    found = {}
    # the control of all that see both looks: BatchNorm statistics follow the images, weights stay
    controls = {"statistics alone": METHODS["cut_mix"] | {"learning_rate": 0}}
    for name, options in (METHODS | controls).items():
        steps = round(seconds / cost["cut_mix" if name in controls else name])
        every = max(1, steps // 2)
        own = {"max_steps": steps, "teacher_memory": memory, "eval_steps": every, "save_steps": every, "report": False}
        found[name] = (options | own, 1)
    return found


def seconds_of(text: str) -> float:
    """Seconds of a time such as 90s, 10m or 8h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give one such as 90s, 10m or 8h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the table: docs/results/NAME.json")
    parser.add_argument("recipe", help="name or path of the recipe that all runs share")
    parser.add_argument("--sweep", default=None, help="which point of the recipe's sweep")
    parser.add_argument(
        "--start", type=int, default=0, help="steps of labels alone that all methods of a seed continue from"
    )
    parser.add_argument("--title", default=None, help="of the table")
    parser.add_argument("--steps", type=int, default=None, help="of a run (those of the recipe)")
    parser.add_argument("--memory", type=float, default=None, help="of the teacher in steps (that of the recipe)")
    parser.add_argument("--field", type=seconds_of, default=None, help="compare other methods, each for such a time")
    parser.add_argument("--methods", nargs="+", default=None, help="rows of the table; all of them by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; the cores are shared among them")
    parser.add_argument("--budget", type=seconds_of, default=math.inf, help="time for all, such as 10m or 8h")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "study", help="where the runs are kept")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="where NAME.json goes")
    own = sys.argv[1:] if arguments is None else arguments
    split = own.index("--") if "--" in own else len(own)
    args, typed = parser.parse_args(own[:split]), own[split + 1 :]
    more = (["--sweep", args.sweep] if args.sweep else []) + typed
    deadline = time.monotonic() + args.budget

    options = load_recipe(args.recipe, sweep=args.sweep).options
    memory = args.memory or options["teacher_memory"]
    grid = field(args.field, memory) if args.field else methods(args.steps or options["max_steps"], memory)
    unknown = [name for name in args.methods or () if name not in grid]
    if unknown:
        parser.error(f"there is no method {unknown[0]!r}; there are {', '.join(grid)}")
    chosen = {name: grid[name] for name in args.methods or grid}
    own_keys = {key for values, _ in chosen.values() for key in values}
    keys = [word[2:].partition("=")[0].replace("-", "_") for word in typed if word.startswith("--")]
    if twice := [key for key in keys if key in own_keys]:
        parser.error(f"--{twice[0]} is set by the study itself; leave it out")
    if args.field and args.start and len(args.seeds) < 2:
        parser.error("--field joins the starts of two seeds where branches label each other; give two --seeds")

    folder, starts = args.runs / args.name, {}
    if args.start:
        alone = {"rule": "supervised", "objective": "supervised", "max_steps": args.start, "eval_strategy": "no"}
        alone |= {"load_best_model_at_end": False, "save_strategy": "no", "test_split": False, "report": False}
        first = [Trial("start", seed, alone) for seed in args.seeds]
        run_trials(args.recipe, first, folder, more, args.jobs, deadline)
        starts = {t.seed: folder / t.name for t in first}
    trials = [
        Trial(name, seed, values | start(values, seed, starts), 0.5 + cost)  # half a run to start and to evaluate
        for group in tiers(list(chosen), 7 if args.field else 5)
        for seed in args.seeds
        for name, (values, cost) in ((name, chosen[name]) for name in group)
    ]
    found = run_trials(args.recipe, trials, folder, more, args.jobs, deadline)
    if not found:
        print("no run has ended in time", file=sys.stderr)
        return 1

    content = table(args, chosen, found)
    words = ["DATA_DIR" if i and typed[i - 1].endswith("_dir") else word for i, word in enumerate(typed)]
    given = [word for word in own[:split] if "/" not in word and word not in ("--runs", "--results")]
    content["command"] = shlex.join(
        ["python", "examples/benchmarks/study.py", *given] + (["--", *words] if words else [])
    )
    args.results.mkdir(parents=True, exist_ok=True)
    target = args.results / f"{args.name}.json"
    target.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    now = "; now make tables" if args.results == ROOT / "docs" / "results" else ""
    print(f"{render_results(content)}\n\n{target.name} written, {len(found)} of {len(trials)} runs{now}")
    return 0


def start(values: dict, seed: int, starts: dict[int, Path]) -> dict:
    """The options by which a run continues from the start of its seed.

    Where two branches label each other, they are the starts of two seeds: the labels of a head at random would spoil the
    other branch before it has learned any.
    """
    if not starts:
        return {}
    folder, seeds = starts[seed], list(starts)
    if values.get("objective") in PAIRS:
        second = starts[seeds[seeds.index(seed) - 1]]
        network, processor = load(folder)
        pair = TwoBranches.of(network, PAIRS[values["objective"]])
        pair.branches[1].load_state_dict(load(second)[0].state_dict())
        folder = folder.with_name(f"{folder.name}-{values['objective']}")
        for part in (pair, processor):
            part.save_pretrained(folder)
    return {"model": str(folder), "model_config": None, "pretrained_backbone": None}


def tiers(names: list[str], size: int) -> list[list[str]]:
    """Methods in groups of which all seeds run before the next group begins."""
    return [names[i : i + size] for i in range(0, len(names), size)]


def table(args: argparse.Namespace, chosen: dict, found: dict[Trial, dict]) -> dict:
    """The content of the result file."""
    scores = {(trial.method, trial.seed): scores_of(results) for trial, results in found.items()}
    key = "test" if all(score["test"] is not None for score in scores.values()) else "last"
    first_row, rows, curves = FIELD_CONTROL if args.field else CONTROL, [], {}
    for name in chosen:
        seeds = {}
        for trial, results in found.items():
            control = scores.get((first_row, trial.seed))
            if trial.method != name or control is None:
                continue
            score = scores[name, trial.seed]
            over = None if name == first_row else score[key] - control[key]
            steps = results["steps"]
            cost = args.field / steps if args.field else results["seconds_per_step"]
            seeds[str(trial.seed)] = score | {"over": over, "cost": cost, "steps": steps}
            curves.setdefault(name, {})[str(trial.seed)] = [
                [step, round(step * cost, 2), round(miou, 5)] for step, miou in curve_of(results)
            ]
        if seeds:
            rows.append({"name": name, "seeds": dict(sorted(seeds.items(), key=lambda item: int(item[0])))})
    against = first_row if args.field else f"the {first_row}"
    columns = [column | {"title": column["title"] or f"over {against}"} for column in COLUMNS]
    first = next(iter(found.values()))
    jobs = f", {args.jobs} runs at a time" if args.jobs > 1 else ""
    return {
        "title": args.title or args.name,
        "command": "",
        "device": f"{first['device']}{jobs}",
        "versions": first["versions"],
        "date": datetime.date.today().isoformat(),
        "spread": "interval",
        "columns": columns if key == "test" else columns[1:],
        "rows": rows,
        "curves": curves,
        "note": f"Differences from {against} are paired by seed{'' if key == 'test' else ' (validation, last)'}.",
    }


if __name__ == "__main__":
    sys.exit(main())
