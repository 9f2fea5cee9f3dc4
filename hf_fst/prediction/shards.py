"""Parquet shards of pseudo-labels, each written whole, and their footers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_fst.errors import UserError
from hf_fst.prediction.files import write_whole
from hf_fst.prediction.predict import index_image

DATA = "data"
FOOTER = b"hf_fst"
ROWS_TOGETHER = 32  # the row group: what is held in memory, and what a reader reads at once
# `label` is an Image for datasets, so that it loads without this package; its names are in id2label.json
FEATURES = datasets.Features(
    image=datasets.Image(),
    label=datasets.Image(),
    confidence=datasets.Image(),
    mean_confidence=datasets.Value("float32"),
    class_shares=datasets.List(datasets.Value("float32")),
    teacher=datasets.Value("string"),
    teacher_revision=datasets.Value("string"),
    source=datasets.Value("string"),
)


def shard_path(output: Path, unit: int, chunk: int) -> Path:
    return output / DATA / f"train-{unit:05d}-{chunk:05d}.parquet"


def png(pixels: np.ndarray, palette: np.ndarray | None = None) -> dict[str, Any]:
    """A gray or palette image as a stored PNG."""
    buffer = BytesIO()
    index_image(pixels, palette)(buffer)
    return {"bytes": buffer.getvalue(), "path": None}


def write_shard(path: Path, rows: Iterable[dict[str, Any]], footer: dict[str, Any]) -> None:
    """Writes a shard whole or not at all: rows with the columns of `FEATURES`, taken as they come, and plain data for
    the file's metadata, which is read after the last row was taken."""

    def write(file) -> None:
        with pq.ParquetWriter(file, FEATURES.arrow_schema, compression="snappy") as writer:
            group = []
            for row in rows:
                group.append(row)
                if len(group) == ROWS_TOGETHER:
                    writer.write_table(pa.Table.from_pylist(group, schema=FEATURES.arrow_schema))
                    group = []
            if group:
                writer.write_table(pa.Table.from_pylist(group, schema=FEATURES.arrow_schema))
            writer.add_key_value_metadata({FOOTER: json.dumps(footer).encode()})

    write_whole(path, write)


def read_footers(output: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """The footer of each shard that is there, by unit and chunk. Raises `UserError` for a file that is no shard."""
    found = {}
    for path in sorted((output / DATA).glob("*.parquet")):
        named = re.fullmatch(r"train-(\d+)-(\d+)\.parquet", path.name)
        try:
            metadata = pq.read_metadata(path).metadata or {}
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}); remove it, it will be made again.") from error
        if named is None or FOOTER not in metadata:
            raise UserError(f"{path} was not written by hf-fst label; remove it from the folder.")
        found[int(named[1]), int(named[2])] = json.loads(metadata[FOOTER])
    return found


def finished(footers: dict[tuple[int, int], dict[str, Any]], unit: int) -> bool:
    """Whether all chunks of a unit are there, up to the one marked as the last."""
    chunk = 0
    while (unit, chunk) in footers:
        if footers[unit, chunk]["last"]:
            return True
        chunk += 1
    return False
