"""Scoring several networks in one pass over the data, with memory that does not grow with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn
from transformers.utils import logging

from hf_fst.errors import NotFiniteError, UserError
from hf_fst.evaluation.confusion import confusion_matrix, scores
from hf_fst.evaluation.inference import WHOLE, Look, evaluation_mode, predict, segment

SCORES = ("mean_iou", "mean_accuracy", "overall_accuracy")
#: a score that needs no labels
LABEL_FREE = "label_free"
FAILED = -(2**40)  # a count of a network whose logits are not finite: sums with it stay negative

logger = logging.get_logger(__name__)


def is_label_free(metric: str | None) -> bool:
    """Whether a name of `metric_for_best_model` is that of the score that needs no labels."""
    return metric is not None and metric.endswith(LABEL_FREE)


@torch.no_grad()
def count(network: nn.Module, pixel_values, labels, num_labels: int, look: Look = WHOLE) -> torch.Tensor:
    """Confusion counts (B,C,C) of a network, in evaluation mode, at the size of the labels.

    Args:
        pixel_values: (B,3,H,W), or a list of (3,H,W) where sizes differ.
        labels: (B,H,W), or a list of (H,W); the logits are resized to them.
        num_labels: number of classes C.
        look: windows, scales and mirroring.
    """
    if not (isinstance(pixel_values, torch.Tensor) and isinstance(labels, torch.Tensor)):  # one by one
        pairs = zip(pixel_values, labels, strict=True)
        return torch.cat([count(network, p[None], l[None], num_labels, look) for p, l in pairs])
    with evaluation_mode(network):
        pixel_values = pixel_values.to(next(network.parameters(), pixel_values).dtype)
        return confusion_matrix(predict(network, pixel_values, labels.shape[-2:], look), labels, num_labels)


@torch.no_grad()
def certainty(network: nn.Module, pixel_values, look: Look = WHOLE) -> torch.Tensor:
    """Sums (B,C+1) over the pixels of each image: of the probability of each class, and of their entropy in nats.

    Arguments as of `count`.
    """
    sums = []
    with evaluation_mode(network):
        for image in pixel_values:  # one by one: all classes at full size need memory
            image = image[None].to(next(network.parameters(), image).dtype)
            log_p = segment(network, image, look=look).log_softmax(dim=1)
            p = log_p.exp()
            sums.append(torch.cat([p.sum(dim=(0, 2, 3)), -(p * log_p).sum()[None]]))
    return torch.stack(sums)


def mutual_information(sums: torch.Tensor) -> float:
    """How much a pixel tells of its class, 0..1: (H(mean p) - mean H(p)) / log C, from the sums (C+1) of `certainty`.

    It is high where a network is sure of each pixel and still uses all classes (Krause, Perona and Gomes, NIPS 2010).
    """
    total, entropy = sums[:-1], sums[-1]
    mean = total / total.sum()
    found = (torch.special.entr(mean).sum() - entropy / total.sum()) / math.log(len(total))
    return max(found.item(), 0.0)  # rounding


def refuse_no_labels(inputs: dict) -> None:
    """Raises `UserError` for images without labels, which cannot be scored."""
    if "labels" not in inputs:
        raise UserError(
            f"The evaluated images have no labels (they have {', '.join(inputs)}), so there is nothing to score; give "
            f"images with labels, choose by metric_for_best_model {LABEL_FREE!r}, or use predict."
        )


class StreamingScores:
    """A `compute_metrics` for `Trainer` with `batch_eval_metrics`: adds confusion counts (B,N,C,C) up as they come.

    Args:
        describe: gives the N networks' names and the C class names, asked for when the result is made.
        scored: ids of the classes that the means are over; None for all.
        best: name of the metric that the best weights are chosen by; with `label_free` images need no labels.
    """

    def __init__(
        self,
        describe: Callable[[], tuple[Sequence[str], Sequence[str]]],
        scored: Sequence[int] | None = None,
        best: str | None = None,
    ):
        self.describe, self.scored, self.label_free = describe, scored, is_label_free(best)
        self.counts: torch.Tensor | None = None
        self.sums: torch.Tensor | float = 0

    def count(
        self,
        networks: Mapping[str, nn.Module],
        inputs: dict,
        num_labels: int,
        look: Look,
        goes_on: bool = False,
    ):
        """Confusion counts (B,N,C,C) of N networks; with `label_free` in a pair with the last network's `certainty`.

        Args:
            networks: by name.
            inputs: a batch with `pixel_values` and `labels`; with `label_free` it may lack labels, and counts are 0 then.
            num_labels, look: as of `count`.
            goes_on: whether the scores of a network whose logits are not finite become nan, or that is an error.

        Raises:
            UserError: there are no labels, and the score without labels is not asked for.
            NotFiniteError: see `goes_on`.
        """

        def finite(values: Callable[[], torch.Tensor], size: tuple[int, ...], otherwise: float) -> torch.Tensor:
            try:
                return values()
            except NotFiniteError:
                if not goes_on:
                    raise
                return torch.full((len(pixel_values), *size), otherwise, device=pixel_values[0].device)

        pixel_values, labels = inputs["pixel_values"], inputs.get("labels")
        if not self.label_free:
            refuse_no_labels(inputs)
        if labels is None:
            size = (len(pixel_values), len(networks), num_labels, num_labels)
            counts = torch.zeros(size, dtype=torch.int64, device=pixel_values[0].device)
        else:
            size = (num_labels, num_labels)
            found = [
                finite(partial(count, network, pixel_values, labels, num_labels, look), size, FAILED)
                for network in networks.values()
            ]
            counts = torch.stack(found, dim=1)
        if not self.label_free:
            return counts
        last = [*networks.values()][-1]
        return counts, finite(partial(certainty, last, pixel_values, look), (num_labels + 1,), math.nan)

    def __call__(self, prediction, compute_result: bool = True) -> dict[str, float]:
        """Scores such as `teacher_mean_iou` and `teacher_iou_road` after the last batch, nothing before it."""
        counts, sums = prediction.predictions if self.label_free else (prediction.predictions, None)
        counts = torch.as_tensor(counts).sum(dim=0)
        self.counts = counts if self.counts is None else self.counts + counts
        if sums is not None:
            self.sums = self.sums + torch.as_tensor(sums).cpu().double().sum(dim=0)
        if not compute_result:
            return {}
        if not (self.label_free or self.counts.any()):
            self.counts = None
            raise UserError(
                "No pixel of the evaluated images has a class, so there is nothing to score; is the id map right?"
            )
        metrics, (networks, classes) = {}, self.describe()
        if self.label_free:
            metrics[LABEL_FREE], self.sums = mutual_information(self.sums), 0
        for network, matrix in zip(networks, self.counts, strict=True):
            if self.label_free and not matrix.any():  # no labels
                continue
            result, failed = scores(matrix, self.scored), bool((matrix < 0).any())
            if failed:
                logger.warning(
                    f"The logits of the {network} were not finite, so its scores are nan; the run continues, and these "
                    "weights are not chosen as the best."
                )
            for key in SCORES:
                metrics[f"{network}_{key}"] = math.nan if failed else result[key]
            for name, iou in zip(classes, result["per_category_iou"], strict=True):
                metrics[f"{network}_iou_{name}"] = math.nan if failed else iou
        self.counts = None
        return metrics
