"""Runs that are interrupted and resumed, and those that are not; as a script, those of two processes.

torchrun --nproc_per_node 2 -m tests.invariants.resumed OUTPUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

from hf_fst.method.rules import DeepFST, ImprovedFST, WideFST
from hf_fst.training.trainer import FSTTrainer
from tests import architectures, tiny
from tests.device import noise_state
from tests.models import tiny as own

RULES = {"fst_d": DeepFST(2), "fst_w": WideFST(2), "improved_fst": ImprovedFST("different")}
STEPS = 6


class Case(NamedTuple):
    """What a run is made of; it is interrupted at the end of an epoch or inside one."""

    network: str
    rule: str
    where: str
    workers: int = 0
    accumulation: int = 1
    processes: int = 1
    best: bool = False

    @property
    def stop(self) -> int:
        """The step after which the run is interrupted: an epoch has three, or two where they are accumulated."""
        return {("boundary", 1): 3, ("inside", 1): 4, ("boundary", 2): 2, ("inside", 2): 3}[
            self.where, self.accumulation
        ]


# each pair of values of any two columns occurs
CASES = [
    Case("segformer", "fst_d", "inside", 0, 1, 1, False),
    Case("segformer", "improved_fst", "inside", 0, 2, 1, False),
    Case("upernet_swin", "fst_d", "inside", 0, 1, 1, True),
    Case("deeplabv3plus", "fst_w", "inside", 0, 1, 1, False),
    Case("beit", "fst_w", "inside", 2, 2, 1, True),
    Case("deeplabv3plus", "fst_d", "boundary", 2, 2, 1, True),
    Case("beit", "improved_fst", "boundary", 2, 1, 1, True),
    Case("upernet_swin", "fst_w", "inside", 0, 1, 1, True),
    Case("beit", "fst_d", "boundary", 0, 1, 2, False),
    Case("upernet_swin", "improved_fst", "boundary", 2, 2, 2, False),
    Case("deeplabv3plus", "improved_fst", "inside", 0, 1, 2, True),
    Case("segformer", "fst_w", "boundary", 2, 1, 2, True),
]


class Augmented(Dataset):
    """Images that look different each time they are drawn."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = dict(self.items[index])
        item["pixel_values"] = item["pixel_values"] + 0.3 * torch.randn(3, 1, 1)
        return item


class StopAt(TrainerCallback):
    """Ends a run after some step, once its checkpoint is there."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = control.should_save = True


def network(name):
    """A tiny network with three classes."""
    if name in architectures.ARCHITECTURES:
        return architectures.make(name, seed=0)
    return own.tiny("deeplabv3plus-resnet101-unimatch", num_labels=3)


def trainer(directory, case: Case, stop: int | None = None, **options) -> FSTTrainer:
    """The trainer of a case: six images an epoch and process, some of them drawn more than once."""
    size = (32, 32)
    distributed = {"ddp_backend": "gloo"} if case.processes > 1 else {}
    evaluation = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True} if case.best else {}
    options = {
        "objective": "class_mix",
        "confidence_threshold": 0.4,
        "learning_rate": 0.01,
        "teacher_momentum": 0.9,
        "save_strategy": "steps",
        "save_steps": 2 if case.best else 100,
        "max_steps": STEPS,
        "logging_strategy": "steps",
        "logging_steps": 2,
        "dataloader_num_workers": case.workers,
        "gradient_accumulation_steps": case.accumulation,
        **distributed,
        **evaluation,
        **options,
    }
    return FSTTrainer(
        network(case.network),
        tiny.config(directory, **options),
        rule=RULES[case.rule],
        train_dataset=Augmented(tiny.images(4, 1, size, dtype=torch.float32)),
        unlabeled_dataset=Augmented(
            tiny.images(6 * case.processes, 2, size, labels=False, dtype=torch.float32),
        ),
        eval_dataset=tiny.images(3, 3, (30, 34), dtype=torch.float32) if case.best else None,
        callbacks=[StopAt(stop)] if stop else [],
    )


def run(directory, case: Case, *, stop=None, resume=None, **options) -> dict:
    """What a run leaves: student, teacher, optimizer, random numbers and all that was logged but speed."""
    trained = trainer(directory, case, stop, **options)
    trained.train(resume_from_checkpoint=resume)
    idle = ("runtime", "per_second", "flos")
    return {
        "student": tiny.weights(trained.networks()["student"]),
        "teacher": tiny.weights(trained.teacher.model),
        "optimizer": [t for state in trained.optimizer.state.values() for t in state.values()],
        "noise": noise_state(),
        "log": [
            str(sorted((key, value) for key, value in entry.items() if not any(word in key for word in idle)))
            for entry in trained.state.log_history
        ],
    }


def both(directory: Path, case: Case, **options) -> tuple[dict, dict]:
    """The uninterrupted run and the one in two parts."""
    whole = run(directory / "whole", case, **options)
    run(directory / "parts", case, stop=case.stop, **options)
    return whole, run(directory / "parts", case, resume=True, **options)


def assert_same(whole: dict, parts: dict) -> None:
    """Bitwise equality of what two runs left."""
    for name in ("student", "teacher", "optimizer", "noise"):
        assert len(parts[name]) > 0 and tiny.same(whole[name], parts[name]), name
    assert whole["log"] == parts["log"]
    assert len(set(whole["log"])) == len(whole["log"]) >= STEPS // 2


def main(output: str) -> None:
    """Runs all cases of two processes and writes down what this one holds."""
    results = {}
    for i, case in enumerate(CASES):
        if case.processes == 2:
            results[i] = both(Path(output, f"run{i}"), case)
    torch.save(results, Path(output) / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
