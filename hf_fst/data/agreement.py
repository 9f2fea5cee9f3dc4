"""Makes datasets follow the normalization of the image processor, and finds the views in a dataset."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset
from torchvision.transforms import v2

from hf_fst.data.sampling import RareClasses, Sources
from hf_fst.data.transforms import CenterCrop, Evaluation, Normalization, Normalize
from hf_fst.data.views import View
from hf_fst.errors import UserError

# the attribute that holds the parts of a dataset or a transform
INNER = {View: "transform", RareClasses: "view", Sources: "sources", ConcatDataset: "datasets", Subset: "dataset"}
INNER |= {v2.Compose: "transforms", Evaluation: "steps", CenterCrop: "steps"}


def _normalizing(thing: Any) -> Iterator[Normalize | v2.Normalize]:
    """All normalization steps in a dataset or a transform."""
    if isinstance(thing, (Normalize, v2.Normalize)):
        yield thing
    for part in _parts(thing):
        yield from _normalizing(part)


def _parts(thing: Any) -> list:
    inner = next((vars(thing)[name] for kind, name in INNER.items() if isinstance(thing, kind)), [])
    return list(inner) if isinstance(inner, (list, tuple)) else [inner]


def views_of(dataset: Any) -> Iterator[View]:
    """All views in a dataset or a dict of datasets."""
    if isinstance(dataset, View):
        yield dataset
        return
    for part in dataset.values() if isinstance(dataset, dict) else _parts(dataset):
        yield from views_of(part)


def stated(dataset: Any) -> list[Normalization]:
    """The normalizations that the transforms of a dataset were given."""
    return [
        Normalization(tuple(step.mean), tuple(step.std)) if isinstance(step, v2.Normalize) else step.given
        for step in _normalizing(dataset)
        if isinstance(step, v2.Normalize) or step.given is not None
    ]


def following(dataset: Any, normalization: Normalization, name: str = "") -> Any:
    """The dataset, or a copy whose transforms use this normalization if they were given none.

    Args:
        dataset: one of ours, one composed of them, or a dict of them; any other is returned as it is.
        normalization: of the image processor that is saved with the network.
        name: of the dataset, for errors; the keys of a dict are added.

    Raises:
        UserError: the transforms were given another normalization.
    """
    if isinstance(dataset, dict):
        names = {key: f"{name}[{key!r}]" if name else key for key in dataset}
        return {key: following(part, normalization, names[key]) for key, part in dataset.items()}
    for own in stated(dataset):
        numbers = [[each.mean, each.std] for each in (own, normalization)]
        if own.bgr != normalization.bgr or not np.allclose(*numbers, rtol=0, atol=1e-4):
            raise UserError(
                f"The images of {name} are normalized with {words_of(own)}, but the image processor that is saved with "
                f"the model says {words_of(normalization)}; give both the same: pass the processor to the transforms, as "
                "training(512, processor=processor), and to the trainer, as processing_class=processor."
            )
    if normalization == Normalization():  # the default of a transform
        return dataset
    return _copied(dataset, normalization)


def _copied(thing: Any, normalization: Normalization) -> Any:
    if not any(isinstance(step, Normalize) and step.given is None for step in _normalizing(thing)):
        return thing
    if isinstance(thing, Normalize):
        return Normalize(normalization)
    name = next(name for kind, name in INNER.items() if isinstance(thing, kind))
    parts = [_copied(part, normalization) for part in _parts(thing)]
    made = copy.copy(thing)
    vars(made)[name] = parts if isinstance(vars(thing)[name], (list, tuple)) else parts[0]
    return made


def words_of(normalization: Normalization) -> str:
    """Its numbers for a sentence."""
    mean, std = (
        ", ".join(f"{number:.4g}" for number in numbers) for numbers in (normalization.mean, normalization.std)
    )
    return f"mean {mean} and deviation {std}" + (", blue first" if normalization.bgr else "")
