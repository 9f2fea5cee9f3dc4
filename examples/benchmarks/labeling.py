r"""Images per second of `hf-fst label` with one and two processes.

    python examples/benchmarks/labeling.py
    python examples/benchmarks/labeling.py --model runs/mine --images unlabeled \
        --launch "accelerate launch --num_processes {}"

Labels the same images in each way, several times in turn, and takes the fastest of each. Without --images, scenes of
`street` are made. Writes docs/results/labeling.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from hf_fst.data import load
from hf_fst.evaluation.machine import hardware, versions

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = f"{shlex.quote(sys.executable)} -m torch.distributed.run --standalone --nproc_per_node {{}}"


def make_images(folder: Path, count: int, size: list[int]) -> None:
    """Writes scenes of `street` as files."""
    scenes = load("street", look="real", size=size, num_train=count, num_validation=1, num_test=1)["train"]
    for index, row in enumerate(scenes):
        row["image"].save(folder / f"{index:05d}.png")


def measure(arguments: argparse.Namespace, images: Path, processes: int) -> dict:
    """The result of one run."""
    with tempfile.TemporaryDirectory() as output:
        command = [*shlex.split(arguments.launch.format(processes)), "-m", "hf_fst.cli", "label", arguments.model]
        command += [str(images), "-o", output, "--shard_size", str(arguments.shard_size), "--resize", "none", "--json"]
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"Labeling failed: {done.stderr[-2000:]}")
        result = json.loads(done.stdout[done.stdout.index("{") :])
        assert result["processes"] == processes and result["images"] == result["labeled_now"]
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model_cards/fst-street-da")
    parser.add_argument("--images", help="a folder of images; default: scenes of street")
    parser.add_argument("--count", type=int, default=64, help="how many scenes")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 512], help="their height and width")
    parser.add_argument("--shard_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a process")
    parser.add_argument("--launch", default=LAUNCH, help="how processes are started; {} is their number")
    parser.add_argument("--name", default="labeling", help="writes docs/results/NAME.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(arguments.images or folder)
        if arguments.images is None:
            make_images(images, arguments.count, arguments.size)
        found = {1: [], 2: []}
        for _ in range(arguments.rounds):
            for processes, results in found.items():
                results.append(measure(arguments, images, processes))
    rates = {processes: max(one["images_per_second"] for one in results) for processes, results in found.items()}
    rows = [
        {
            "name": f"{processes} process{'es' if processes > 1 else ''}",
            "seeds": {"0": {"images": found[processes][0]["images"], "rate": rate, "gain": rate / rates[1]}},
        }
        for processes, rate in rates.items()
    ]
    load_now = os.getloadavg()[0]
    result = {
        "title": "Images per second of hf-fst label",
        "command": "python examples/benchmarks/labeling.py",
        "device": f"{hardware('cpu')}, {arguments.threads} thread a process, {os.cpu_count()} cores",
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "columns": [
            {"key": "images", "title": "images", "format": "integer"},
            {"key": "rate", "title": "images/s", "format": "number"},
            {"key": "gain", "title": "times one process", "format": "number"},
        ],
        "rows": rows,
        "note": f"{Path(arguments.model).name}, images of {arguments.size[0]} x {arguments.size[1]} pixels at full size, "
        f"loading the model not counted; the fastest of {arguments.rounds} runs each. The machine had other work: a load "
        f"of {load_now:.1f} at the end."
        if arguments.images is None
        else f"{Path(arguments.model).name}, the fastest of {arguments.rounds} runs each.",
    }
    (ROOT / "docs/results").mkdir(parents=True, exist_ok=True)
    path = ROOT / "docs/results" / f"{arguments.name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({row["name"]: row["seeds"]["0"] for row in rows}, indent=2))


if __name__ == "__main__":
    main()
