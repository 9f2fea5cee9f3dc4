"""Large collections of images in a fixed order: a folder, Parquet files, WebDataset shards, a dataset on the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError

from hf_fst.data.files import SUFFIXES
from hf_fst.data.hub import IMAGE_COLUMNS
from hf_fst.errors import MissingError, UserError
from hf_fst.prediction.files import fingerprint, list_inputs

STREAMED = {".parquet": "parquet", ".tar": "webdataset"}


class Row(NamedTuple):
    """An image as it is stored, `{"path", "bytes"}`, and where it is from: a name that no other row has."""

    source: str
    image: dict[str, Any]


@dataclass
class Folder:
    """Image files; one unit."""

    files: list[Path]
    root: Path
    identity: dict[str, Any]

    @property
    def units(self) -> int:
        return 1

    @property
    def count(self) -> int | None:
        return len(self.files)

    def rows(self, unit: int) -> Iterator[Row]:
        for file in self.files:
            yield Row(file.relative_to(self.root).as_posix(), {"path": str(file), "bytes": None})


@dataclass
class Stream:
    """A streamed dataset; a unit is one of its files, so that processes can read different ones."""

    dataset: datasets.IterableDataset
    column: str
    names: list[str]
    identity: dict[str, Any]

    @property
    def units(self) -> int:
        return len(self.names)

    @property
    def count(self) -> int | None:
        return None

    def rows(self, unit: int) -> Iterator[Row]:
        part = self.dataset.shard(num_shards=self.units, index=unit)
        for number, row in enumerate(part):
            yield Row(f"{self.names[unit]}#{number}", row[self.column])


def open_source(
    source: str,
    split: str = "train",
    column: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    skip: tuple[Path, ...] = (),
) -> Folder | Stream:
    """Opens a folder (the folders in it included) of images, Parquet files or WebDataset shards (`.tar`), such a file,
    or a dataset on the Hub. Its `identity` changes where the collection does.

    Args:
        source: path or Hub id.
        split, config, revision: of a dataset on the Hub.
        column: the column with the images; None takes the first of `hf_fst.data.hub.IMAGE_COLUMNS`.
        skip: folders that are not looked into.

    Raises `FileNotFoundError` where there is nothing, `ValueError` for a collection of two kinds or without images.
    """
    path = Path(source)
    if not path.exists():
        if path.is_absolute() or source.startswith(".") or len(path.parts) > 2 or source.endswith("/"):
            raise MissingError(f"There is no {source}; give a folder, a Parquet or .tar file, or a Hub id.")
        return _hub(source, split, column, config, revision)
    files, _ = list_inputs(path, (*STREAMED, *SUFFIXES), skip)
    root = path if path.is_dir() else path.parent
    kinds = {file.suffix.lower() for file in files} & set(STREAMED)
    if len(kinds) > 1:
        raise UserError(f"{source} holds Parquet files and .tar files; give a folder with one kind.")
    if kinds:
        files = [file for file in files if file.suffix.lower() in kinds]
    identity = {"files": len(files), "fingerprint": fingerprint(files, root)}
    if not kinds:
        return Folder(files, root, identity)
    kind = STREAMED[kinds.pop()]
    dataset = datasets.load_dataset(kind, data_files=[str(file) for file in files], split="train", streaming=True)
    names = [file.relative_to(root).as_posix() for file in files]
    return _stream(dataset, column, names if dataset.num_shards == len(names) else None, identity, source)


def _hub(source: str, split: str, column: str | None, config: str | None, revision: str | None) -> Stream:
    try:
        revision = HfApi().dataset_info(source, revision=revision).sha  # the order must not change while we read
        dataset = datasets.load_dataset(source, config, split=split, revision=revision, streaming=True)
    except (FileNotFoundError, ConnectionError, HTTPError, HFValidationError) as error:  # HTTPError: no network, too
        reason = str(error).strip().partition("\n")[0]
        raise MissingError(f"There is no dataset {source!r} on the Hub, nor such a folder ({reason}).") from error
    except ValueError as error:  # `datasets` lists the splits and configurations that there are
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"The dataset {source} cannot be read so: {reason}") from error
    identity = {"dataset": source, "config": config, "split": split, "revision": revision}
    return _stream(dataset, column, None, identity, source)


def _stream(dataset, column: str | None, names: list[str] | None, identity: dict, source: str) -> Stream:
    if dataset.features is None:
        dataset = dataset._resolve_features()  # a stream may know its columns only from its first row
    wanted = (column,) if column is not None else IMAGE_COLUMNS
    column = next((name for name in wanted if isinstance(dataset.features.get(name), datasets.Image)), None)
    if column is None:
        raise UserError(
            f"{source} has no column of images ({', '.join(wanted)}); its columns are {', '.join(dataset.features)}."
        )
    dataset = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    names = names or [f"{unit:05d}" for unit in range(dataset.num_shards)]
    return Stream(dataset, column, names, identity | {"column": column})
