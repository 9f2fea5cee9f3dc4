"""Pseudo-labels for large collections of images, as Parquet shards."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from hf_fst.data.images import read_bytes
from hf_fst.data.labels import IGNORED
from hf_fst.errors import DataError, UserError, refuse_below
from hf_fst.evaluation.inference import WHOLE, Look
from hf_fst.prediction.files import claimed, reason, write_json, write_whole
from hf_fst.prediction.segmenter import Segmenter, ahead, batches, one_by_one_if_it_fails
from hf_fst.prediction.shards import DATA, finished, png, read_footers, shard_path, write_shard
from hf_fst.prediction.sources import Folder, Row, Stream, open_source

SETTINGS_FILE = "label.json"
PATIENCE = timedelta(days=30)  # processes that are done wait for the others
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: {data}/train-*.parquet
tags:
- pseudo-labels
task_categories:
- image-segmentation
---

# Pseudo-labels

Labels that the {which} `{teacher}` ({revision}) gave to images, {protocol}{threshold}. Written by `hf-fst label`.

| column | |
| --- | --- |
| `image` | the image as it was |
| `label` | class of each pixel, a PNG of indices (`id2label.json`); 255 is ignored |
| `confidence` | probability of that class, a gray PNG of 8 bits: 255 times the probability, rounded |
| `mean_confidence` | mean probability over all pixels |
| `class_shares` | share of all pixels that each class has in `label`, in the order of the ids |
| `teacher`, `teacher_revision` | the model, and the hash of its weights |
| `source` | where the image is from |
"""


def label_collection(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    which: str = "teacher",
    confidence_threshold: float = 0.0,
    shard_size: int = 500,
    split: str = "train",
    image: str | None = None,
    config: str | None = None,
    dataset_revision: str | None = None,
    look: Look = WHOLE,
    batch_size: int = 1,
    num_workers: int = 0,
    local_files: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Labels every image of a collection exactly once, and writes Parquet shards that `datasets.load_dataset` reads.

    Which images a shard holds depends on the collection and `shard_size` alone, not on the number of processes, and a
    shard appears whole or not at all. A run after one that was stopped makes the shards that are missing, and those whose
    images were replaced, so the result is the same. On several processes (`accelerate launch`, `torchrun`) each takes
    every n-th file of a streamed collection, or every n-th shard where there are fewer files than processes.

    Args:
        model: directory or Hub id.
        source: a folder of images, Parquet files or WebDataset shards (.tar), such a file, or a Hub id; streamed.
        output: the folder that is written to: `data/*.parquet`, `id2label.json`, `palette.json`, a dataset card, and
            the settings in `label.json`.
        which, look, trust_remote_code: see `Segmenter`.
        confidence_threshold: pixels whose class is less probable become 255 (ignored), in 0..1.
        shard_size: images in a shard, at most.
        split, config, dataset_revision: of a dataset on the Hub.
        image: the column with the images; by default the first that is usual.
        batch_size: images that go through the network at once, those of one size together.
        num_workers: threads that read images ahead.
        local_files: whether rows of a table may name images by a path on this machine, which are then in the shards.
        overwrite: start over where `output` holds the results of other settings.

    Returns:
        counts of shards and images in the whole collection and in this run, `failed` (a list of `{"file", "reason"}` of
        images that are left out), mean confidence, class shares, seconds and images per second.

    Raises:
        UserError: for options, models and collections that do not fit, or that changed.
        RunError: where a shard cannot be written.
    """
    if not 0 <= confidence_threshold <= 1:
        raise UserError(f"confidence_threshold is {confidence_threshold}; use a number from 0 to 1.")
    refuse_below(1, shard_size=shard_size, batch_size=batch_size)
    refuse_below(0, num_workers=num_workers)
    output = Path(output)
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
    segmenter = Segmenter(model, which, look=look, device=state.device, trust_remote_code=trust_remote_code)
    if len(segmenter.names) > IGNORED:
        raise UserError(f"The model has {len(segmenter.names)} classes, but masks hold {IGNORED} at most.")
    collection = open_source(str(source), split, image, config, dataset_revision, (output / DATA,), local_files)
    settings = {
        "collection": collection.identity,
        "confidence_threshold": confidence_threshold,
        "shard_size": shard_size,
        **segmenter.settings,
    }
    with claimed(output, SETTINGS_FILE, settings, [DATA], overwrite):
        if state.is_main_process:
            _write_notes(output, segmenter, confidence_threshold)
            _remove_replaced(output, collection, shard_size)
        state.wait_for_everyone()
        footers = read_footers(output)
        started = time.perf_counter()
        done_before = sum(footer["images"] + len(footer["failed"]) for footer in footers.values())
        mine = _Labeling(segmenter, confidence_threshold, batch_size, num_workers)
        known = collection.count is not None and state.num_processes == 1
        total = collection.count - done_before if known else None
        shown = progress and state.is_main_process
        with tqdm(total=total, desc="labeling", unit="image", disable=not shown) as bar:
            for unit, chunk, rows, last in _chunks(collection, shard_size, footers, state):
                stamp = collection.stamp(unit, chunk, shard_size)
                mine.write(shard_path(output, unit, chunk), rows, last, bar, stamp)
        now = sum(gather_object([mine.images])) if state.num_processes > 1 else mine.images  # waits for all
        seconds = time.perf_counter() - started
        footers = read_footers(output)
    images = sum(footer["images"] for footer in footers.values())
    sums = [np.array(footer["share_sums"]) for footer in footers.values()]
    return {
        "teacher": segmenter.name,
        "which": which,
        "revision": segmenter.revision,
        "protocol": segmenter.protocol,
        "output": str(output),
        "shards": len(footers),
        "images": images,
        "labeled_now": now,
        "mean_confidence": sum(footer["confidence_sum"] for footer in footers.values()) / max(images, 1),
        "class_shares": dict(zip(segmenter.names, (sum(sums) / max(images, 1)).tolist(), strict=True)),
        "failed": [entry for _, footer in sorted(footers.items()) for entry in footer["failed"]] + collection.failed,
        "seconds": seconds,
        "images_per_second": now / seconds,
        "processes": state.num_processes,
    }


def _remove_replaced(output: Path, collection: Folder | Stream, shard_size: int) -> None:
    """Removes the shards whose images were replaced since, so that they are made again."""
    for (unit, chunk), footer in read_footers(output).items():
        if footer.get("stamp") not in (None, collection.stamp(unit, chunk, shard_size)):
            shard_path(output, unit, chunk).unlink()


def _chunks(
    collection: Folder | Stream, shard_size: int, footers: dict, state: PartialState
) -> Iterator[tuple[int, int, Iterator[Row], Callable[[], bool]]]:
    """The shards that this process has to make: (unit, chunk, its rows, a function that tells, once these are taken,
    whether it is the unit's last)."""
    rank, world = state.process_index, state.num_processes
    whole_units = collection.units >= world
    for unit in range(collection.units):
        if (whole_units and unit % world != rank) or finished(footers, unit):
            continue
        rows = _Peekable(collection.rows(unit))
        for chunk in count():
            part = islice(rows, shard_size)
            if (unit, chunk) not in footers and (whole_units or (unit + chunk) % world == rank):
                yield unit, chunk, part, rows.is_at_end
            deque(part, maxlen=0)  # another process has them, or an earlier run
            if rows.is_at_end():
                break


class _Peekable:
    """An iterator that can tell whether something is left."""

    def __init__(self, items: Iterator):
        self.items, self.waiting = items, deque()

    def __iter__(self):
        return self

    def __next__(self):
        return self.waiting.popleft() if self.waiting else next(self.items)

    def is_at_end(self) -> bool:
        if not self.waiting:
            self.waiting.extend(islice(self.items, 1))
        return not self.waiting


class _Labeling:
    """Turns rows into shards."""

    def __init__(self, segmenter: Segmenter, threshold: float, batch_size: int, num_workers: int):
        self.segmenter, self.threshold = segmenter, threshold
        self.batch_size, self.num_workers = batch_size, num_workers
        self.images = 0

    def write(
        self, path: Path, rows: Iterator[Row], last: Callable[[], bool], bar: tqdm, stamp: str | None = None
    ) -> None:
        footer = {"images": 0, "failed": [], "confidence_sum": 0.0, "share_sums": [0.0] * len(self.segmenter.names)}
        footer["stamp"] = stamp

        def labeled() -> Iterator[dict[str, Any]]:
            for batch in batches(ahead(self._read, rows, self.num_workers), self.batch_size):
                for row in self._label(batch, footer):
                    footer["images"] += 1
                    footer["confidence_sum"] += row["mean_confidence"]
                    footer["share_sums"] = np.add(footer["share_sums"], row["class_shares"]).tolist()
                    yield row
                bar.update(len(batch))
            footer["last"] = last()

        write_shard(path, labeled(), footer)
        self.images += footer["images"]

    def _read(self, row: Row) -> tuple:
        """The row with its bytes, and the picture, or why there is none."""
        if isinstance(row.image, DataError):
            return row, None, row.image
        path = row.image["path"]
        try:
            content = read_bytes(row.image)
            stored = {"bytes": content, "path": Path(path or row.source).name}
            return row, stored, self.segmenter.read({"bytes": content, "path": row.source})
        except DataError as error:  # its words are published, our folders are not
            return row, None, DataError(str(error).replace(path, row.source) if path else f"{row.source}: {error}")

    def _label(self, batch: list[tuple], footer: dict[str, Any]) -> Iterator[dict[str, Any]]:
        results = one_by_one_if_it_fails(self.segmenter.confident_classes, [picture for *_, picture in batch])
        for (row, stored, _), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                footer["failed"].append({"file": row.source, "reason": reason(result)})
                continue
            classes, confidence = result
            classes = np.where(confidence < self.threshold, np.uint8(IGNORED), classes)
            counts = np.bincount(classes.ravel(), minlength=IGNORED + 1)[: len(self.segmenter.names)]
            yield {
                "image": stored,
                "label": png(classes, self.segmenter.palette),
                "confidence": png(np.rint(255 * confidence).astype(np.uint8)),
                "mean_confidence": float(confidence.mean(dtype=np.float64)),
                "class_shares": (counts / classes.size).tolist(),
                "teacher": self.segmenter.name,
                "teacher_revision": self.segmenter.revision,
                "source": row.source,
            }


def _write_notes(output: Path, segmenter: Segmenter, threshold: float) -> None:
    """Class names, colors, and a dataset card."""
    write_json(output / "id2label.json", {str(index): name for index, name in enumerate(segmenter.names)})
    write_json(output / "palette.json", segmenter.palette.tolist())
    text = CARD.format(
        data=DATA,
        which=segmenter.which,
        teacher=segmenter.name,
        revision=segmenter.revision,
        protocol=segmenter.protocol,
        threshold=f"; pixels less certain than {threshold} are ignored" if threshold else "",
    )
    write_whole(output / "README.md", lambda file: file.write(text.encode()))
