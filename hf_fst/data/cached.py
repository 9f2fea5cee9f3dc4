"""Computes something for every file of a dataset, in several processes; cached until a file changes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import datasets

FILES_A_PROCESS = 64  # fewer are not worth starting one


def map_files(
    stored: datasets.Dataset,
    function: Callable[..., dict],
    features: datasets.Features,
    name: str,
    desc: str,
    **arguments,
) -> datasets.Dataset:
    """Applies a function to every row, in several processes if there are many; cached until a file, the order or an
    argument changes.

    Args:
        stored: columns of images that are not decoded.
        function: takes a row, its index and `arguments`, and returns the columns of `features`.
        features, name: of the result; the name is part of the cache file's.
        desc: label of the progress bar.
        arguments: data classes or None.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hf_fst"
    folder.mkdir(parents=True, exist_ok=True)
    num_proc = min(os.cpu_count() or 1, 16, len(stored) // FILES_A_PROCESS)
    return stored.map(
        function,
        with_indices=True,
        fn_kwargs=arguments,
        remove_columns=stored.column_names,
        features=features,
        num_proc=num_proc if num_proc > 1 else None,
        cache_file_name=str(folder / f"{name}-{_key(stored, features, arguments)}.arrow"),
        load_from_cache_file=True,
        desc=desc,
    )


def _key(stored: datasets.Dataset, features: datasets.Features, arguments: dict) -> str:
    """The cache key: depends on the files (path, size, times), the arguments and the columns of the result.

    The columns may differ between versions of the package.
    """
    plain = {name: value and dataclasses.asdict(value) for name, value in arguments.items()}
    digest = hashlib.sha256(json.dumps([plain, features.to_dict()], sort_keys=True).encode())
    for column in stored.column_names:
        for value in stored[column]:
            path = value["path"]
            if value["bytes"] is not None or path is None or not os.path.exists(path):
                digest.update(stored._fingerprint.encode())
                break
            status = os.stat(path)
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
    return digest.hexdigest()[:24]
