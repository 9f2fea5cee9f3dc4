"""Explains what is wrong with a saved network: damaged files, or weights of another network."""

from __future__ import annotations

import pickle

import torch
from huggingface_hub.errors import HTTPError, StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedModel

from hf_fst.errors import UserError

# what transformers raises for a file that is not an image processor, and the Hub's client if it cannot be fetched
UNREADABLE = (OSError, HTTPError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError)
# the same for the files of a network
LOADING = (
    *(*UNREADABLE, RuntimeError, IndexError, ArithmeticError, EOFError, ImportError),
    *(SafetensorError, pickle.UnpicklingError),
)


def refuse_other_weights(network: PreTrainedModel, found: dict, is_trained: bool, where: str) -> None:
    """Raises `UserError` for weights with another shape than the network's, or missing ones: the network has random
    ones in their place.

    Args:
        network: as it was loaded.
        found: what transformers found about its weights.
        is_trained: whether it is used as is; otherwise it gets a new head, and may so far be only a backbone.
        where: where the weights come from.
    """
    odd = sorted(
        (name, tuple(stored), tuple(wanted))
        for name, stored, wanted in found["mismatched_keys"]
        if is_trained or stored[1:] != wanted[1:] or not stored  # a head for other classes differs in their number
    )
    if odd:
        name, stored, wanted = odd[0]
        raise UserError(
            f"{len(odd)} weights in {where} have other shapes than its config.json says, the first is {name} with "
            f"{stored} for {wanted}; download or save the model again."
        )
    missing = sorted(found["missing_keys"])
    if len(missing) < len(network.state_dict()):
        missing = _used(network, missing) if is_trained else []
    if missing:
        raise UserError(
            f"{len(missing)} weights of a {type(network).__name__} are missing in {where}, the first is {missing[0]}; "
            "give a network that was trained for segmentation, or download or save it again."
        )


def _used(network: PreTrainedModel, names: list[str]) -> list[str]:
    """The weights that the logits depend on; all of them if that is unknown."""
    weights = dict(network.named_parameters())
    parameters = [name for name in names if name in weights]
    used = [name for name in names if name not in weights and name.endswith(("running_mean", "running_var"))]
    if not parameters:
        return used
    backbone = getattr(network.config, "backbone_config", None)
    sides = [getattr(config, "image_size", None) for config in (network.config, backbone)]
    side = next((side for side in sides if isinstance(side, int)), 64)
    try:
        with torch.enable_grad():
            logits = network(pixel_values=torch.zeros(1, 3, side, side, dtype=network.dtype)).logits
            wanted = [weights[name] for name in parameters]
            gradients = torch.autograd.grad(logits.float().sum(), wanted, allow_unused=True)
    except (RuntimeError, TypeError, ValueError):
        return [*parameters, *used]
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None] + used


def reason(error: Exception) -> str:
    """Why a model does not load and what to do, as the end of a sentence."""
    if isinstance(error, SafetensorError):
        return f"a file of its weights is damaged ({words(error)[:-1]}); download or save the model again."
    if isinstance(error, pickle.UnpicklingError):
        return (
            "its weights are a pickle that is damaged or holds more than tensors, whose loading could run code; give a "
            "model that was saved as safetensors."
        )
    if isinstance(error, (OSError, ValueError, ImportError, StrictDataclassError)):
        return words(error)
    return (
        f"its config.json or its weights are damaged ({type(error).__name__}: {words(error)[:-1]}); download or save the "
        "model again."
    )


def words(error: Exception) -> str:
    """The first line of an error, all of it where a field is wrong, as the end of a sentence."""
    text = " ".join(str(error).split()) if isinstance(error, StrictDataclassError) else str(error).strip()
    return text.partition("\n")[0].rstrip(".") + "."
