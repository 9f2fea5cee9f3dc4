"""Runs of the objectives that remember; as a script, those of two processes.

torchrun --nproc_per_node 2 -m tests.invariants.remembering OUTPUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from hf_fst.training.trainer import FSTTrainer
from tests import tiny
from tests.invariants.resumed import StopAt


class Case(NamedTuple):
    """How an objective is run on tiny images.

    Args:
        options: of the config, all runs.
        fields: constants that fit the size of the images.
        split: further options with which it does not matter how four images are split; None where it always does.
    """

    options: dict
    fields: dict
    split: dict | None = None


REMEMBERING = {
    # the strong view of an image has other draws on another process
    "proda": Case(
        {"prototype_passes": 1.0, "prototype_momentum": 0.9}, {"least_places": 2}, {"consistency_weight": 0.0}
    ),
    "cpsl": Case(
        {"prototype_passes": 1.0, "bank_size": 30, "cut_probability": 0.0}, {"least_places": 2, "samples": 8}
    ),
    "u2pl": Case(
        {"bank_size": 30, "cut_probability": 0.0},
        {"first_bank_size": 40, "low_entropy_percent": 50.0, "ranks": (1, 3), "queries": 8, "keys": 4},
    ),
}
OTHER_RULES = ("mean_teacher", "naive_fst", "improved_fst", "fst_w")  # besides fst_d


def copied(objective) -> dict[str, torch.Tensor]:
    """A copy of an objective's memory."""
    return {key: tensor.clone() for key, tensor in objective.state_dict().items()}


def trained(directory, name: str, *, stop=None, resume=None, sets=None, **options) -> FSTTrainer:
    """A trainer after its run of four images a step."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    distributed = {"ddp_backend": "gloo"} if processes > 1 else {}
    trainer = tiny.trainer(
        directory,
        tiny.model(),
        sets=sets,
        callbacks=[StopAt(stop)] if stop else [],
        **{
            **{"objective": name, "rule": "fst_d", "lookahead_steps": None, "teacher_momentum": 0.8},
            **{"per_device_train_batch_size": 4 // processes, "learning_rate": 0.05, "max_steps": 4},
            **distributed,
            **REMEMBERING[name].options,
            **options,
        },
    )
    for field, value in REMEMBERING[name].fields.items():
        object.__setattr__(trainer.learning_objective, field, value)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def run(directory, name: str, **options) -> dict[str, list[torch.Tensor]]:
    """Weights of both networks and the memory after a run."""
    trainer = trained(directory, name, **options)
    return {
        "student": tiny.weights(trainer.networks()["student"]),
        "teacher": tiny.weights(trainer.teacher.model),
        "memory": [tensor.cpu() for tensor in copied(trainer.learning_objective).values()],
    }


def main(output: str) -> None:
    """Runs all cases and writes down what this process holds."""
    results = {}
    for name, case in REMEMBERING.items():
        results[name] = run(Path(output, name), name)
        for rule in OTHER_RULES:
            results[f"{name}, {rule}"] = run(Path(output, f"{name}-{rule}"), name, rule=rule, max_steps=1)
        if case.split:
            results[f"{name}, split"] = run(Path(output, f"{name}-split"), name, **case.split)
    torch.save(results, Path(output) / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
