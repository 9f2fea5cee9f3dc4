"""Evaluation: exact confusion matrices, inference on full-size images, and a metric for `evaluate`."""

from hf_fst.evaluation.confusion import CLASS_LISTS, ConfusionMatrix, confusion_matrix, scores
from hf_fst.evaluation.inference import predict, segment

__all__ = ["CLASS_LISTS", "ConfusionMatrix", "confusion_matrix", "predict", "scores", "segment"]
