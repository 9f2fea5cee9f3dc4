"""Datasets as `datasets.DatasetDict` with the columns `image` and `label`, one file for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import datasets

from hf_fst.data.camvid import camvid
from hf_fst.data.cityscapes import cityscapes
from hf_fst.data.folders import folder
from hf_fst.data.gta5 import gta5
from hf_fst.data.hub import hub
from hf_fst.data.labels import LabelMap
from hf_fst.data.pairing import DrawSampler, Pairs, collate
from hf_fst.data.street.dataset import street
from hf_fst.data.synthia import synthia
from hf_fst.data.views import View
from hf_fst.data.voc import voc
from hf_fst.errors import DataError, UserError, did_you_mean, refuse_below
from hf_fst.kinds import KINDS, fits, hints_of, in_words, plain_kinds

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


def load(
    name: str, data_dir: str | None = None, *, streaming: bool = False, **options
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Loads a dataset by its name in `DATASETS`: splits train, validation, test with lazy columns `image` and `label`.

    Args:
        name: a key of `DATASETS`.
        data_dir: where the files lie (for "hub": the id or path of the dataset; for "street": not needed).
        streaming: gives a `datasets.IterableDatasetDict`.
        options: those of the dataset's function.

    Raises:
        MissingError: a folder or a file of the dataset is missing.
        UserError: an unknown name or option, or a file without a partner.
    """
    if name not in DATASETS:
        raise UserError(f"There is no dataset {name!r}; {did_you_mean(name, sorted(DATASETS))}")
    function = DATASETS[name]
    accepted = [option for option in inspect.signature(function).parameters if option not in ("data_dir", "streaming")]
    for option in options:
        if option not in accepted:
            hint = did_you_mean(option, accepted, f"it has {', '.join(accepted) or 'none'}.")
            raise UserError(f"The dataset {name!r} has no option {option!r}; {hint}")
    for option, value in options.items():
        hint = hints_of(function)[option]
        if {*plain_kinds(hint)} <= {*KINDS} and not fits(value, hint):
            raise UserError(f"{option} of the dataset {name!r} is {value!r}; give {in_words(hint)}.")
    refuse_below(0, seed=options.get("seed") or 0)
    return function(data_dir, streaming=streaming, **options)


__all__ = ["DATASETS", "DataError", "DrawSampler", "LabelMap", "Pairs", "View", "collate", "load"]
