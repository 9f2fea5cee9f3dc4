"""Confusion matrices of label maps, and the scores that are read off them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

from hf_fst.errors import UserError

# Train ids of the Cityscapes classes that SYNTHIA shares (16), and of those without wall, fence and pole (13), as
# scored by the domain-adaptation literature: the model still has 19 classes, the mean is over the listed ones.
SYNTHIA_16 = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
SYNTHIA_13 = (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
CLASS_LISTS = {"cityscapes_19": tuple(range(19)), "synthia_16": SYNTHIA_16, "synthia_13": SYNTHIA_13}

# Labels that are never counted, whatever `ignore_index` is: the value of masks, and the value of torch's losses.
ALWAYS_IGNORED = (255, -100)

PIECE = 1 << 19  # pixels that are counted at once on a CPU
CACHED = 1 << 19  # bytes that are still in a CPU's cache when they are read a second time


def as_indices(values: Any, what: str = "predictions") -> torch.Tensor:
    """Class indices, of any shape, as a tensor of a signed or 8-bit integer type: from a tensor, an array, a PIL
    image, or nested lists. Raises `UserError`, calling them `what`, for values that are not integers."""
    if not isinstance(values, torch.Tensor):
        values = np.asarray(values)
        values = torch.from_numpy(values if values.flags.writeable else values.copy())  # torch refuses to promise
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise UserError(f"{what} are of type {values.dtype}, but class indices are integers: take the argmax first.")
    if values.dtype in (torch.uint16, torch.uint32, torch.uint64):  # few operations know these types
        values = values.to(torch.int64)
    return values


def pieces(predictions: torch.Tensor, labels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cuts flat maps into pieces, so that what is made of them stays small; not on other devices than CPUs."""
    size = PIECE if labels.device.type == "cpu" else max(len(labels), 1)
    return zip(predictions.split(size), labels.split(size), strict=True)


def narrowed(values: torch.Tensor) -> torch.Tensor | None:
    """Flat values as int16 [N], or None where one lies outside 0..255."""
    if values.dtype == torch.uint8 or values.numel() == 0:
        return values.to(torch.int16)
    if values.device.type != "cpu":
        low, high = torch.stack(torch.aminmax(values)).tolist()  # one transfer
        return values.to(torch.int16) if low >= 0 and high <= 255 else None
    array, bits = values.numpy(), 0
    narrow = np.empty(array.shape, dtype=np.int16)
    step = CACHED // array.itemsize
    for start in range(0, len(array), step):  # what is checked is copied at once, while it is in the cache
        part = array[start : start + step]
        # All values lie in 0..255 exactly if all their bits do; least and greatest value would take twice the time.
        bits |= int(np.bitwise_or.reduce(part))
        if not 0 <= bits <= 255:
            return None
        np.copyto(narrow[start : start + step], part, casting="unsafe")
    return torch.from_numpy(narrow)


def byte_pairs(predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | None:
    """Counts pairs of bytes of flat predictions and labels [N], of any integer type.

    Returns:
        int64 (256, columns), rows are labels, columns go up to the greatest prediction. None where a value lies
        outside 0..255.
    """
    bins, labels = narrowed(predictions), narrowed(labels)
    if bins is None or labels is None:
        return None
    columns = int(bins.max()) + 1 if len(bins) else 1  # few columns are counted faster
    if 256 * columns > torch.iinfo(torch.int16).max:
        bins, labels = bins.to(torch.int32), labels.to(torch.int32)
    bins.add_(labels, alpha=columns)
    return torch.bincount(bins, minlength=256 * columns).view(256, columns)


def _count(predictions: torch.Tensor, labels: torch.Tensor, num_labels: int, ignore_index: int | None) -> torch.Tensor:
    """Counts (num_labels, num_labels + 1) of flat index tensors; the last column is for predictions of no class."""
    columns = num_labels + 1
    ignored = {*ALWAYS_IGNORED, *([] if ignore_index is None else [ignore_index])}
    counts = labels.new_zeros((num_labels, columns), dtype=torch.int64)
    pairs = labels.new_zeros((256, 256), dtype=torch.int64)
    strange: set[int] = set()
    for prediction, label in pieces(predictions, labels):
        # Every byte has a row of its own, the ignored ones too: masking would cost more than counting.
        found = byte_pairs(prediction, label)
        if found is not None:
            pairs[:, : found.shape[1]] += found
        else:
            keep = torch.ones_like(label, dtype=torch.bool)
            for index in ignored:
                keep &= label != index
            label, prediction = label[keep].to(torch.int64), prediction[keep].to(torch.int64)
            known = (label >= 0) & (label < num_labels)
            strange |= set(label[~known].unique().tolist())
            prediction = torch.where((prediction >= 0) & (prediction < num_labels), prediction, num_labels)
            bins = (label * columns + prediction)[known]
            counts += torch.bincount(bins, minlength=num_labels * columns).view(num_labels, columns)
    rows = pairs.any(dim=1).nonzero().flatten().tolist()
    strange |= {row for row in rows if row >= num_labels and row not in ignored}
    if strange:
        raise UserError(strange_labels(sorted(strange), num_labels, ignored))
    known = min(num_labels, 256)
    counts[:known, :known] += pairs[:known, :known]
    counts[:known, num_labels] += pairs[:known, known:].sum(dim=1)
    counts[[index for index in ignored if 0 <= index < num_labels]] = 0
    return counts


def strange_labels(values: Sequence[int], num_labels: int, ignored: Iterable[int]) -> str:
    """The sentence that says which labels are neither classes nor ignored."""
    named = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
    return (
        f"The labels hold {named}, but there are {num_labels} classes (0 to {num_labels - 1}) and only "
        f"{', '.join(map(str, sorted(ignored)))} are ignored: map the ids to classes, or set num_labels or ignore_index."
    )


def _checked(predictions: Any, labels: Any, num_labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    if num_labels < 1:
        raise UserError(f"num_labels is {num_labels}, but at least one class is needed.")
    predictions, labels = as_indices(predictions, "predictions"), as_indices(labels, "labels")
    if predictions.shape != labels.shape:
        raise UserError(
            f"The predictions have shape {tuple(predictions.shape)} and the labels {tuple(labels.shape)}: "
            "resize the logits to the labels' size before the argmax."
        )
    return predictions, labels.to(predictions.device)


def confusion_matrix(
    predictions: torch.Tensor, labels: torch.Tensor, num_labels: int, ignore_index: int | None = 255
) -> torch.Tensor:
    """Counts, for each image, the pixels of every class that were predicted as every class.

    Args:
        predictions: class indices (B, H, W), any integer type, on any device.
        labels: class indices (B, H, W); pixels of 255, -100 or `ignore_index` are not counted.
        num_labels: number of classes C.
        ignore_index: one more label that is not counted, or None.

    Returns:
        int64 counts (B, C, C) on the predictions' device; rows are labels, columns are predictions.

    Raises:
        UserError: where shapes differ, values are not integers, a label is neither a class nor ignored, or a counted
            pixel is predicted as no class.
    """
    predictions, labels = _checked(predictions, labels, num_labels)
    if predictions.dim() != 3:
        raise UserError(f"The predictions have shape {tuple(predictions.shape)}, but (B, H, W) is needed.")
    counts = [
        _count(p.reshape(-1), y.reshape(-1), num_labels, ignore_index)
        for p, y in zip(predictions, labels, strict=True)
    ]
    matrix = torch.stack(counts) if counts else predictions.new_zeros((0, num_labels, num_labels + 1)).long()
    if matrix[..., num_labels].any():
        raise UserError(f"Some predictions are none of the {num_labels} classes (0 to {num_labels - 1}).")
    return matrix[..., :num_labels]


def scores(matrix: torch.Tensor | np.ndarray, classes: Sequence[int] | None = None) -> dict[str, Any]:
    """Reads the usual segmentation scores off a confusion matrix.

    IoU = TP / (TP + FP + FN) and accuracy = TP / (TP + FN) of each class. A class that occurs neither in labels nor
    in predictions has no IoU, one that no label holds has no accuracy: they are nan and left out of the means.

    Args:
        matrix: counts (C, C), or (C, C + 1) where the last column holds pixels predicted as no class (misses of
            their class, and nobody's false positives); rows are labels.
        classes: class indices that the means, the overall accuracy and the frequency weights are taken over (such as
            `SYNTHIA_16`); all by default. What the other classes' pixels were taken for still counts.

    Returns:
        `mean_iou`, `mean_accuracy`, `overall_accuracy`, `frequency_weighted_iou` (floats in 0..1 or nan) and
        `per_category_iou`, `per_category_accuracy` (lists of C floats).

    Raises:
        UserError: where the matrix has another shape or `classes` holds no class or one that there is not.
    """
    matrix = np.asarray(matrix.cpu() if isinstance(matrix, torch.Tensor) else matrix).astype(np.float64)
    if matrix.ndim != 2 or matrix.shape[1] - matrix.shape[0] not in (0, 1) or not len(matrix):
        raise UserError(f"The confusion matrix has shape {matrix.shape}, but (classes, classes) is needed.")
    num_labels = len(matrix)
    chosen = list(range(num_labels) if classes is None else classes)
    whole = all(isinstance(index, Integral) and not isinstance(index, bool) for index in chosen)
    if not chosen or not whole or not {*chosen} <= {*range(num_labels)} or len({*chosen}) < len(chosen):
        raise UserError(
            f"The class list {chosen} must name some of the {num_labels} classes 0 to {num_labels - 1}, each once."
        )
    hits = np.diagonal(matrix)
    labeled = matrix.sum(axis=1)
    union = labeled + matrix[:, :num_labels].sum(axis=0) - hits
    iou = np.divide(hits, union, out=np.full(num_labels, np.nan), where=union > 0)
    accuracy = np.divide(hits, labeled, out=np.full(num_labels, np.nan), where=labeled > 0)
    total = labeled[chosen].sum()
    weighted = sum(labeled[index] * iou[index] for index in chosen if labeled[index] > 0)

    def mean(values: np.ndarray) -> float:
        values = values[chosen]
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else float("nan")

    return {
        "mean_iou": mean(iou),
        "mean_accuracy": mean(accuracy),
        "overall_accuracy": float(hits[chosen].sum() / total) if total else float("nan"),
        "frequency_weighted_iou": float(weighted / total) if total else float("nan"),
        "per_category_iou": iou.tolist(),
        "per_category_accuracy": accuracy.tolist(),
    }


def sum_over_processes(counts: torch.Tensor) -> torch.Tensor:
    """Sums a tensor over the processes of torch.distributed, where it runs; the given tensor stays as it is."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return counts.clone()
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    total = counts.to(device, copy=True)
    torch.distributed.all_reduce(total)
    return total


class ConfusionMatrix:
    """A confusion matrix that grows image by image, in memory that does not.

    With several processes there are two ways to count every image once. Either each process sees its own part of the
    images, without padding, and `compute()` sums the counts. Or the batches come from a loader that
    `accelerator.prepare` made, which repeats images so that all processes get as many: give
    `gather=accelerator.gather_for_metrics`, which drops the repeated ones; then all processes must update alike.

    Args:
        num_labels: number of classes C.
        ignore_index: a label that is not counted (255 and -100 never are), or None.
        gather: function that turns this process's per-image counts (B, C, C + 1) into those of all processes.
    """

    def __init__(
        self,
        num_labels: int,
        ignore_index: int | None = 255,
        gather: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.num_labels, self.ignore_index, self.gather = num_labels, ignore_index, gather
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was counted."""
        self.counts = torch.zeros((self.num_labels, self.num_labels + 1), dtype=torch.int64)
        self.images = 0

    def update(self, predictions: Any, labels: Any) -> None:
        """Counts a batch.

        Args:
            predictions: class indices (B, H, W), or a list of B maps (H, W) of different sizes; a counted pixel that
                is none of the classes is a miss of its label's class.
            labels: the same shapes.

        Raises:
            UserError: as `confusion_matrix`; nothing of the batch is counted then.
        """
        if len(predictions) != len(labels):
            raise UserError(f"There are {len(predictions)} predictions and {len(labels)} labels: they must be pairs.")
        pairs = [_checked(p, y, self.num_labels) for p, y in zip(predictions, labels, strict=True)]
        counts = [_count(p.reshape(-1), y.reshape(-1), self.num_labels, self.ignore_index) for p, y in pairs]
        if not counts:
            return
        per_image = torch.stack(counts)
        if self.gather is not None:
            per_image = self.gather(per_image)
        self.counts = self.counts.to(per_image.device) + per_image.sum(dim=0)
        self.images += len(per_image)

    def reduce(self) -> torch.Tensor:
        """Gives the counts (C, C + 1) of all processes; every process must call it. This object stays as it is."""
        return self.counts.clone() if self.gather is not None else sum_over_processes(self.counts)

    def compute(self, classes: Sequence[int] | None = None) -> dict[str, Any]:
        """Gives the scores of all processes' images (see `scores`); every process must call it."""
        return scores(self.reduce(), classes)
