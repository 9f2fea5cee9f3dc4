"""Adapters of `peft`, such as LoRA, which are saved apart from their base network: merged, the two are like any other."""

from __future__ import annotations

import json
import warnings
from functools import reduce
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from hf_fst.errors import RunError, UserError

from .faults import LOADING, words

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def base_of(file: Path, where: str) -> str:
    """The network under the adapter `where`, a directory or a Hub id, by the adapter's configuration. Raises
    `UserError` if the file cannot be read or names none."""
    try:
        name = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{ADAPTER_CONFIG} of {where} cannot be read; download or save the adapter again.") from error
    if not name:
        raise UserError(
            f"{ADAPTER_CONFIG} of {where} does not name the base network; write its directory or Hub id there, as "
            '"base_model_name_or_path".'
        )
    return str(name)


def merged(base: PreTrainedModel, lacking: set[str], directory: Path, where: str) -> PreTrainedModel:
    """The base network with an adapter merged into it, all of its weights ready to learn.

    Args:
        base: changed in place. Where the adapter is more precise, so is the result.
        lacking: weights that the base had no values for; the adapter must bring them (`modules_to_save`).
        directory: of the adapter's files.
        where: the adapter, for people.

    Raises:
        RunError: the extra `peft` is not installed.
        UserError: the adapter is damaged, does not fit the base, or cannot be merged.
    """
    if not is_peft_available():
        raise RunError(f'{where} is an adapter, which needs peft: pip install "hf_fst[peft]".')
    from peft import PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    if not (directory / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{where} has no {ADAPTER_WEIGHTS}; download or save the adapter again.")
    try:
        config = PeftConfig.from_pretrained(str(directory))
        weights = load_peft_weights(str(directory), device="cpu")
        base.to(reduce(torch.promote_types, {tensor.dtype for tensor in weights.values()}, base.dtype))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft uses what transformers will rename
            adapted = get_peft_model(base, config)
        if unlike := difference(adapted, weights):
            raise UserError(
                f"The adapter in {where} does not fit its base network {config.base_model_name_or_path}: {unlike}; give "
                f"the base it was trained on as base_model_name_or_path in {ADAPTER_CONFIG}."
            )
        set_peft_model_state_dict(adapted, weights)
        network = adapted.merge_and_unload()
    except UserError:
        raise
    except LOADING as error:
        raise UserError(f"The adapter in {where} cannot be merged into its base network: {words(error)}") from error
    if missing := sorted(name for name in lacking if f"base_model.model.{name}" not in weights):
        raise UserError(
            f"{len(missing)} weights are neither in {where} nor in its base network, the first is {missing[0]}; a head "
            "that is new is saved with an adapter only if modules_to_save of its peft config names it."
        )
    return network.requires_grad_(True).eval()


def difference(model: torch.nn.Module, theirs: dict[str, torch.Tensor]) -> str | None:
    """How the weights of a saved adapter differ from those of an adapted model in name or shape; None if they fit."""
    from peft import get_peft_model_state_dict

    ours = get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)
    unlike = {key for key in theirs.keys() | ours.keys() if shape(theirs, key) != shape(ours, key)}
    if not unlike:
        return None
    key = min(unlike)
    return f"{key} has shape {shape(theirs, key)} there and {shape(ours, key)} here"


def shape(weights: dict[str, torch.Tensor], key: str) -> tuple[int, ...] | str:
    """Shape of a weight, "none" where it is missing."""
    return tuple(weights[key].shape) if key in weights else "none"
