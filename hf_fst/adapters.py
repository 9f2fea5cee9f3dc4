"""Students that learn adapters only (`peft`, such as LoRA): what is shared with the teacher, what is saved, what stays.

The base weights are frozen and shared by student and teacher: there is one copy of them. BatchNorm statistics of the
frozen base stay as they are, for an adapter's checkpoint does not hold them; those of `modules_to_save` are trained and
saved with it.
"""

from __future__ import annotations

import os

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.utils import is_peft_available


def is_adapted(model: nn.Module) -> bool:
    """Whether a model is a frozen base with adapters of `peft`."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def keep_base_statistics(model: nn.Module) -> None:
    """Put the BatchNorm layers of the frozen base in evaluation mode."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and ".modules_to_save." not in name:
            trained = any(parameter.requires_grad for parameter in module.parameters())
            module.train(module.training and trained)


def load_adapter(model: nn.Module, directory: str | os.PathLike) -> None:
    """Load adapters and `modules_to_save` from a checkpoint into an adapted model.

    Raises:
        ValueError: the checkpoint holds other adapters than the model.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(str(directory), device="cpu")
    result = set_peft_model_state_dict(model, weights, adapter_name=model.active_adapter)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = trained & set(result.missing_keys)
    if missing or result.unexpected_keys:
        raise ValueError(
            f"The adapter in {directory} is not the model's: {len(missing)} of its weights are missing there and "
            f"{len(result.unexpected_keys)} are unknown; give the model the adapter's own peft config."
        )
