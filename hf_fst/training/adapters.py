"""Students that learn adapters only (`peft`, such as LoRA): what is shared with the teacher, what is saved, what stays.

The base weights are frozen and shared by student and teacher: there is one copy of them. BatchNorm statistics of the
frozen base stay as they are, for an adapter's checkpoint does not hold them; those of `modules_to_save` are trained and
saved with it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.utils import CONFIG_NAME, is_peft_available

from hf_fst.errors import UserError
from hf_fst.models.adapters import difference


def is_adapted(model: nn.Module) -> bool:
    """Whether a model is a frozen base with adapters of `peft`."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def merged_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Those that a model has after its adapters are merged: neither theirs nor the originals of `modules_to_save`."""
    if not is_adapted(model):
        return list(model.parameters())
    gone = ".original_module.", f".{model.base_model.prefix}"
    return [parameter for name, parameter in model.named_parameters() if not any(part in name for part in gone)]


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
        UserError: the checkpoint holds other adapters than the model.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    theirs = load_peft_weights(str(directory), device="cpu")
    if unlike := difference(model, theirs):
        raise UserError(
            f"The adapter in {directory} is not the model's: {unlike}; give the model the same peft config."
        )
    set_peft_model_state_dict(model, theirs, adapter_name=model.active_adapter)


@contextmanager
def beside_adapter(model: nn.Module, directory: str | os.PathLike) -> Iterator[None]:
    """Inside, a model is saved. If it has adapters, the whole network's configuration is saved beside them, and the card,
    into which peft would write, stays as it was."""
    if not is_adapted(model):
        yield
        return
    card = Path(directory, "README.md")
    before = card.read_bytes() if card.is_file() else None
    yield
    if before is not None:
        card.write_bytes(before)
    else:
        card.unlink(missing_ok=True)
    base = model.get_base_model()
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.to_json_file(Path(directory, CONFIG_NAME))
