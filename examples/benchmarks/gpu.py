r"""What a training step takes on a GPU: the trainer, a bare loop of the same passes, and the trainer's faster forms.

    python examples/benchmarks/gpu.py                                   # at most five minutes on a CUDA GPU
    python examples/benchmarks/gpu.py --networks SegFormer-B0 --budget 120
    python examples/benchmarks/gpu.py --device cpu --quick              # tiny networks: does it run?

Networks have random weights; a step sees 4 labeled and 4 unlabeled random images of 512x512 pixels, which are made once
and lie in pinned memory, so that no loader is waited for; how many images a second a loader gives is measured apart.
Cases run in a process of their own, the most telling first. The speed of a host changes from minute to minute, so the
trainer and the bare loop of the SegFormers take turns for several rounds: a cell is the median of the rounds, a ratio
that of the ratios within a round. Results are written after each case, and one that fails, crashes or hangs is noted
under `failed` while the others go on. Writes docs/results/gpu.json, or `--out`.

The file holds the table, and for each case, under `synchronizations`, where the host waits for the GPU in a step.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from gpu_steps import FORMS, LOADER, NETWORKS, Case, place, run_case, synchronize

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = {"cuda": 100, "cpu": 900}  # seconds after which a case hangs
COLUMNS = (
    ("wall", "ms a step", "number"),
    ("kernel", "ms of kernels", "number"),
    ("over_kernel", "step ÷ kernels", "number"),
    ("launches", "launches", "integer"),
    ("waits", "synchronizations", "integer"),
    ("peak", "peak memory (GiB)", "number"),
    ("over_bare", "÷ bare loop", "number"),
    ("over_teacher", "÷ mean teacher", "number"),
    ("over_memory", "memory ÷ mean teacher and copy", "number"),
)


ROUNDS = 3  # of the SegFormers' trainer and bare loop


def plan(networks: list[str]) -> list[Case]:
    """The cases, the most telling first."""
    turns, others = [("trainer", 3), ("bare", 3), ("trainer", 0), ("bare", 0)], [("captured", 3), ("captured", 0)]
    cases = []
    for network in networks:
        now_and_then = network == "SegFormer-B0"
        for number in range(ROUNDS if network.startswith("SegFormer") else 1):
            cases += [Case(network, "bf16", form, steps, round=number) for form, steps in turns]
            cases += [Case(network, "bf16", "trainer", 3, 12, number)] * now_and_then
        cases += [Case(network, "bf16", form, steps) for form, steps in others]
        if now_and_then:
            cases += [Case(network, "bf16", "captured", 3, 12)]
            cases += [Case(LOADER, "", "", workers) for workers in (2, 4, 8)]
        if network.startswith("DPT"):  # without BatchNorm
            cases += [Case(network, "bf16", "joint", steps) for steps in (3, 0)]
    return cases + [Case(network, "fp32", form, steps) for network in networks for form, steps in turns + others]


# the process that measures


def work(file: Path) -> int:
    """Measure the cases in `file`, a line of JSON before and after each; 3 where the GPU is not usable any more."""
    job = json.loads(file.read_text(encoding="utf-8"))
    device, lines = torch.device(job["device"]), Path(job["lines"])

    def say(**what) -> None:
        with lines.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(what) + "\n")

    for number, case in job["cases"]:
        if time.time() > job["until"]:
            return 0
        say(case=number)
        try:
            say(case=number, found=run_case(Case(**case), device, job["quick"]))
        except Exception as error:
            last = place(traceback.extract_tb(error.__traceback__))
            say(case=number, error=f"{type(error).__name__}: {str(error)[:600]} ({last})")
            traceback.print_exc()
        gc.collect()
        try:
            synchronize(device)
            torch.cuda.empty_cache()
        except RuntimeError:
            return 3
    return 0


# the process that watches and writes


def supported(case: Case, device: str) -> bool:
    """Whether a device can do what a case asks for, and this version has the options."""
    from hf_fst.training.config import FSTConfig

    needed = {*FORMS.get(case.form, {}), *(["lookahead_every"] if case.every > 1 else [])}
    return needed <= {field.name for field in fields(FSTConfig)} and (case.form != "captured" or device == "cuda")


def measure_all(cases: list[Case], args, write: Callable[[dict, dict], None]) -> None:
    """Measure in processes of their own, a new one where one died, until all is done or the time is up."""
    found: dict[Case, dict] = {}
    failed: dict[Case, str] = {}
    until = time.time() + args.budget
    with tempfile.TemporaryDirectory() as directory:
        job, lines = Path(directory, "job.json"), Path(directory, "lines")
        while (left := [case for case in cases if case not in found | failed]) and time.time() < until:
            lines.write_text("")
            rest = [(cases.index(case), asdict(case)) for case in left]
            content = {"cases": rest, "device": args.device, "quick": args.quick, "lines": str(lines), "until": until}
            job.write_text(json.dumps(content), encoding="utf-8")
            process = subprocess.Popen(
                [sys.executable, __file__, "--worker", str(job)], env={**os.environ, "HF_HUB_OFFLINE": "1"}
            )
            seen, current, changed = 0, None, time.time()
            while True:
                over = process.poll() is not None
                entries = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
                for entry in entries[seen:]:
                    current, changed = cases[entry["case"]], time.time()
                    if "found" in entry:
                        found[current] = entry["found"]
                    elif "error" in entry:
                        failed[current] = entry["error"]
                    else:
                        continue
                    print(f"{until - time.time():4.0f} s left  {current.name}: {one_line(entry)}", flush=True)
                    write(found, failed)
                seen = len(entries)
                if over:
                    break
                late = time.time() > until + 20
                if late or time.time() - changed > PATIENCE[args.device]:
                    process.kill()
                    process.wait()
                    break
                time.sleep(0.2)
            if current is None or current not in found | failed:  # it died
                why = "the time was up" if time.time() > until else f"its process ended with {process.returncode}"
                failed[left[0] if current is None else current] = why
    for case in cases:
        if case not in found | failed:
            failed[case] = "the time was up before"
    write(found, failed)


def one_line(entry: dict) -> str:
    """What came of a case, for the terminal."""
    if "error" in entry:
        return entry["error"]
    shown = ("wall", "kernel", "launches", "waits", "images_per_second")
    numbers = {key: entry["found"].get(key) for key in shown}
    return ", ".join(f"{key} {value:.4g}" for key, value in numbers.items() if value is not None)


def cells(case: Case, found: dict[Case, dict]) -> dict[str, float | None]:
    """The row of a case: the medians over its rounds."""
    rounds = [replace(case, round=number) for number in range(ROUNDS)]
    rows = [numbers_of(turn, found) for turn in rounds if turn in found]
    known = {key: [row[key] for row in rows if row[key] is not None] for key in rows[0]}
    return {key: statistics.median(values) if values else None for key, values in known.items()}


def numbers_of(case: Case, found: dict[Case, dict]) -> dict[str, float | None]:
    """The numbers of a case, and their ratios to those of the same round's other cases where these are there."""
    own = found[case]

    def over(key: str, value: float | None, other: float | None) -> float | None:
        return None if value is None or not other else value / other

    def of(form: str, steps: int) -> dict:
        return found.get(replace(case, form=form, steps=steps, every=case.every if steps else 1), {})

    bare, teacher = of("bare", case.steps), of("trainer", 0)
    copied = teacher.get("peak") and teacher["peak"] + own.get("held", 0)
    numbers = {key: own.get(key) for key in ("wall", "kernel", "launches", "waits")}
    return numbers | {
        "over_kernel": over("wall", own["wall"], own.get("kernel")),
        "peak": over("peak", own.get("peak"), 2**30),
        "over_bare": over("wall", own["wall"], bare.get("wall")) if case.form != "bare" else None,
        "over_teacher": over("wall", own["wall"], teacher.get("wall")) if case.form != "bare" else None,
        "over_memory": over("peak", own.get("peak"), copied) if case.form == "trainer" and case.steps else None,
    }


def content(args, given: list[str], cases: list[Case], found: dict[Case, dict], failed: dict[Case, str]) -> dict:
    """The file of results, in the form that tables.py describes."""
    from hf_fst.evaluation.machine import hardware, versions

    loaders = {
        case.steps: found[case]["images_per_second"] for case in cases if case in found and case.network == LOADER
    }
    steps = [case for case in cases if case in found and case.network != LOADER and not case.round]
    note = "Tiny networks and images in float32: this shows only that the script runs. " if args.quick else ""
    note += "A step sees 4 labeled and 4 unlabeled images of 512x512 pixels (DPT: 518x518), ClassMix with jitter and "
    note += "blur. Kernels: the time in which one runs. "
    if any(case.round for case in found):
        note += f"Trainer and bare loop of the SegFormers in bf16: medians of {ROUNDS} rounds. "
    if loaders:
        rates = ", ".join(f"{rate:.0f}" for rate in loaders.values())
        note += f"The training pipeline loads {rates} images a second with {', '.join(map(str, loaders))} workers. "
    note += f"{len(failed)} of {len(cases)} cases were not measured. " if failed else ""
    return {
        "title": "A training step, " + ("tiny networks" if args.quick else "4 labeled and 4 unlabeled images"),
        "command": " ".join(["python examples/benchmarks/gpu.py", *given]),
        "device": hardware(args.device),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "columns": [{"key": key, "title": title, "format": form} for key, title, form in COLUMNS],
        "rows": [{"name": case.name, "seeds": {"0": cells(case, found)}} for case in steps],
        "note": note.strip(),
        "loader_images_per_second": loaders,
        "kernels": {case.name: found[case].get("kernels") for case in steps},
        "synchronizations": {case.name: found[case].get("where") for case in steps},
        "failed": {case.name: why for case, why in failed.items()},
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=270, help="seconds after which no case is begun")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="tiny networks and images, one step a window")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "gpu.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker:
        return work(args.worker)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--out" in given:  # a path of this machine
        del given[given.index("--out") : given.index("--out") + 2]
    cases = [case for case in plan(args.networks) if supported(case, args.device)]

    def write(found: dict, failed: dict) -> None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        made = json.dumps(content(args, given, cases, found, failed), indent=2, ensure_ascii=False)
        args.out.write_text(made + "\n", encoding="utf-8")

    measure_all(cases, args, write)
    print(f"{args.out} written; now make tables")
    return 0


if __name__ == "__main__":
    sys.exit(main())
