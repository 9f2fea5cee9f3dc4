"""Train one recipe with several rules and seeds and write the scores as docs/results/NAME.json.

    python examples/benchmarks/rules.py camvid_semi camvid-semi-fst-d --jobs 2 -- --data_dir camvid

Every run has the same number of iterations; what one costs is measured by `cost.py`. Runs whose results are there
already are not made again; delete their directory below --runs to do so. What stands after `--` goes to every run.
`make tables` renders the file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hf_fst.method.rules import RULES

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "supervised": "supervised",
    "mean_teacher": "mean teacher",
    "naive_fst": "Naive-FST",
    "improved_fst": "Improved-FST",
    "fst_d": "FST-D, K = {lookahead_steps}",
    "fst_w": "FST-W, N = {lookahead_students}",
}
COLUMNS = [
    {"key": "student", "title": "student mIoU (%)", "format": "percent"},
    {"key": "teacher", "title": "teacher mIoU (%)", "format": "percent"},
    {"key": "last", "title": "teacher, last (%)", "format": "percent"},
]


def command_of(recipe: str, rule: str, seed: int, more: list[str]) -> list[str]:
    """The run of one rule and seed, but for its output directory."""
    words = ["hf-fst", "train", recipe, "--rule", rule, "--seed", str(seed)]
    if rule == "supervised":
        words += ["--objective", "supervised"]
    return words + more


def train(recipe: str, rule: str, seed: int, more: list[str], directory: Path, threads: int) -> dict:
    """Results of a run, made if they are not there."""
    results = directory / "results.json"
    if not results.is_file():
        print(f"{directory.name} ...", flush=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        command = [*command_of(recipe, rule, seed, more), "--output_dir", str(directory), "--overwrite"]
        command += ["--disable_tqdm", "true"]
        command[0] = str(Path(sys.executable).with_name(command[0]))  # of this environment, activated or not
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with open(directory.with_suffix(".log"), "w", encoding="utf-8") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment)
    return json.loads(results.read_text(encoding="utf-8"))


def scores(results: dict, split: str) -> dict[str, float | None]:
    """Student and teacher on a split with the selected weights; for `last`, the teacher after the last step on the
    images it is selected on. Under `supervised` the student stands for both."""
    network = "student" if results["rule"] == "supervised" else "teacher"
    tested = next(entry for entry in results["metrics"] if entry["split"] == split and entry["weights"] != "start")
    last = next((entry for entry in results["metrics"] if entry["weights"] == "last"), tested)
    return {
        "student": tested["student"]["mean_iou"],
        "teacher": None if network == "student" else tested["teacher"]["mean_iou"],
        "last": None if network == "student" else last["teacher"]["mean_iou"],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the table: docs/results/NAME.json")
    parser.add_argument("recipe", help="name or path of a recipe that all runs share")
    parser.add_argument("--title", default=None, help="of the table")
    parser.add_argument("--note", default=None, help="a sentence below the table")
    parser.add_argument("--rules", nargs="+", default=["supervised", "mean_teacher", "fst_d", "fst_w"], choices=RULES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; the cores are shared among them")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks", help="where the runs are kept")
    parser.add_argument("--extra", action="append", default=[], metavar="RULE:KEY=VALUE", help="an option of one rule")
    own = sys.argv[1:] if arguments is None else arguments
    split = own.index("--") if "--" in own else len(own)
    args, more = parser.parse_args(own[:split]), own[split + 1 :]
    extra = {rule: [] for rule in args.rules}
    for option in args.extra:
        rule, _, setting = option.partition(":")
        key, _, value = setting.partition("=")
        extra[rule] += [f"--{key}", value]

    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    runs = [(rule, seed) for seed in args.seeds for rule in args.rules]
    with ThreadPoolExecutor(args.jobs) as pool:
        made = {
            (rule, seed): pool.submit(
                train, args.recipe, rule, seed, more + extra[rule], args.runs / args.name / f"{rule}-{seed}", threads
            )
            for rule, seed in runs
        }
        results = {key: future.result() for key, future in made.items()}

    first = results[runs[0]]
    tested = first["metrics"][-1]["split"]
    rows = []
    for rule in args.rules:
        name = NAMES[rule].format(**results[rule, args.seeds[0]]["recipe"] | defaults_of(rule))
        rows.append({"name": name, "seeds": {str(s): scores(results[rule, s], tested) for s in args.seeds}})
    # folders of this machine stay out
    words = ["DATA_DIR" if i and more[i - 1].endswith("_dir") else word for i, word in enumerate(more)]
    shown = shlex.join(words)
    content = {
        "title": args.title or args.name,
        "command": f"python examples/benchmarks/rules.py {args.name} {args.recipe} --rules {' '.join(args.rules)} "
        f"--seeds {' '.join(map(str, args.seeds))} --jobs {args.jobs}"
        + "".join(f" --extra {option}" for option in args.extra)
        + (f" -- {shown}" if shown else ""),
        "device": f"{first['device']}, {args.jobs} runs at a time" if args.jobs > 1 else first["device"],
        "versions": first["versions"],
        "date": datetime.date.today().isoformat(),
        "columns": COLUMNS,
        "rows": rows,
    }
    if args.note:
        content["note"] = args.note
    target = ROOT / "docs" / "results" / f"{args.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{target.relative_to(ROOT)} written; now make tables")
    return 0


def defaults_of(rule: str) -> dict[str, int]:
    """K and N where the recipe leaves them out."""
    made = RULES[rule]()
    return {"lookahead_steps": getattr(made, "num_steps", 0), "lookahead_students": getattr(made, "num_students", 0)}


if __name__ == "__main__":
    sys.exit(main())
