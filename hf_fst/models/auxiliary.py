"""Changes of transformers' own networks, in place: auxiliary heads, BatchNorm of one value, weights that do nothing."""

from __future__ import annotations

import logging

import torch
from torch import nn
from transformers import (
    BeitForSemanticSegmentation,
    Data2VecVisionForSemanticSegmentation,
    DPTForSemanticSegmentation,
    UperNetForSemanticSegmentation,
)
from transformers.utils import ModelOutput

from .features import returns_features
from .segmentation import PooledBatchNorm2d, SegmentationOutput

logger = logging.getLogger(__name__)

# These run an auxiliary head, add it to their own loss, and leave its logits out of their output.
SILENT = (
    BeitForSemanticSegmentation,
    Data2VecVisionForSemanticSegmentation,
    DPTForSemanticSegmentation,
    UperNetForSemanticSegmentation,
)


# Hooks are functions that keep their state in the module they are called with, so that copies of a model work too.


def _keep(head: nn.Module, inputs: tuple, logits: torch.Tensor) -> None:
    head._kept_logits = logits


def _add(network: nn.Module, inputs: tuple, output: ModelOutput | tuple) -> SegmentationOutput | tuple:
    logits = network.auxiliary_head.__dict__.pop("_kept_logits")
    if not isinstance(output, ModelOutput):  # `return_dict=False`
        return output
    return SegmentationOutput(**output, auxiliary_logits={"auxiliary_head": logits})


def return_auxiliary_logits(model: nn.Module) -> None:
    """Makes transformers' BEiT, Data2Vec, DPT and UPerNet return the logits of their auxiliary heads, in place.

    Their output becomes a `SegmentationOutput` with `auxiliary_logits`, as that of our networks, so that an objective's
    own cross entropy trains these heads. A network inside of another (such as one with adapters) is found; other
    networks, and one that was changed before, stay as they are. Checkpoints do not change.
    """
    for network in model.modules():
        if isinstance(network, SILENT) and network.auxiliary_head is not None:
            if _keep not in network.auxiliary_head._forward_hooks.values():
                network.auxiliary_head.register_forward_hook(_keep)
                network.register_forward_hook(_add)


def allow_single_values(model: nn.Module) -> None:
    """Lets BatchNorm layers behind a pooling to 1x1 train on batches of one image, in place (`PooledBatchNorm2d`).

    Everywhere else they compute what they did, and names and values of weights stay.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d and module.track_running_stats:
            module.__class__ = PooledBatchNorm2d


def freeze_unused(model: nn.Module, pixel_values: torch.Tensor, **options: bool) -> list[str]:
    """Freezes the trainable parameters on which no logits depend, nor features asked for, and gives their names.

    Such are the layers of transformers' BEiT behind its last feature level, and Swin's final norm. They never learn, and
    DDP with `find_unused_parameters=False` waits for their gradients in vain.

    Args:
        model: a network with `logits`; its mode, buffers and gradients, and the random states, stay as they are.
        pixel_values: an image (3,H,W).
        options: what else training gives to `forward`.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()  # nothing random, no statistics
    first = next(model.parameters())
    with torch.enable_grad():
        output = model(pixel_values=pixel_values[None].to(first.device, first.dtype), **options)
        outputs = []
        for part in output.get("branches") or [output]:
            outputs += [part.logits, *(part.get("auxiliary_logits") or {}).values()]
        outputs += output.get("detected") or []
        outputs += [output.features] if returns_features(model) else []
        trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        total = sum(logits.float().mean() for logits in outputs)
        gradients = torch.autograd.grad(total, list(trainable.values()), allow_unused=True)
    for module, training in modes.items():
        module.training = training
    unused = [name for name, gradient in zip(trainable, gradients, strict=True) if gradient is None]
    for name in unused:
        trainable[name].requires_grad_(False)
    if unused:
        logger.warning(
            "No output depends on %d weights, which are frozen: %s, ...", len(unused), ", ".join(unused[:3])
        )
    return unused
