"""`transformers.Trainer` and `FSTTrainer(rule="supervised")` on the same network, images and options."""

from __future__ import annotations

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_fst.data.pairing import collate
from hf_fst.training.trainer import FSTTrainer
from tests import tiny
from tests.device import USE_CPU

KINDS = ("Trainer", "FSTTrainer")
QUIET = {
    "use_cpu": USE_CPU,
    "report_to": [],
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "learning_rate": 0.05,
    "seed": 7,
    "label_names": ["labels"],
}


def images(count: int, seed: int = 1, dtype=torch.float64) -> list[dict]:
    """Images without ignored pixels, so that a mean over images is a mean over pixels."""
    items = tiny.images(count, seed, (4, 4), dtype=dtype)
    for item in items:
        item["labels"] = item["pixel_values"].argmax(dim=0)
    return items


def arguments(kind: str, directory, **options):
    """`TrainingArguments`, or an `FSTConfig` with the same options."""
    options = {**QUIET, **({} if "max_steps" in options else {"num_train_epochs": 1}), **options}
    if kind == "Trainer":
        return TrainingArguments(output_dir=str(directory), **options)
    return tiny.config(directory, **{"max_steps": -1, **options, "rule": "supervised"})


def make(kind: str, directory, *, train=None, evaluation=None, network=None, trainer_options=None, **options):
    """A trainer of either class; four images and a tiny network unless told otherwise."""
    trainer_options = {"data_collator": collate, **(trainer_options or {})}
    if "model_init" not in trainer_options:
        trainer_options["model"] = tiny.model() if network is None else network
    return {"Trainer": Trainer, "FSTTrainer": FSTTrainer}[kind](
        args=arguments(kind, directory, **options),
        train_dataset=images(4) if train is None else train,
        eval_dataset=evaluation,
        **trainer_options,
    )


class Recorder(TrainerCallback):
    """Notes each event, and what it was called with."""

    def __init__(self):
        self.events: list[str] = []
        self.calls: list[tuple] = []


def _event(name):
    def noted(self, args, state, control, **kwargs):
        self.events.append(name)
        self.calls.append((name, args, state, control, kwargs, state.global_step))

    return noted


EVENTS = [name for name in dir(TrainerCallback) if name.startswith("on_")]
for name in EVENTS:
    setattr(Recorder, name, _event(f"{name}"))


def accuracy(prediction, compute_result: bool = True) -> dict[str, float]:
    """A user's metric: the share of the network's cells whose class is that of the pixel in their corner."""
    logits, labels = (torch.as_tensor(value) for value in (prediction.predictions, prediction.label_ids))
    return {"cells": (logits.argmax(1) == labels[:, ::2, ::2]).double().mean().item()}
