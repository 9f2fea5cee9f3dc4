"""Students that learn adapters only (`peft`, such as LoRA): what is shared with the teacher, what is saved, what stays.

The base weights are frozen and shared by student and teacher: there is one copy of them. BatchNorm statistics of the
frozen base stay as they are, for an adapter's checkpoint does not hold them; those of `modules_to_save` are trained and
saved with it.
"""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.utils import is_peft_available

from hf_fst.errors import UserError


def is_adapted(model: nn.Module) -> bool:
    """Whether a model is a frozen base with adapters of `peft`."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def keep_base_statistics(model: nn.Module) -> None:
    """Put the BatchNorm layers of an adapted model's frozen base in evaluation mode."""
    if not is_adapted(model):
        return
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and ".modules_to_save." not in name:
            trained = any(parameter.requires_grad for parameter in module.parameters())
            module.train(module.training and trained)


def load_adapter(model: nn.Module, directory: str | os.PathLike) -> None:
    """Load adapters and `modules_to_save` from a checkpoint into an adapted model.

    Raises:
        ValueError: the checkpoint holds other adapters than the model.
    """
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    theirs = load_peft_weights(str(directory), device="cpu")
    ours = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    if differing := {key for key in theirs.keys() | ours.keys() if shape(theirs, key) != shape(ours, key)}:
        raise UserError(
            f"The adapter in {directory} is not the model's: {min(differing)} has shape {shape(theirs, min(differing))} "
            f"there and {shape(ours, min(differing))} here; give the model the same peft config."
        )
    set_peft_model_state_dict(model, theirs, adapter_name=model.active_adapter)


def shape(weights: dict[str, torch.Tensor], key: str) -> tuple[int, ...] | str:
    """Shape of a weight, "none" where it is missing."""
    return tuple(weights[key].shape) if key in weights else "none"
