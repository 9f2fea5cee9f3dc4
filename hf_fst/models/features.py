"""Adds the input of a network's classifier to its output: the pixel features that prototypes and contrasts use."""

from __future__ import annotations

from torch import nn
from transformers.utils import ModelOutput

from hf_fst.errors import UserError

from .segmentation import SegmentationOutput, classifier_of

# Hooks are functions that keep their state in the module they are called with, so that copies of a model work too.


def _keep(classifier: nn.Module, inputs: tuple) -> None:
    classifier._kept_input = inputs[0]


def _add(network: nn.Module, inputs: tuple, output: ModelOutput | tuple) -> SegmentationOutput | tuple:
    [kept] = [module.__dict__.pop("_kept_input") for module in network.modules() if "_kept_input" in module.__dict__]
    if not isinstance(output, ModelOutput) or "features" in output:  # `return_dict=False`, or the network's own
        return output
    return SegmentationOutput(**output, features=kept)


def returns_features(model: nn.Module) -> bool:
    """Whether features were asked of a network."""
    return _add in model._forward_hooks.values()


def return_features(model: nn.Module) -> None:
    """Makes a network return `features` (B,D,h,w): its own, or what its classifier (`classifier_of`) reads.

    A network that was changed before stays as it is. Checkpoints do not change. Raises `UserError` if no convolution
    classifies, as in networks that classify masks.
    """
    classifier = classifier_of(model)
    if classifier is None:
        raise UserError(
            f"The objective compares features of pixels, but a {type(model).__name__} has no convolution that classifies "
            "them; use a model such as SegFormer or one of hf_fst.models.build."
        )
    if _keep not in classifier._forward_pre_hooks.values():
        classifier.register_forward_pre_hook(_keep)
        model.register_forward_hook(_add)
