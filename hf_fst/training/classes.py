"""Compares the class names of a network with those of its data."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin
from transformers.utils import logging

from hf_fst.data.agreement import views_of
from hf_fst.data.labels import plain_names
from hf_fst.errors import UserError, printable
from hf_fst.models.loading import class_names

logger = logging.get_logger(__name__)

SHOWN = 8  # class names in a sentence


def follow_names(trainer, model: nn.Module | None) -> None:
    """Makes sure that class ids mean the same to a network and its data; a network without names gets those of the data.

    Case, blanks and underscores do not matter. Data without visible names is skipped, and so is a network of one class,
    which a user's own objective may interpret differently.

    Args:
        trainer: has the datasets.
        model: its student, not yet wrapped; its configuration is changed.

    Raises:
        UserError: another number of classes, the same names in another order, or two classes of one name.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig) or config.num_labels < 2:
        return
    class_names(config)  # refuses two of one name
    for where in ("train_dataset", "unlabeled_dataset", "eval_dataset"):
        for view in views_of(getattr(trainer, where)):
            if view.with_labels and view.label_map.names:
                _follow(model, config, list(view.label_map.names), where)


def _follow(model: nn.Module, config: PreTrainedConfig, theirs: list[str], where: str) -> None:
    own = class_names(config)
    plain, wanted = map(plain_names, (own, theirs))
    if plain == wanted:
        return
    placeholders = [f"LABEL_{index}" for index in range(len(own))]
    if len(own) != len(theirs) and where == "unlabeled_dataset":  # its labels are for statistics, and need not fit
        return
    if len(own) != len(theirs):
        raise UserError(
            f"The model has {len(own)} classes ({_shown(own)}) and {where} {len(theirs)} ({_shown(theirs)}); give the "
            "model those of the data where it is made, as id2label=dict(enumerate(names)), or bring the masks to those "
            "of the model, as LabelMap(names=[...], id_map=[...]) does."
        )
    if own == placeholders:
        for part in _configs(model):
            if class_names(part) == placeholders:
                part.id2label, part.label2id = dict(enumerate(theirs)), {name: i for i, name in enumerate(theirs)}
        logger.warning("The model does not name its classes; it now has those of %s: %s.", where, _shown(theirs))
    elif sorted(plain) == sorted(wanted):
        raise UserError(
            f"The model has the classes {_shown(own)}, and {where} has them in another order: {_shown(theirs)}; bring "
            "the masks to the order of the model, as LabelMap(names=[...], id_map=[...]) does, or give the model that of "
            "the data as id2label."
        )
    else:
        first = next(index for index, pair in enumerate(zip(plain, wanted, strict=True)) if pair[0] != pair[1])
        logger.warning(
            "Class %d is %r for the model and %r in %s; they are treated as the same, and the model keeps its names.",
            *(first, own[first], theirs[first], where),
        )


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return printable(", ".join(names[:SHOWN])) + more


def _configs(model: nn.Module) -> list[PreTrainedConfig]:
    """The configurations of a network and of the networks inside it, except backbones."""
    found = [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]
    found += [getattr(config, key, None) for config in found for key in config.sub_configs]
    return [c for c in found if isinstance(c, PreTrainedConfig) and not isinstance(c, BackboneConfigMixin)]
