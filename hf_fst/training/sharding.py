"""FSDP2: the teacher sharded like its student, whole weights where they are needed, checkpoints in shards.

Parameters that are gathered for a forward pass and stay so hide what happens to their shards: an average or an
optimizer step would be invisible to the next pass. So both networks give up the gathered parameters after each pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model, load_fsdp_model, save_fsdp_model
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from transformers.utils import logging

from hf_fst.errors import UserError
from hf_fst.training.adapters import is_adapted

logger = logging.get_logger(__name__)

SYNC_DEVICES = ("cuda", "xpu", "hpu")
SHARDS = "pytorch_model_fsdp_0"  # the directory that accelerate writes the shards of a network into


def refuse_sharding(accelerator: Accelerator, model: nn.Module) -> None:
    """Refuse FSDP1, and under FSDP2 weights offloaded to the CPU and adapters.

    Raises:
        UserError: with what to set instead.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise UserError(
            "FSDP1 flattens the weights of student and teacher differently, so they cannot be averaged; set "
            "fsdp_version: 2 in the accelerate config."
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise UserError(
            "FSDP2 with weights offloaded to the CPU is not supported: a look-ahead copies them several times a step; "
            "set fsdp_offload_params: false in the accelerate config."
        )
    if is_adapted(model):
        raise UserError(
            "Student and teacher share the frozen weights under the adapters, which FSDP2 would shard twice; train "
            "adapters with DDP."
        )


def synchronize_batchnorm(model: nn.Module, args) -> None:
    """With `sync_batchnorm` and several processes, replace BatchNorm by SyncBatchNorm; names of weights stay.

    PyTorch has none for CPUs: there a warning says that each process keeps to its own images.
    """
    if not args.sync_batchnorm or args.world_size == 1:
        return
    if args.device.type not in SYNC_DEVICES:
        logger.warning_once(
            f"sync_batchnorm needs GPUs but the device is {args.device.type!r}: BatchNorm takes the statistics of each "
            "process's own images."
        )
        return
    nn.SyncBatchNorm.convert_sync_batchnorm(model)


@contextmanager
def sharding_alike(accelerator: Accelerator, student: nn.Module, teacher: nn.Module) -> Iterator[None]:
    """Under FSDP2, shard the teacher as accelerate shards the student inside; once sharded it is left alone."""
    if not accelerator.is_fsdp2:
        yield
        return
    # gathered in float32 and computed with under autocast, as in DDP: cast to half precision, the weights of a BatchNorm
    # would no longer fit its statistics, which are not cast
    accelerator.state.fsdp_plugin.mixed_precision_policy = None
    for network in (student, teacher):
        # accelerate would shard the token embeddings by themselves and asks for them, which these networks lack
        network.get_input_embeddings = lambda: None
    if not is_sharded(teacher):
        fsdp2_prepare_model(accelerator, teacher)
        teacher.set_reshard_after_forward(True)
    yield
    student.set_reshard_after_forward(True)


def is_sharded(network: nn.Module) -> bool:
    """Whether the parameters of a network are spread over the processes."""
    return isinstance(network, FSDPModule)


@contextmanager
def gathered(accelerator: Accelerator, networks: Iterable[nn.Module]) -> Iterator[None]:
    """Whole parameters on every process, so that each may call the networks on its own; sharded again on exit.

    In evaluation processes may have different numbers of windows and image sizes: calls that had to meet would wait for
    ever.

    Raises:
        UserError: under FSDP2, the networks are not sharded yet.
    """
    networks = list(networks)
    if accelerator.is_fsdp2 and not all(map(is_sharded, networks)):
        raise UserError("Under FSDP2 scores come while or after training; score a checkpoint on one process.")
    shards = [module for network in networks for module in network.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def saves_shards(accelerator: Accelerator) -> bool:
    """Whether checkpoints hold a file for each process (`SHARDED_STATE_DICT`) and not whole weights."""
    return accelerator.is_fsdp2 and "SHARDED" in str(accelerator.state.fsdp_plugin.state_dict_type)


def save_shards(accelerator: Accelerator, network: nn.Module, directory: str | os.PathLike) -> None:
    """Write a network's shards; called on every process."""
    save_fsdp_model(accelerator.state.fsdp_plugin, accelerator, network, str(directory))


def load_shards(accelerator: Accelerator, network: nn.Module, directory: str | os.PathLike) -> None:
    """Read a network's shards, written by any number of processes; called on every process.

    Raises:
        UserError: the checkpoint holds whole weights.
    """
    if not Path(directory, SHARDS).is_dir():
        raise UserError(
            f"{directory} holds whole weights, but this run saves shards; set fsdp_state_dict_type: FULL_STATE_DICT in "
            "the accelerate config."
        )
    load_fsdp_model(accelerator.state.fsdp_plugin, accelerator, network, str(directory))


def load_whole(network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load whole weights into a network, sharded or not; called on every process."""
    if is_sharded(network):
        set_model_state_dict(network, weights, options=StateDictOptions(full_state_dict=True))
    else:
        network.load_state_dict(weights)
