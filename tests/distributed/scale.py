"""Runs that two processes make together: SegFormer, SyncBatchNorm, FSDP2 and its checkpoints.

torchrun --nproc_per_node 2 -m tests.distributed.scale OUTPUT [PART ...]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.distributed.tensor import DTensor

from hf_fst.method.rules import DeepFST, ImprovedFST, MeanTeacher, NaiveFST, Supervised, WideFST
from hf_fst.training import sharding
from hf_fst.training.trainer import FSTTrainer
from tests import tiny
from tests.architectures import make
from tests.distributed.fsdp_on_cpu import sharding_on_cpu
from tests.training.test_adapters import adapted

IMAGES_A_STEP = 4
SHARDED_RULES = {"mean_teacher": MeanTeacher(), "fst_d": DeepFST(2), "fst_w": WideFST(2)}
SEGFORMER_RULES = {
    "supervised": Supervised(),
    "mean_teacher": MeanTeacher(),
    "naive_fst": NaiveFST(),
    "improved_fst": ImprovedFST(),
    "fst_d": DeepFST(2),
    "fst_w": WideFST(2),
}
# rule, accumulation, teacher_buffers
SYNCHRONISED = {
    "fst_d": (DeepFST(2), 1, "copy"),
    "fst_d, accumulated": (DeepFST(2), 2, "ema"),
    "fst_w, accumulated": (WideFST(2), 2, "copy"),
    "mean_teacher, batch statistics": (MeanTeacher(), 1, "batch"),
}


def segformer(noise: bool = True):
    """In double precision, with BatchNorm in its head; without `noise` also without dropout and stochastic depth."""
    network = make("segformer").double()
    for module in network.modules() if not noise else ():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif type(module).__name__ == "SegformerDropPath":
            module.drop_prob = 0.0
    return network


def images(size: int, dtype=torch.float64):
    """Ten labelled images, of which one is 60% void and one has no label at all: the last group wants two more."""
    labeled = tiny.images(10, 1, (size, size), dtype=dtype)
    labeled[0]["labels"][: size * 6 // 10] = 255
    labeled[1]["labels"][:] = 255
    return labeled, tiny.images(10, 2, (size, size), dtype=dtype)


def trainer(directory, network, rule, accumulation: int = 1, dtype=torch.float64, **options) -> FSTTrainer:
    """Steps of four images with momentum and clipping, however many processes there are."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    supervised = isinstance(rule, Supervised)
    size = 10 if isinstance(network, tiny.TinySegmenter) else 32
    return tiny.trainer(
        directory,
        network,
        sets=images(size, dtype),
        trainer_options={
            "rule": rule,
            "optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
            "eval_dataset": [tiny.images(1, 30 + i, (size + 4 * (i // 4), size), dtype=dtype)[0] for i in range(7)],
        },
        **{
            "objective": "supervised" if supervised else "pseudo_label",
            **({} if supervised else {"unlabeled_weighting": "quality", "confidence_threshold": 0.335}),
            "max_grad_norm": 0.3,
            "teacher_momentum": 0.8,
            "momentum_warmup": False,
            "max_steps": 4,
            "per_device_train_batch_size": IMAGES_A_STEP // processes // accumulation,
            "per_device_eval_batch_size": 2,
            "gradient_accumulation_steps": accumulation,
            "logging_strategy": "steps",
            "logging_steps": 1,
            **({"ddp_backend": "gloo"} if processes > 1 else {}),
            **options,
        },
    )


def whole(network: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all weights and buffers by name, gathered where they are sharded."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
        for name, tensor in tensors.items()
    }


def held(run: FSTTrainer) -> dict:
    """What a process holds after a run."""
    metrics = run.evaluate()
    return {
        "student": whole(run.networks()["student"]),
        "teacher": whole(run.teacher.model),
        "unlabeled": [e["unlabeled_loss"] for e in run.state.log_history if "unlabeled_loss" in e],
        "norms": [entry["grad_norm"] for entry in run.state.log_history if "grad_norm" in entry],
        "metrics": {key: value for key, value in metrics.items() if "student" in key or "teacher" in key},
    }


# SyncBatchNorm


def synchronised_forward(self: nn.SyncBatchNorm, x: torch.Tensor) -> torch.Tensor:
    """What SyncBatchNorm computes, by sums over the processes: PyTorch has it for GPUs alone."""
    if not self.training:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
    shape, over = (1, -1, 1, 1), (0, 2, 3)
    count = all_reduce(x.new_tensor(x.numel() / x.shape[1]))
    mean = all_reduce(x.sum(over)) / count
    variance = all_reduce((x - mean.view(shape)).square().sum(over)) / count
    with torch.no_grad():
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
    normalised = (x - mean.view(shape)) / (variance.view(shape) + self.eps).sqrt()
    return normalised * self.weight.view(shape) + self.bias.view(shape)


def synchronised(directory) -> dict:
    """SegFormer without noise; its statistics are those of all processes."""
    results = {}
    with (
        patch.object(nn.SyncBatchNorm, "forward", synchronised_forward),
        patch.object(sharding, "SYNC_DEVICES", ("cpu",)),
        # DDP refuses the layers on CPUs
        patch.object(nn.parallel.DistributedDataParallel, "_passing_sync_batchnorm_handle", lambda *_: None),
    ):
        for name, (rule, accumulation, buffers) in SYNCHRONISED.items():
            options = {"sync_batchnorm": True, "teacher_buffers": buffers}
            run = trainer(directory, segformer(noise=False), rule, accumulation, **options)
            run.train()
            results[name] = held(run)
            results[name]["layers"] = [
                type(m).__name__ for m in run.teacher.model.modules() if "Batch" in str(type(m))
            ]
    return results


def segformers(directory) -> dict:
    """SegFormer as it is, with BatchNorm of each process, dropout and stochastic depth."""
    results = {}
    for name, rule in SEGFORMER_RULES.items():
        for accumulation in (1, 2):
            run = trainer(directory, segformer(), rule, accumulation)
            run.train()
            results[f"{name} x{accumulation}"] = held(run)
    return results


def adapters(directory) -> dict:
    """A SegFormer of which adapters and head learn, under DDP."""
    run = trainer(directory, adapted(), WideFST(2), 2, dtype=torch.float32)
    run.train()
    student, teacher = (dict(network.named_parameters()) for network in run.networks().values())
    shared = [name for name in student if student[name].data_ptr() == teacher[name].data_ptr()]
    return {**held(run), "shared": shared, "frozen": [name for name, p in student.items() if not p.requires_grad]}


def pair(directory) -> dict:
    """What two processes give wherever they run, with a checkpoint on the way."""
    results = {}
    for name, rule, accumulation in (("fst_d", DeepFST(2), 1), ("fst_w", WideFST(2), 2)):
        run = trainer(
            directory / name, tiny.model(batch_norm=True), rule, accumulation, save_steps=2, save_strategy="steps"
        )
        run.train()
        results[name] = held(run)
    return results


# FSDP2


def fsdp(kind: str = "FULL_STATE_DICT", **config) -> dict:
    """Options under which accelerate shards."""
    return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": kind, **config}}


def sharded(directory) -> dict:
    """DDP and FSDP2 side by side, the small network with a shard for each convolution."""
    results = {}
    for name, rule in SHARDED_RULES.items():
        for accumulation in (1, 2):
            for way in ("ddp", "fsdp2"):
                options = fsdp(transformer_layer_cls_to_wrap=["Conv2d"]) if way == "fsdp2" else {}
                with sharding_on_cpu() if way == "fsdp2" else nullcontext():
                    run = trainer(directory, tiny.model(), rule, accumulation, **options)
                    run.train()
                    results[f"{name} x{accumulation} {way}"] = held(run)
    for way in ("ddp", "fsdp2"):
        with sharding_on_cpu() if way == "fsdp2" else nullcontext():
            run = trainer(directory, segformer(noise=False), DeepFST(2), 2, **(fsdp() if way == "fsdp2" else {}))
            run.train()
            results[f"segformer {way}"] = held(run)
            networks = run.networks().values()
            results[f"segformer {way}"]["shards"] = [
                [tuple(p.to_local().shape) if isinstance(p, DTensor) else None for p in network.parameters()]
                for network in networks
            ]
    return results


def half(directory) -> dict:
    """SegFormer in float32 and under bf16, sharded, and bf16 under DDP: what is kept, and how far apart they end."""
    results = {}
    for precision, way in (("float32", "fsdp2"), ("bf16", "fsdp2"), ("bf16", "ddp")):
        with sharding_on_cpu() if way == "fsdp2" else nullcontext():
            options = {"bf16": precision == "bf16", **(fsdp() if way == "fsdp2" else {})}
            run = trainer(directory, segformer(noise=False).float(), DeepFST(2), dtype=torch.float32, **options)
            run.train()
            results[f"{precision} {way}"] = held(run)
            results[f"{precision} {way}"]["dtypes"] = sorted(
                {str(p.dtype) for network in run.networks().values() for p in network.parameters()}
            )
    return results


def checkpoints(directory) -> dict:
    """A sharded run, the same interrupted and resumed, with whole weights and with shards; what is exported."""
    results = {}
    for kind in ("FULL_STATE_DICT", "SHARDED_STATE_DICT"):
        here = directory / kind
        options = {
            **fsdp(kind),
            "save_strategy": "steps",
            "save_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "load_best_model_at_end": False,
        }
        with sharding_on_cpu():
            run = trainer(here, segformer(noise=False), DeepFST(2), report=True, **options)
            run.train()
            run.save_model(str(here / "export"))
            results[f"{kind} whole"] = held(run)
            run = trainer(here, segformer(noise=False), DeepFST(2), **options)
            run.train(resume_from_checkpoint=str(here / "checkpoint-2"))
            results[f"{kind} resumed"] = held(run)
            best = {**options, "load_best_model_at_end": True, "max_steps": 2, "learning_rate": 0.1}
            run = trainer(here / "best", segformer(noise=False), DeepFST(1), **best)
            run.train()
            results[f"{kind} best"] = held(run)
    return results


def refused(directory) -> dict:
    """What is said about settings that cannot be."""

    def attempt(network, evaluate=False, **options) -> str:
        try:
            run = trainer(directory, network, MeanTeacher(), **options)
            if evaluate:
                run.evaluate()
        except ValueError as error:
            return str(error)
        return ""

    results = {}
    cases: dict[str, Callable[[], str]] = {
        "fsdp1": lambda: attempt(tiny.model(), fsdp=True, fsdp_config={"version": 1, "sync_module_states": False}),
        "offloaded": lambda: attempt(tiny.model(), **fsdp(cpu_offload=True)),
        "adapters": lambda: attempt(adapted(), **fsdp()),
        "evaluation first": lambda: attempt(tiny.model(), True, **fsdp()),
    }
    for name, case in cases.items():
        with sharding_on_cpu():
            results[name] = case()
    return results


PARTS = {
    "adapters": adapters,
    "pair": pair,
    "segformers": segformers,
    "synchronised": synchronised,
    "sharded": sharded,
    "half": half,
    "checkpoints": checkpoints,
    "refused": refused,
}


def main(output: str, *parts: str) -> None:
    """Runs the parts and writes what they give under the process's number."""
    directory = Path(output)
    results = {part: PARTS[part](directory / part) for part in parts or PARTS}
    torch.save(results, directory / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
