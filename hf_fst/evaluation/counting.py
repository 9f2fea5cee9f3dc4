"""Scoring several networks in one pass over the data, with memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from hf_fst.evaluation.confusion import confusion_matrix, scores
from hf_fst.evaluation.inference import WHOLE, Look, predict

SCORES = ("mean_iou", "mean_accuracy", "overall_accuracy")


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
    modes = {module: module.training for module in network.modules()}
    network.eval()
    pixel_values = pixel_values.to(next(network.parameters(), pixel_values).dtype)
    predictions = predict(network, pixel_values, labels.shape[-2:], look)
    for module, training in modes.items():
        module.training = training
    return confusion_matrix(predictions, labels, num_labels)


class StreamingScores:
    """A `compute_metrics` for `Trainer` with `batch_eval_metrics`: adds confusion counts (B,N,C,C) up as they come.

    Args:
        describe: gives the N networks' names and the C class names, asked for when the result is made.
        scored: ids of the classes that the means are over; None for all.
    """

    def __init__(
        self, describe: Callable[[], tuple[Sequence[str], Sequence[str]]], scored: Sequence[int] | None = None
    ):
        self.describe, self.scored = describe, scored
        self.counts: torch.Tensor | None = None

    def __call__(self, prediction, compute_result: bool = True) -> dict[str, float]:
        """Scores such as `teacher_mean_iou` and `teacher_iou_road` after the last batch, nothing before it."""
        counts = torch.as_tensor(prediction.predictions).sum(dim=0)
        self.counts = counts if self.counts is None else self.counts + counts
        if not compute_result:
            return {}
        metrics, (networks, classes) = {}, self.describe()
        for network, matrix in zip(networks, self.counts, strict=True):
            result = scores(matrix, self.scored)
            for key in SCORES:
                metrics[f"{network}_{key}"] = result[key]
            for name, iou in zip(classes, result["per_category_iou"], strict=True):
                metrics[f"{network}_iou_{name}"] = iou
        self.counts = None
        return metrics
