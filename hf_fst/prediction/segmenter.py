"""A trained model together with what it needs to look at pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision import tv_tensors
from transformers import PreTrainedModel

from hf_fst.data.about import ABOUT
from hf_fst.data.images import decode_pixels, file_of
from hf_fst.data.labels import plain_names
from hf_fst.drawing.overlays import default_palette
from hf_fst.errors import DataError
from hf_fst.evaluation.inference import WHOLE, Look, fitting, predict, segment
from hf_fst.evaluation.runner import Prepare
from hf_fst.models.loading import class_names, load, words
from hf_fst.publishing.facts import FACTS_FILE, RunFacts


class Picture(NamedTuple):
    """An image (H, W, 3) uint8, upright, and what the network sees of it, float32 (3, h, w)."""

    pixels: np.ndarray
    pixel_values: torch.Tensor


class Segmenter:
    """Student or teacher of a run, any saved model or one on the Hub, with its image processor, names and colors.

    Args:
        model: directory or Hub id.
        which: "teacher" or "student" of a training run.
        look: how it looks at images.
        device: where the network computes; the accelerator, if there is one, by default.
        trust_remote_code: whether code that comes with the model may run; it is never asked for.

    Attributes: `name` (Hub id, or the directory's name without its path), `names` and `palette` of the classes,
    `revision` (see `revision_of`), `settings` (what its results depend on, as plain data).

    Raises:
        UserError: for options out of range, and a model that is not there.
    """

    def __init__(
        self,
        model: str | Path,
        which: str = "teacher",
        *,
        look: Look = WHOLE,
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
    ):
        network, self.processor = load(model, which, trust_remote_code=trust_remote_code)
        look = fitting(network, look)
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self.network: PreTrainedModel = network.to(device).eval()
        self.prepare = Prepare(self.processor, look)
        self.view, self.which = look, which
        self.name = Path(model).resolve().name if Path(model).is_dir() else str(model)
        self.names = class_names(network.config)
        self.kind = np.uint8 if len(self.names) <= 256 else np.uint16  # of ids
        self.palette = palette_of(model, self.names)
        self.revision = revision_of(self.network)
        self.protocol = look.protocol
        self.settings = {"model": self.revision, "classes": self.names, **asdict(look)}

    def read(self, stored: dict[str, Any]) -> Picture:
        """Reads a stored image `{"path", "bytes"}`. Raises `DataError`, naming it, where it is missing or broken."""
        pixels = decode_pixels(stored)[0].permute(1, 2, 0).numpy()
        try:
            return self.look(pixels)
        except RuntimeError as error:  # torch's, for sides of no pixel or of more than there is memory for
            raise DataError(f"{file_of(stored)} cannot be brought to the size of the view ({words(error)})") from error

    def look(self, pixels: np.ndarray) -> Picture:
        """Prepares an image (H, W, 3) uint8."""
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()
        pixel_values, _ = self.prepare(tv_tensors.Image(image), None)
        return Picture(pixels, pixel_values)

    def classes(self, pictures: Sequence[Picture]) -> list[np.ndarray]:
        """The class of each pixel, uint8 (H, W) (uint16 from 256 classes on), at the images' full size."""
        return self._each(pictures, lambda found: found.cpu().numpy().astype(self.kind), predict)

    def confident_classes(self, pictures: Sequence[Picture]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The class of each pixel as `classes` gives it, and its probability, float32 (H, W) in 0..1."""

        def both(logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
            # log-probabilities, which several views give, stay what they are under a softmax
            confidence, found = logits.softmax(dim=0).max(dim=0)
            return found.cpu().numpy().astype(self.kind), confidence.cpu().numpy()

        return self._each(pictures, both, segment)

    def _each(self, pictures: Sequence[Picture], finish: Callable, function: Callable) -> list:
        """Pictures of one size go through the network together."""
        groups: dict[tuple, list[int]] = {}
        for index, picture in enumerate(pictures):
            groups.setdefault((picture.pixels.shape[:2], picture.pixel_values.shape), []).append(index)
        results: list = [None] * len(pictures)
        for (size, _), members in groups.items():
            batch = torch.stack([pictures[index].pixel_values for index in members])
            found = function(self.network, batch.to(self.network.device, self.network.dtype), size, self.view)
            for index, one in zip(members, found, strict=True):
                results[index] = finish(one)
        return results


def palette_of(model: str | Path, names: list[str]) -> np.ndarray:
    """Colors of the classes, uint8 (C, 3): those of the run, else of a known dataset with these classes, else our own."""
    if (Path(model) / FACTS_FILE).is_file():
        facts = RunFacts.load(model)
        if len(facts.palette or ()) == len(names) and plain_names(facts.classes) == plain_names(names):
            return np.array(facts.palette, dtype=np.uint8)
    known = (about.classes for about in ABOUT.values() if about.classes is not None)
    palette = next((list(own.values()) for own in known if plain_names([*own]) == plain_names(names)), None)
    return default_palette(len(names)) if palette is None else np.array(palette, dtype=np.uint8)


def revision_of(network: PreTrainedModel) -> str:
    """A name for these very weights: `sha256:` and 16 digits of the hash of all tensors, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()[:16]}"


def ahead(function: Callable, items: Iterable, workers: int) -> Iterator:
    """Gives `function(item)` in the order of the items, computed by threads a few items ahead; 0 workers: in place."""
    if workers == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as threads:
        items = iter(items)
        waiting = [threads.submit(function, item) for item in islice(items, 2 * workers)]
        while waiting:
            done = waiting.pop(0)
            waiting += [threads.submit(function, item) for item in islice(items, 1)]
            yield done.result()


def batches(items: Iterable, size: int) -> Iterator[list]:
    """The items in lists of `size`; the last may be shorter."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def one_by_one_if_it_fails(function: Callable[[list], list], batch: list) -> list:
    """`function(batch)`; if that fails, each item by itself, with the error as the result of a bad one.

    What does not fit into memory together may do so alone, and one odd image does not spoil its neighbors. Errors in the
    batch are their own results.
    """
    good = [item for item in batch if not isinstance(item, Exception)]
    try:
        results = function(good) if good else []
    except (RuntimeError, ValueError) as error:
        results = [error] if len(good) == 1 else [one_by_one_if_it_fails(function, [item])[0] for item in good]
    found = iter(results)
    return [item if isinstance(item, Exception) else next(found) for item in batch]
