"""Runs of every rule, the same on any number of processes; each process writes what it holds in the end.

torchrun --nproc_per_node 2 -m tests.distributed.worker OUTPUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from hf_fst.method.rules import DeepFST, ImprovedFST, MeanTeacher, NaiveFST, Supervised, WideFST
from tests import tiny

RULES = {
    "supervised": Supervised(),
    "mean_teacher": MeanTeacher(),
    "naive_fst": NaiveFST(),
    "improved_fst": ImprovedFST("different"),
    "fst_d": DeepFST(3),
    "fst_d-different": DeepFST(2, "different"),
    "fst_w": WideFST(2),
    "fst_w-present": WideFST(2, "same", "present"),
}
ACCUMULATION = (1, 2)
IMAGES_A_STEP = 4


def sets(spoiled=False):
    """Images of which one is 60% void and one has no label at all; if asked, one is not a number."""
    labeled = tiny.images(8, 1, (10, 10))
    labeled[0]["labels"][:6] = 255
    labeled[1]["labels"][:] = 255
    if spoiled:
        labeled[2]["pixel_values"][:] = float("nan")
    return labeled, tiny.images(8, 2, (10, 10))


def evaluation():
    """Seven images, an odd number, some of other sizes."""
    return [tiny.images(1, 30 + i, (8 + 4 * (i // 4), 12))[0] for i in range(7)]


def run(directory, rule, accumulation, *, batch_norm=False, spoiled=False, **options):
    """Four steps of four images, however many processes there are."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    distributed = {"ddp_backend": "gloo"} if processes > 1 else {}
    trainer = tiny.trainer(
        directory,
        tiny.model(batch_norm=batch_norm),
        sets=sets(spoiled),
        trainer_options={
            "rule": rule,
            "optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.2, "momentum": 0.9}),
            "eval_dataset": evaluation(),
        },
        **{
            **(
                {} if isinstance(rule, Supervised) else {"unlabeled_weighting": "quality", "confidence_threshold": 0.4}
            ),
            "objective": "supervised" if isinstance(rule, Supervised) else "pseudo_label",
            "learning_rate": 0.2,
            "max_grad_norm": 0.5,
            "teacher_momentum": 0.8,
            "momentum_warmup": False,
            "max_steps": 4,
            "per_device_train_batch_size": IMAGES_A_STEP // processes // accumulation,
            "per_device_eval_batch_size": 2,
            "gradient_accumulation_steps": accumulation,
            "logging_strategy": "steps",
            "logging_steps": 1,
            **distributed,
            **options,
        },
    )
    trainer.train()
    metrics = trainer.evaluate()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "student": [p.detach().clone() for p in trainer.model.parameters()],
        "teacher": [p.detach().clone() for p in trainer.teacher.model.parameters()],
        "metrics": {key: value for key, value in metrics.items() if "student" in key or "teacher" in key},
        "losses": [[entry.get(name) for name in ("labeled_loss", "unlabeled_loss")] for entry in logs],
        "health": [{key: value for key, value in entry.items() if key.startswith("pseudo_")} for entry in logs],
        "skipped": dict(trainer.journal.skipped),
    }


def everything(directory) -> dict:
    """All runs by name."""
    results = {}
    for name, rule in RULES.items():
        for accumulation in ACCUMULATION:
            results[f"{name} x{accumulation}"] = run(directory, rule, accumulation)
    results["spoiled"] = run(directory, DeepFST(1), 1, spoiled=True)
    results["batch norm"] = run(directory, DeepFST(2), 2, batch_norm=True)
    results["adamw, carried"] = run(directory, DeepFST(2), 1, lookahead_state="carry")
    return results


def main(output: str) -> None:
    """Runs everything and writes it down under the process's number."""
    rank = os.environ["RANK"]
    torch.save(everything(Path(output) / "run"), Path(output) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
