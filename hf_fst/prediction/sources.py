"""Large collections of images in a fixed order: a folder, Parquet files, WebDataset shards, a dataset on the Hub."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import datasets
import pyarrow.parquet as pq
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from hf_fst.data.files import SUFFIXES
from hf_fst.data.hub import IMAGE_COLUMNS, holds_images, loading
from hf_fst.errors import DataError, MissingError, RunError, UserError, in_a_line
from hf_fst.prediction.files import fingerprint, list_inputs, stamp

STREAMED = {".parquet": "parquet", ".tar": "webdataset"}
# what reading a file that is cut or has other columns, or a connection that breaks, raises, Arrow's errors among them
BROKEN = (OSError, ValueError, TypeError, NotImplementedError, EOFError, HTTPError, tarfile.TarError, zlib.error)
REMOTE, ARCHIVES = ("hf", "http", "https"), {"zip", "gzip", "bz2", "xz", "zstd", "lz4"}


class Row(NamedTuple):
    """A stored image `{"path", "bytes"}`, or why there is none, and its origin: a name that no other row has."""

    source: str
    image: dict[str, Any] | DataError


@dataclass
class Folder:
    """Image files; one unit. `failed` are those that cannot be used."""

    files: list[Path]
    root: Path
    identity: dict[str, Any]
    failed: list[dict[str, str]]
    units: ClassVar[int] = 1

    @property
    def count(self) -> int | None:
        return len(self.files)

    def rows(self, unit: int) -> Iterator[Row]:
        for file in self.files:
            yield Row(file.relative_to(self.root).as_posix(), {"path": str(file), "bytes": None})

    def stamp(self, unit: int, chunk: int, size: int) -> str | None:
        """Changes if one of the `size` files of a chunk is replaced."""
        return stamp(self.files[chunk * size : (chunk + 1) * size])


@dataclass
class Stream:
    """A streamed dataset; a unit is one of its files, so that processes can read different ones.

    Args:
        files: on this machine, one for each unit or one for all; none for a dataset on the Hub.
        local_files: whether rows may name images by a path on this machine, which are published with the others.
    """

    dataset: datasets.IterableDataset
    column: str
    names: list[str]
    identity: dict[str, Any]
    files: list[Path]
    failed: list[dict[str, str]]
    local_files: bool
    count: ClassVar[None] = None

    @property
    def units(self) -> int:
        return len(self.names)

    def rows(self, unit: int) -> Iterator[Row]:
        part = enumerate(self.dataset.shard(num_shards=self.units, index=unit))
        while True:
            try:
                number, row = next(part)
            except StopIteration:
                return
            except BROKEN as error:
                if not self.files:
                    raise RunError(
                        f"The dataset cannot be read further ({in_a_line(error)}); run the same command again to "
                        "continue."
                    ) from error
                fault = f"is damaged ({in_a_line(error)})"
                if len(self.files) == self.units and _is_empty(self.files[unit]):
                    fault = "has no rows"
                yield Row(self.names[unit], DataError(f"{self.names[unit]} {fault}."))
                return
            name = f"{self.names[unit]}#{number}"
            yield Row(name, self._checked(name, row[self.column]))

    def _checked(self, name: str, image: dict[str, Any] | None) -> dict[str, Any] | DataError:
        if image is None:
            return DataError(f"{name} is null; every row needs an image.")
        path = image["path"]
        if image["bytes"] is None and path is not None and not (self.local_files or is_remote(path)):
            return DataError(
                f"{name} holds no image but names a file on this machine, {Path(path).name!r}, which would be published "
                "with the labels; give --local_files if it may be."
            )
        return image

    def stamp(self, unit: int, chunk: int, size: int) -> str | None:
        """Changes if the file of a unit is replaced."""
        return stamp(self.files[unit : unit + 1] if len(self.files) == self.units else self.files)


def _is_empty(file: Path) -> bool:
    """Whether a file is a table without rows, which Arrow does not read."""
    try:
        return pq.read_metadata(file).num_rows == 0
    except BROKEN:
        return False


def is_remote(path: str) -> bool:
    """Whether a path, in which `::` may lead into archives, is a URL and not a file on this machine."""
    *inside, place = [hop.partition("://")[0] for hop in path.split("::")]
    return "://" in path.split("::")[-1] and place in REMOTE and set(inside) <= ARCHIVES


def open_source(
    source: str,
    split: str = "train",
    column: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    skip: tuple[Path, ...] = (),
    local_files: bool = False,
) -> Folder | Stream:
    """Opens a folder (the folders in it included) of images, Parquet files or WebDataset shards (`.tar`), such a file,
    or a dataset on the Hub. Its `identity` changes where the collection does.

    Args:
        source: path or Hub id.
        split, config, revision: of a dataset on the Hub.
        column: the column with the images; None takes the first of `hf_fst.data.hub.IMAGE_COLUMNS`.
        skip: folders that are not looked into.
        local_files: see `Stream`.

    Raises `MissingError` where there is nothing, `UserError` for a collection of two kinds or without images.
    """
    path = Path(source)
    if not path.exists() and not path.is_symlink():
        if path.is_absolute() or source.startswith(".") or len(path.parts) > 2 or source.endswith("/"):
            raise MissingError(f"There is no {source}; give a folder, a Parquet or .tar file, or a Hub id.")
        with loading(source):
            revision = HfApi().dataset_info(source, revision=revision).sha  # the order must not change while we read
            dataset = datasets.load_dataset(source, config, split=split, revision=revision, streaming=True)
        identity = {"dataset": source, "config": config, "split": split, "revision": revision}
        return _stream(dataset, column, None, identity, source, [], [], local_files)
    files, _, failed = list_inputs(path, (*STREAMED, *SUFFIXES), skip)
    root = path if path.is_dir() else path.parent
    kinds = {file.suffix.lower() for file in files} & set(STREAMED)
    if len(kinds) > 1:
        raise UserError(f"{source} holds Parquet files and .tar files; give a folder with one kind.")
    if kinds:
        files = [file for file in files if file.suffix.lower() in kinds]
    given = {"image": None if kinds else column, "config": config, "revision": revision}
    for name, value in given.items():
        if value is not None:
            raise UserError(f"{name} is {value!r}, but {source} holds files, which have none; leave it out.")
    identity = {"files": len(files), "fingerprint": fingerprint(files, root)}
    if not kinds:
        return Folder(files, root, identity, failed)
    kind = STREAMED[kinds.pop()]
    names = [file.relative_to(root).as_posix() for file in files]
    try:
        dataset = datasets.load_dataset(kind, data_files=[str(file) for file in files], split="train", streaming=True)
        names = names if dataset.num_shards == len(names) else None
        return _stream(dataset, column, names, identity, source, files, failed, local_files)
    except UserError:
        raise
    except BROKEN as error:  # its first file tells the columns
        raise UserError(f"{files[0]} cannot be read ({in_a_line(error)}); replace it or remove it.") from error


def _stream(
    dataset, column: str | None, names: list[str] | None, identity: dict, source: str, files, failed, local_files
) -> Stream:
    if dataset.features is None:
        dataset = dataset._resolve_features()  # a stream may know its columns only from its first row
    wanted = (column,) if column is not None else IMAGE_COLUMNS
    column = next((name for name in wanted if holds_images(dataset.features.get(name), paths=False)), None)
    if column is None:
        empty = [name for name in wanted if dataset.features.get(name) == datasets.Value("null")]
        if empty:
            raise UserError(
                f"The column {empty[0]!r} of {source} has no image in any row of its first file; take it out."
            )
        found = ", ".join(
            f"{name} ({getattr(kind, 'dtype', type(kind).__name__)})" for name, kind in dataset.features.items()
        )
        raise UserError(
            f"{source} has no column of images or their bytes under the name {' or '.join(wanted)}; its columns are "
            f"{found}: name another with --image, or store the bytes of the files."
        )
    dataset = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    names = names or [f"{unit:05d}" for unit in range(dataset.num_shards)]
    identity = identity | {"column": column} | ({"local_files": True} if local_files else {})
    return Stream(dataset, column, names, identity, files, failed, local_files)
