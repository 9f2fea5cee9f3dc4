"""Datasets as `datasets.DatasetDict` with the columns `image` and `label`, one file for each."""

from __future__ import annotations

import inspect
import numbers
import types
import typing
from collections.abc import Callable
from pathlib import Path

import datasets

from hf_fst.data.camvid import LABELS as CAMVID
from hf_fst.data.camvid import camvid
from hf_fst.data.cityscapes import NAMES as CITYSCAPES_NAMES
from hf_fst.data.cityscapes import PALETTE as CITYSCAPES_PALETTE
from hf_fst.data.cityscapes import cityscapes
from hf_fst.data.folders import folder
from hf_fst.data.gta5 import gta5
from hf_fst.data.hub import hub
from hf_fst.data.labels import LabelMap
from hf_fst.data.pairing import DrawSampler, Pairs, collate
from hf_fst.data.street.dataset import NAMES as STREET_NAMES
from hf_fst.data.street.dataset import PALETTE as STREET_PALETTE
from hf_fst.data.street.dataset import street
from hf_fst.data.synthia import synthia
from hf_fst.data.views import View
from hf_fst.data.voc import LABELS as VOC
from hf_fst.data.voc import voc
from hf_fst.errors import DataError, UserError, did_you_mean, refuse_below

DATASETS: dict[str, Callable[..., datasets.DatasetDict]] = {
    "street": street,
    "camvid": camvid,
    "cityscapes": cityscapes,
    "gta5": gta5,
    "synthia": synthia,
    "voc": voc,
    "folder": folder,
    "hub": hub,
}
# class names and their colors, for models that name their classes but bring no colors
PALETTES = (
    (STREET_NAMES, STREET_PALETTE),
    (CITYSCAPES_NAMES, CITYSCAPES_PALETTE),
    (CAMVID.names, CAMVID.palette),
    (VOC.names, VOC.palette),
)
# what plain options accept for each type, and the type in words
KINDS = {
    str: ((str, Path), "text"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    bool: (bool, "true or false"),
    types.NoneType: (types.NoneType, "null"),
}


def load(
    name: str, data_dir: str | None = None, *, streaming: bool = False, **options
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Loads a dataset by its name in `DATASETS`: splits train, validation, test with lazy columns `image` and `label`.

    Args:
        name: a key of `DATASETS`.
        data_dir: where the files lie (for "hub": the id or path of the dataset; for "street": not needed).
        streaming: gives a `datasets.IterableDatasetDict`.
        options: those of the dataset's function.

    Raises `UserError` for an unknown name or option, `MissingError` where a part of the dataset is missing.
    """
    if name not in DATASETS:
        raise UserError(f"There is no dataset {name!r}; {did_you_mean(name, sorted(DATASETS))}")
    function = DATASETS[name]
    accepted = [option for option in inspect.signature(function).parameters if option not in ("data_dir", "streaming")]
    for option in options:
        if option not in accepted:
            raise UserError(f"The dataset {name!r} has no option {option!r}; it has {', '.join(accepted) or 'none'}.")
    hints = typing.get_type_hints(function)
    for option, value in options.items():
        is_union = typing.get_origin(hints[option]) in (typing.Union, types.UnionType)
        kinds = typing.get_args(hints[option]) if is_union else (hints[option],)
        if not set(kinds) <= set(KINDS):
            continue
        fits = isinstance(value, tuple(KINDS[kind][0] for kind in kinds))
        if not fits or (isinstance(value, bool) and bool not in kinds):
            accepted = " or ".join(KINDS[kind][1] for kind in kinds)
            raise UserError(f"{option} of the dataset {name!r} is {value!r}; give {accepted}.")
    refuse_below(0, seed=options.get("seed") or 0)
    return function(data_dir, streaming=streaming, **options)


__all__ = ["DATASETS", "DataError", "DrawSampler", "LabelMap", "Pairs", "View", "collate", "load"]
