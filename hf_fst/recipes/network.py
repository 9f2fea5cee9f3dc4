"""The model of a recipe, its image processor and its optimizer."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedModel, SegformerImageProcessor

from hf_fst.errors import MissingError, UsageError, UserError, did_you_mean
from hf_fst.models import BUILDS, build
from hf_fst.recipes.keys import Recipe


def build_network(recipe: Recipe, names: list[str]) -> PreTrainedModel:
    """The model of a recipe with a head for the classes `names`.

    Raises:
        UsageError: the model is unknown, or its configuration is wrong.
        UserError: a trained head has another number of classes.
    """
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    options = dict(recipe.model_config or {})
    if recipe.model in BUILDS:
        try:
            return build(recipe.model, len(names), recipe.pretrained_backbone, **options, **labels)
        except (TypeError, ValueError, StrictDataclassError) as error:
            raise UsageError(f"model {recipe.model!r} cannot be built: {_words(error)}") from error
    if recipe.pretrained_backbone:
        raise UsageError(f"pretrained_backbone is for named builds ({', '.join(BUILDS)}); leave it out.")
    if recipe.model is None:
        return _from_config(options, labels)
    return _from_pretrained(recipe, options, labels)


def _from_config(options: dict, labels: dict) -> PreTrainedModel:
    kind = options.pop("model_type", None)
    if kind is None:
        raise UsageError(
            "model is missing; give a named build, a Hub id, a directory, or model_config with model_type."
        )
    try:
        return AutoModelForSemanticSegmentation.from_config(AutoConfig.for_model(kind, **options, **labels))
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise UsageError(
            f"model_config of model_type {kind!r} gives no segmentation model: {_words(error)}"
        ) from error


def _from_pretrained(recipe: Recipe, options: dict, labels: dict) -> PreTrainedModel:
    name, names = recipe.model, labels["id2label"]
    is_directory = Path(name).is_dir()
    if not is_directory and name.count("/") != 1:
        hint = did_you_mean(name, BUILDS) or f"use one of {', '.join(BUILDS)}, a Hub id or a directory."
        raise UsageError(f"There is no model {name!r}; {hint}")
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise MissingError(
            f"There is no model {name!r}: {'the directory holds none' if is_directory else 'the Hub gives none'} "
            f"({_words(error)})"
        ) from error
    segments = any("Segmentation" in architecture for architecture in config.architectures or ())
    if segments and config.num_labels != len(names) and not recipe.replace_head:
        raise UserError(
            f"The model {name} has {config.num_labels} classes but the dataset has {len(names)}; set replace_head: true "
            "to give it a new head, or use a dataset with its classes."
        )
    config.id2label, config.label2id = names, labels["label2id"]
    return AutoModelForSemanticSegmentation.from_pretrained(name, config=config, ignore_mismatched_sizes=True)


def build_processor(recipe: Recipe) -> SegformerImageProcessor:
    """An image processor that does to an image what evaluation does: ImageNet's mean and deviation, and the resize."""
    scale = recipe.eval_resize or recipe.unlabeled_resize or recipe.resize
    if scale is None:
        return SegformerImageProcessor(do_resize=False)
    return SegformerImageProcessor(do_resize=True, size={"max_width": scale[0], "max_height": scale[1]})


def _words(error: Exception) -> str:
    """The first line of an error, all of it where a field is wrong, as the end of a sentence."""
    text = " ".join(str(error).split()) if isinstance(error, StrictDataclassError) else str(error).strip()
    return text.partition("\n")[0].rstrip(".") + "."
