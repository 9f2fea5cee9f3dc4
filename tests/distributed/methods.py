"""Runs of other methods' objectives, without what they draw, the same on any number of processes.

torchrun --nproc_per_node 2 -m tests.distributed.methods OUTPUT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_fst.method.objectives import CCTObjective, CPSObjective, GCTObjective, UniMatchObjective, UniMatchV2Objective
from hf_fst.method.rules import DeepFST, ImprovedFST, MeanTeacher, NaiveFST, WideFST
from hf_fst.models import AuxiliaryDecoders
from tests import tiny
from tests.distributed.worker import IMAGES_A_STEP, sets

VIEWS = {"confidence_threshold": 0.4, "cut_probability": 0.0}
VIEWS |= {"jitter_probability": 0.0, "gray_probability": 0.0, "blur_probability": 0.0}
OBJECTIVES = {
    "cct": CCTObjective(
        annealed_threshold=0.0, ramp_share=0.0
    ),  # which pixels are hard depends on the split of a batch
    "gct": GCTObjective(ramp_share=0.0),
    "cps": CPSObjective(cut_probability=0.0),
    "unimatch": UniMatchObjective(feature_dropout=0.0, **VIEWS),
    "unimatch_v2": UniMatchV2Objective(kept_share=1.0, **VIEWS),
}
RULES = {
    "mean_teacher": MeanTeacher(),
    "naive_fst": NaiveFST(),
    "improved_fst": ImprovedFST(),
    "fst_d": DeepFST(2),
    "fst_w": WideFST(2),
}
RUNS = [(name, rule, n) for name in OBJECTIVES for rule in RULES for n in ((1, 2) if rule == "fst_d" else (1,))]


def network_of(name: str) -> PreTrainedModel:
    """A tiny network for an objective, without what it draws and what depends on the split of a batch."""
    if name == "cct":
        return AuxiliaryDecoders.of(tiny.model(), {"context_masking": 1, "object_masking": 1})
    network = tiny.network_of(name)
    if name == "gct":
        for norm in network.flaw_detector.norms:
            norm.batch_norm = torch.nn.Identity()
    return network


def run(directory, name: str, rule: str, accumulation: int) -> dict:
    """Three steps of four images with fst_d, one with other rules, however many processes there are."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    trainer = tiny.trainer(
        directory,
        network_of(name),
        sets=sets(),
        trainer_options={"rule": RULES[rule], "objective": OBJECTIVES[name]},
        **{
            "objective": None,
            "max_steps": 3 if rule == "fst_d" else 1,
            "optim": "sgd",
            "learning_rate": 0.2,
            "teacher_momentum": 0.8,
            "momentum_warmup": False,
            "per_device_train_batch_size": IMAGES_A_STEP // processes // accumulation,
            "gradient_accumulation_steps": accumulation,
            **({"ddp_backend": "gloo", "ddp_find_unused_parameters": False} if processes > 1 else {}),
        },
    )
    trainer.train()
    return {name: tiny.weights(network) for name, network in trainer.networks().items()}


def everything(directory) -> dict:
    """All runs by name."""
    return {f"{name}, {rule} x{n}": run(directory, name, rule, n) for name, rule, n in RUNS}


def main(output: str) -> None:
    """Runs everything and writes it down under the process's number."""
    torch.save(everything(Path(output) / "run"), Path(output) / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
