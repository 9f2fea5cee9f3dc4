"""Work on every file of a dataset, done once: in several processes, with a bar, and kept until a file changes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import datasets


def map_files(
    stored: datasets.Dataset,
    function: Callable[..., dict],
    features: datasets.Features,
    name: str,
    desc: str,
    num_proc: int | None = None,
    cache_dir: str | Path | None = None,
    **arguments,
) -> datasets.Dataset:
    """What a function makes of every row; made again where a file, the order or an argument changes.

    Args:
        stored: columns of images that are not decoded.
        function: takes a row, its index and `arguments`, and gives the columns of `features`.
        features: of the result.
        name: of the result, for the name of the kept file.
        desc: beside the bar.
        num_proc: processes; None for one a core, and one for small sets.
        cache_dir: where results are kept; None for the folder `hf_fst` in the cache of `datasets`.
        arguments: data classes or None.
    """
    folder = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "hf_fst")
    folder.mkdir(parents=True, exist_ok=True)
    if num_proc is None:
        num_proc = min(os.cpu_count() or 1, 16, len(stored) // 64)
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
    """A name for a result: the same only for the same files (path, size, times), arguments and columns of the result.

    Another version of the package may make other columns.
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
