"""Time and peak memory of one FST-D step of full-size networks on the CPU.

    python examples/benchmarks/full_size.py
    python examples/benchmarks/full_size.py --only daformer-mit-b5 --model daformer-mit-b0 --crop_size 64    # try it

Takes each network of `full_size.yaml` with random weights through one step (K = 3 virtual ones and the real one) on one
labeled and one unlabeled image of noise, each in a process of its own, so that a peak is that network's (Linux). Writes
docs/results/full_size.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, set_seed

from hf_fst.evaluation.machine import hardware, versions
from hf_fst.models import BUILDS
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.load import load_recipe, sweep_points, to_config
from hf_fst.recipes.network import build_network
from hf_fst.training.trainer import FSTTrainer

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Path(__file__).with_suffix(".yaml")
QUIET = {
    "use_cpu": "true",
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "report": "false",
    "report_to": "none",
    "disable_tqdm": "true",
}


class Noise(Dataset):
    """One random image (3,side,side), with labels (side,side) of blocks of 32 pixels where classes are given."""

    def __init__(self, side: int, num_labels: int | None = None):
        draw = torch.Generator().manual_seed(0 if num_labels is None else 1)
        self.item = {"pixel_values": torch.randn(3, side, side, generator=draw)}
        if num_labels is not None:
            blocks = torch.randint(num_labels, (-(-side // 32),) * 2, generator=draw)
            labels = blocks.repeat_interleave(32, dim=0).repeat_interleave(32, dim=1)
            self.item["labels"] = labels[:side, :side].contiguous()

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.item


class Clock(TrainerCallback):
    """Seconds of the step."""

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds = time.perf_counter() - self.start


def peak_memory() -> int:
    """Bytes of this process's peak memory; getrusage would give its parent's peak, if that is larger."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def take_step(recipe: Recipe) -> dict[str, float]:
    """Trains one step of the recipe's network in this process and gives its cells of the table."""
    config = to_config(recipe)
    set_seed(config.seed)
    classes = BUILDS[recipe.model].num_labels
    network = build_network(recipe, [f"class {index}" for index in range(classes)])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    clock = Clock()
    trainer = FSTTrainer(
        model=network,
        args=config,
        train_dataset=Noise(recipe.crop_size, classes),
        unlabeled_dataset=Noise(recipe.crop_size),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    loss = trainer.train().training_loss
    if not 0 < loss < float("inf"):
        raise RuntimeError(f"The loss of {recipe.model} is {loss}, so the step was no step.")
    gibibyte = 2**30
    return {
        "side": recipe.crop_size,
        "parameters": parameters / 1e6,
        "seconds": clock.seconds,
        "memory": peak_memory() / gibibyte,
        "held": trainer.lookahead_memory() / gibibyte,
    }


def read_recipe(point: str, args: argparse.Namespace) -> Recipe:
    """A point of the recipe, quietly, with what the command line changes."""
    changes = {key: getattr(args, key) for key in ("model", "crop_size") if getattr(args, key) is not None}
    return load_recipe(RECIPE, {**QUIET, "output_dir": tempfile.gettempdir(), **changes}, point)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    points = sweep_points(RECIPE)
    parser.add_argument("--only", nargs="+", choices=points, default=points, help="these networks alone")
    parser.add_argument(
        "--model", choices=list(BUILDS), help="another network in place of the recipe's, to try it out"
    )
    parser.add_argument("--crop_size", type=int, help="another side, in pixels")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "full_size.json")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.here:
        print(json.dumps(take_step(read_recipe(args.only[0], args))))
        return 0

    given = list(sys.argv[1:] if arguments is None else arguments)
    rows = []
    for point in args.only:
        changes = [f"--{key}={getattr(args, key)}" for key in ("model", "crop_size") if getattr(args, key) is not None]
        command = [sys.executable, __file__, "--here", "--only", point, *changes]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        cells = json.loads(done.stdout.splitlines()[-1])
        name = f"{args.model or read_recipe(point, args).model}, {cells['side']} x {cells['side']}"
        print(f"{name}: {cells['seconds']:.1f} s, {cells['memory']:.2f} GiB at the most", flush=True)
        rows.append({"name": name, "seeds": {"0": cells}})
    content = {
        "title": "One FST-D step, K = 3, of 1 + 1 images on the CPU",
        "command": " ".join(["python examples/benchmarks/full_size.py", *given]),
        "device": hardware("cpu"),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "columns": [
            {"key": "parameters", "title": "parameters (M)", "format": "number"},
            {"key": "seconds", "title": "seconds", "format": "seconds"},
            {"key": "memory", "title": "peak memory (GiB)", "format": "number"},
            {"key": "held", "title": "of it held for the look-ahead (GiB)", "format": "number"},
        ],
        "rows": rows,
        "note": "The step is the three virtual ones and the real one, the first after start. The peak is that of the "
        "process, imports, student, teacher and optimizer included. Weights are random, images are noise, float32.",
    }
    args.output.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{args.output.name} written; now make tables")
    return 0


if __name__ == "__main__":
    sys.exit(main())
