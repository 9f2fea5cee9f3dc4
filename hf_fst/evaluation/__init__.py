"""Evaluation: exact confusion matrices, inference on full-size images, and a metric for `evaluate`."""

from pathlib import Path

from hf_fst.evaluation.confusion import CLASS_LISTS, ConfusionMatrix, confusion_matrix, scores
from hf_fst.evaluation.inference import Look, predict, segment

# `evaluate.load(MEAN_IOU)` gives the metric with the arguments and results of the well-known `mean_iou`.
MEAN_IOU = str(Path(__file__).parent / "mean_iou")

__all__ = ["CLASS_LISTS", "MEAN_IOU", "ConfusionMatrix", "Look", "confusion_matrix", "predict", "scores", "segment"]
