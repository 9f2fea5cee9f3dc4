"""Processor seconds until hf_fst is there: importing it, its trainer, and the answers of the command line.

    python examples/benchmarks/startup.py

Every round starts each command once, as a process of its own, and takes its user and system time. `FSTTrainer` and
`Trainer` are compared within a round, in turns which of them is first. The first round, which compiles what is imported,
does not count. Writes docs/results/startup.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from hf_fst.evaluation.machine import hardware, versions

ROOT = Path(__file__).resolve().parents[2]
TRAINER, OURS = "`from transformers import Trainer`", "`from hf_fst import FSTTrainer`"
COMMANDS = {
    TRAINER: ["-c", "from transformers import Trainer"],
    OURS: ["-c", "from hf_fst import FSTTrainer"],
    "`import hf_fst`": ["-c", "import hf_fst"],
    "`hf-fst --help`": ["-m", "hf_fst.cli", "--help"],
    "`hf-fst --version`": ["-m", "hf_fst.cli", "--version"],
    "`hf-fst eval --help`": ["-m", "hf_fst.cli", "eval", "--help"],
    "`hf-fst trian`, a command that is not there": ["-m", "hf_fst.cli", "trian"],
    "`hf-fst eval MODEL street --windw 3`, an option that is not there": [
        *("-m", "hf_fst.cli", "eval", "MODEL", "street", "--windw", "3"),
    ],
    "`hf-fst train --help`, which loads what it lists": ["-m", "hf_fst.cli", "train", "--help"],
    "Python alone": ["-c", "pass"],
}


def processor_seconds(arguments: list[str], environment: dict[str, str]) -> float:
    """User and system time of a Python process, with its threads."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, *arguments], env=environment, **quiet)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def measure(rounds: int) -> list[dict[str, float]]:
    """Processor seconds of every command in each round."""
    with tempfile.TemporaryDirectory() as compiled:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        found = []
        for number in range(rounds + 1):
            names = list(COMMANDS) if number % 2 else list(reversed(COMMANDS))
            found.append({name: processor_seconds(COMMANDS[name], environment) for name in names})
            print(f"round {number}: {found[-1][OURS] / found[-1][TRAINER]:.3f} times Trainer", flush=True)
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    found = measure(rounds)
    ratios = [each[OURS] / each[TRAINER] for each in found]
    rows = []
    for name in COMMANDS:
        ratio = statistics.median(ratios) if name == OURS else 1.0 if name == TRAINER else None
        cells = {"seconds": statistics.median(each[name] for each in found), "ratio": ratio}
        rows.append({"name": name, "seeds": {"0": cells}})
    result = {
        "title": "Processor time at start-up",
        "command": f"python examples/benchmarks/startup.py --rounds {rounds}",
        "device": hardware("cpu"),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "columns": [
            {"key": "seconds", "title": "processor seconds", "format": "seconds"},
            {"key": "ratio", "title": "times `Trainer`", "format": "number"},
        ],
        "rows": rows,
        "note": f"Medians of {rounds} rounds, whole processes; the ratio is taken within a round "
        f"({min(ratios):.2f} to {max(ratios):.2f}).",
    }
    (ROOT / "docs/results/startup.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
