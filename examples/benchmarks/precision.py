r"""How far half precision takes the weights from those of float32, as docs/results/precision.json.

    python examples/benchmarks/precision.py --seeds 0 1 2

Trains the recipe examples/benchmarks/precision.yaml with each seed twice, in float32 and under bf16 autocast: the same
start, images and noise. A distance is that of all parameters together, ‖θ_bf16 - θ_float32‖ / ‖θ_float32 - θ_start‖: 1
would be as far apart as training took them. `make tables` renders the file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import set_seed

from hf_fst.evaluation.machine import hardware, versions
from hf_fst.recipes.data import build_data
from hf_fst.recipes.load import load_recipe, to_config
from hf_fst.recipes.network import build_network
from hf_fst.training.settings import resolve
from hf_fst.training.trainer import FSTTrainer

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "examples/benchmarks/precision.yaml"


def flat(network: torch.nn.Module) -> torch.Tensor:
    """All parameters in one vector of float64."""
    return torch.cat([parameter.detach().double().flatten().cpu() for parameter in network.parameters()])


def train(seed: int, bf16: bool, steps: int | None) -> dict:
    """Parameters before and after the run, and the scores of student and teacher on the validation images."""
    with tempfile.TemporaryDirectory() as directory:
        settings = {"output_dir": directory, "seed": str(seed), "bf16": str(bf16).lower(), "disable_tqdm": "true"}
        recipe = load_recipe(ROOT / RECIPE, settings | ({"max_steps": str(steps)} if steps else {}))
        config = to_config(recipe)
        set_seed(seed)
        data = build_data(recipe, config, resolve(config).objective)
        trainer = FSTTrainer(
            model=build_network(recipe, data.names),
            args=config,
            train_dataset=data.labeled,
            unlabeled_dataset=data.unlabeled,
            eval_dataset=data.validation,
        )
        start = flat(trainer.model)
        trainer.train()
        metrics = trainer.evaluate()
        networks = trainer.networks()
        assert {p.dtype for network in networks.values() for p in network.parameters()} == {torch.float32}
        return {
            "start": start,
            **{name: flat(network) for name, network in networks.items()},
            **{f"{name}_mean_iou": metrics[f"eval_{name}_mean_iou"] for name in networks},
        }


def compare(full: dict, half: dict) -> dict[str, dict[str, float | None]]:
    """A row of numbers for each precision."""
    rows = {"float32": {}, "bf16 autocast": {}}
    for network in ("student", "teacher"):
        moved = (full[network] - full["start"]).norm()
        rows["float32"] |= {f"{network}_distance": None, f"{network}_mean_iou": full[f"{network}_mean_iou"]}
        rows["bf16 autocast"] |= {
            f"{network}_distance": ((half[network] - full[network]).norm() / moved).item(),
            f"{network}_mean_iou": half[f"{network}_mean_iou"],
        }
    rows["float32"]["student_relative"] = None
    rows["bf16 autocast"]["student_relative"] = (
        (half["student"] - full["student"]).norm() / full["student"].norm()
    ).item()
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=None, help="instead of the recipe's; 100 if not given")
    args = parser.parse_args(arguments)
    seeds: dict[str, dict[str, dict]] = {"float32": {}, "bf16 autocast": {}}
    for seed in args.seeds:
        full, half = train(seed, False, args.steps), train(seed, True, args.steps)
        assert torch.equal(full["start"], half["start"])
        for name, values in compare(full, half).items():
            seeds[name][str(seed)] = values
    content = {
        "title": "Drift of bf16 autocast from float32 after 100 steps of FST-D, K = 1",
        "command": "python examples/benchmarks/precision.py --seeds "
        + " ".join(map(str, args.seeds))
        + (f" --steps {args.steps}" if args.steps else ""),
        "device": hardware("cuda" if torch.cuda.is_available() else "cpu"),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "columns": [
            {"key": "student_relative", "title": "student: distance to its norm (%)", "format": "percent"},
            {"key": "student_distance", "title": "student: distance to its way (%)", "format": "percent"},
            {"key": "teacher_distance", "title": "teacher: distance to its way (%)", "format": "percent"},
            {"key": "student_mean_iou", "title": "student mIoU (%)", "format": "percent"},
            {"key": "teacher_mean_iou", "title": "teacher mIoU (%)", "format": "percent"},
        ],
        "rows": [{"name": name, "seeds": values} for name, values in seeds.items()],
        "note": "The distance between the parameters of the two runs of a seed, to the norm of those of float32 and "
        "to the way that float32 training took from the start. Weights, average and optimizer are float32 in both.",
    }
    if args.steps:
        content["title"] = content["title"].replace("100 steps", f"{args.steps} steps")
    target = ROOT / "docs" / "results" / "precision.json"
    target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{target.relative_to(ROOT)} written; now make tables")
    return 0


if __name__ == "__main__":
    sys.exit(main())
