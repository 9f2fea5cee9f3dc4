"""Pairs of labeled and unlabeled images, drawn reproducibly."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from hf_fst.data.items import tidy
from hf_fst.data.labels import IGNORED
from hf_fst.errors import DataError, UserError, refuse_below

# The purpose of a random number, the first word after the seed: no two purposes share a stream.
_LABELED, _UNLABELED, _AUGMENT, _AHEAD, _AGAIN = range(5)
BAD_IMAGES = ("stop", "skip")
SKIPPED = "skipped"  # key of an item, and of a batch, for the sentences about images that could not be read
MOST_AGAIN = 100  # images in a row that may be unreadable


@contextmanager
def seeded(*words: int) -> Iterator[None]:
    """Runs a block with seeded random states (torch on the CPU, numpy, random) and restores the old ones."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    low, high, third, fourth = (int(word) for word in np.random.SeedSequence(words).generate_state(4))
    # The generator of the CPU alone: torch.manual_seed would also reset the devices, where dropout draws.
    torch.default_generator.manual_seed(low + (high << 32))
    np.random.seed(third)
    random.seed(fourth)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


class Pairs(Dataset):
    """Pairs each labeled image with `unlabeled_per_labeled` unlabeled ones; indexed by the number of the draw.

    `epoch, position = divmod(draw, len(pairs))`. Each epoch goes through seeded permutations of both sets, the shorter
    one repeatedly, so every image occurs at least once. The random state of an item depends only on (seed, draw): the
    crops are the same for any number of workers or processes, and an image drawn twice gets two crops.
    `pairs["ahead", step, k, position]` is an item for a look-ahead on other images, drawn uniformly by
    (seed, step, k, position).

    An item is a flat dict: `pixel_values` (3,H,W), `labels` (H,W), `valid` if known (False on padding), and with
    unlabeled images `unlabeled_pixel_values` and, if that set yields them, `unlabeled_valid` and `unlabeled_labels`
    (for diagnostics). With `partner`, a second view of each unlabeled image follows as `unlabeled_partner_pixel_values`
    and `unlabeled_partner_valid`. All `unlabeled_*` have a leading dimension if `unlabeled_per_labeled` > 1, which
    `collate` removes.

    Args:
        labeled: yields dicts with `pixel_values` and `labels` (a `View`).
        unlabeled: yields dicts with `pixel_values` (a `View`), or None.
        seed: an integer >= 0.
        unlabeled_per_labeled: unlabeled images for each labeled one, >= 1.
        multiple_of: rounds the length up to a multiple of this with further draws. Processes x batch size avoids short
            batches, which would be filled with draws that the epoch already had.
        num_labels: number of classes of the model; larger ids are refused here, not on the device.
        partner: whether each unlabeled image comes in two views.
        on_bad_image: "stop" raises for an unreadable image; "skip" replaces it by one that depends only on (seed, draw),
            and the item says so under `skipped`.

    Raises:
        UserError: a set is empty, or a number is out of range; for an item also as `tidy`.
    """

    def __init__(
        self,
        labeled: Dataset,
        unlabeled: Dataset | None = None,
        seed: int = 0,
        unlabeled_per_labeled: int = 1,
        multiple_of: int = 1,
        num_labels: int | None = None,
        partner: bool = False,
        on_bad_image: str = "stop",
    ):
        if len(labeled) == 0:
            raise UserError("The labeled set is empty; give at least one labeled image.")
        if unlabeled is not None and len(unlabeled) == 0:
            raise UserError("The unlabeled set is empty; give at least one unlabeled image, or None to train without.")
        refuse_below(0, seed=seed)
        refuse_below(1, unlabeled_per_labeled=unlabeled_per_labeled, multiple_of=multiple_of)
        self.labeled, self.unlabeled = labeled, unlabeled
        self.seed, self.unlabeled_per_labeled, self.num_labels = seed, unlabeled_per_labeled, num_labels
        self.partner = partner
        self.on_bad_image = on_bad_image
        positions = len(labeled)
        if unlabeled is not None:
            positions = max(positions, -(-len(unlabeled) // unlabeled_per_labeled))
        self.length = -(-positions // multiple_of) * multiple_of
        self._permutations: dict[int, tuple[tuple[int, int], np.ndarray]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: int | tuple) -> dict[str, torch.Tensor]:
        if isinstance(draw, tuple):
            _, step, k, position = draw
            words = (_AHEAD, step, k, position)
            generator = np.random.default_rng([self.seed, *words, 0])
            index = int(generator.integers(len(self.labeled)))
            others = []
            if self.unlabeled is not None:
                others = generator.integers(len(self.unlabeled), size=self.unlabeled_per_labeled)
        else:
            draw = int(draw)
            epoch, position = divmod(draw, self.length)
            words = (_AUGMENT, draw)
            index = self._index(_LABELED, len(self.labeled), epoch, position)
            first = position * self.unlabeled_per_labeled
            others = [
                self._index(_UNLABELED, len(self.unlabeled), epoch, first + i)
                for i in range(self.unlabeled_per_labeled if self.unlabeled is not None else 0)
            ]
        with seeded(self.seed, *words):
            return self._item(index, [int(other) for other in others], words)

    def _item(self, index: int, others: list[int], words: tuple[int, ...]) -> dict[str, torch.Tensor]:
        skipped: list[str] = []
        index, item = self._read(self.labeled, "labeled", index, (*words, 0), skipped)
        if "labels" not in item:
            raise UserError(
                f"Item {index} of the labeled set yields no labels; give a dataset with `labels` (H,W), without rows "
                "that have none."
            )
        read = [
            self._read(self.unlabeled, "unlabeled", other, (*words, 1 + i), skipped) for i, other in enumerate(others)
        ]
        views = [view for _, view in read]
        partners = [tidy(self.unlabeled[other]) for other, _ in read] if self.partner else []
        for prefix, shown in (("unlabeled_", views), ("unlabeled_partner_", partners)):
            for key in ("pixel_values", "labels", "valid"):
                if shown and key in shown[0]:
                    values = [view[key] for view in shown]
                    item[prefix + key] = values[0] if self.unlabeled_per_labeled == 1 else torch.stack(values)
        return item | {SKIPPED: skipped} if skipped else item

    def _read(
        self, dataset: Dataset, name: str, index: int, words: tuple[int, ...], skipped: list[str]
    ) -> tuple[int, dict[str, torch.Tensor]]:
        """A checked item of the set `name`, or its replacement, and its index."""
        for again in range(MOST_AGAIN):
            try:
                item = dataset[index]
            except (DataError, OSError) as error:
                sentence = str(error)
                if not isinstance(error, UserError):  # from a user's own dataset
                    sentence = f"Item {index} of the {name} set cannot be read ({error}); replace it or leave it out."
                if self.on_bad_image == "stop":
                    raise DataError(sentence) from error
                skipped.append(sentence)
                index = int(np.random.default_rng([self.seed, _AGAIN, *words, again]).integers(len(dataset)))
            else:
                where = f"item {index} of the {name} set"
                item = tidy(item, where)
                labels, pixels = item.get("labels"), item["pixel_values"]
                if labels is None or self.num_labels is None:
                    return index, item
                if labels.shape != pixels.shape[-2:]:
                    raise UserError(
                        f"In {where} labels are {tuple(labels.shape)}, but its pixel_values {tuple(pixels.shape)}; give "
                        "one id per pixel."
                    )
                check_ids(labels, self.num_labels, f"In {where} labels")
                return index, item
        raise DataError(f"{MOST_AGAIN} images of the {name} set in a row could not be read, the last: {skipped[-1]}")

    def _index(self, stream: int, size: int, epoch: int, position: int) -> int:
        repetition, offset = divmod(position, size)
        key, permutation = self._permutations.get(stream, (None, None))
        if key != (epoch, repetition):
            permutation = np.random.default_rng([self.seed, stream, epoch, repetition]).permutation(size)
            self._permutations[stream] = ((epoch, repetition), permutation)
        return int(permutation[offset])


def check_ids(labels: torch.Tensor, num_labels: int, name: str) -> None:
    """Checks that the ids of labels, of any shape, are classes of the model. Raises `UserError`."""
    used = labels[(labels != IGNORED) & (labels != -100)]
    if used.numel() and not 0 <= used.min() <= used.max() < num_labels:
        raise UserError(
            f"{name} have ids from {used.min()} to {used.max()}, but the model has the classes 0 to {num_labels - 1}, "
            f"and {IGNORED} and -100 are ignored; map the ids."
        )


class Evaluated(Dataset):
    """The items of a `dataset` for evaluation, checked like those of `Pairs`, but with labels of any size."""

    def __init__(self, dataset: Dataset, name: str, num_labels: int):
        self.dataset, self.name, self.num_labels = dataset, name, num_labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        where = f"item {index} of the {self.name} set"
        item = tidy(self.dataset[index], where)
        if "labels" in item:
            check_ids(item["labels"], self.num_labels, f"In {where} labels")
        return item


class DrawSampler(Sampler):
    """Yields the draw numbers of an epoch in order; `pairs` already permutes the images.

    `set_epoch(e)` makes the next pass the e-th epoch. Sharding by batches (accelerate) gives each process its own
    draws.
    """

    def __init__(self, pairs: Pairs):
        self.pairs = pairs
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, >= 0, of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * len(self.pairs)
        return iter(range(first, first + len(self.pairs)))


class AheadSampler(Sampler):
    """Endless batches of look-ahead draws: `count` groups for every `every`-th optimizer step from `step` on.

    A draw is `("ahead", step, k, position)`, `position` counting through the whole group of all processes, so that a
    group has the same images however it is cut into micro-batches of `batch_size` images and processes.
    """

    def __init__(
        self,
        step: int,
        count: int,
        micro_batches: int,
        batch_size: int,
        process_index: int = 0,
        num_processes: int = 1,
        every: int = 1,
    ):
        self.step, self.count, self.every = step, count, every
        self.micro_batches, self.batch_size = micro_batches, batch_size
        self.process_index, self.num_processes = process_index, num_processes

    def __iter__(self) -> Iterator[list[tuple]]:
        for step in itertools.count(self.step, self.every):
            for k, micro_batch in itertools.product(range(self.count), range(self.micro_batches)):
                first = (micro_batch * self.num_processes + self.process_index) * self.batch_size
                yield [("ahead", step, k, first + i) for i in range(self.batch_size)]


class HandsOnSkipped:
    """A collator that passes on what `Pairs` reports about skipped images, under `skipped`."""

    def __init__(self, collator: Callable[[list[dict]], dict]):
        self.collator = collator

    def __call__(self, items: list[dict]) -> dict:
        skipped = [sentence for item in items if isinstance(item, dict) for sentence in item.pop(SKIPPED, ())]
        batch = self.collator(items)
        if skipped:
            batch[SKIPPED] = skipped
        return batch


def collate(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """Batches items of `View` or `Pairs`: stacks each entry, or gives a list of tensors if sizes differ (evaluation).

    Entries `unlabeled_*` with a leading dimension r (`unlabeled_per_labeled` > 1) are concatenated to (B*r, ...).
    """
    paired = [isinstance(item, dict) and any(key.startswith("unlabeled_") for key in item) for item in items]
    items = [item if is_pair else tidy(item) for item, is_pair in zip(items, paired, strict=True)]
    if any(item.keys() != items[0].keys() for item in items):
        keys = " and ".join(dict.fromkeys(", ".join(item) for item in items))
        raise UserError(
            f"The items of a batch have different keys ({keys}); give each image the same, or leave it out."
        )
    batch = {}
    for key in items[0]:
        values = [item[key] for item in items]
        grouped = key.startswith("unlabeled_") and values[0].ndim == (4 if key.endswith("pixel_values") else 3)
        if len({value.shape for value in values}) > 1:
            batch[key] = [part for value in values for part in value] if grouped else values
        else:
            batch[key] = torch.cat(values) if grouped else torch.stack(values)
    return batch
