"""A stand-in for the well-known `mean_iou` metric, which lies on the Hub: the same algorithm in our words.

Maps are stored in Arrow as nested lists of integers. `compute` reads them all, and for each pair takes three numpy
histograms: of the pixels where both agree, of the prediction, and of the label, without the ignored pixels.
"""

import datasets
import evaluate
import numpy as np


def areas(prediction, label, num_labels, ignore_index):
    """Pixels per class of the intersection, the prediction and the label [3, num_labels]."""
    prediction, label = np.array(prediction), np.array(label)
    keep = label != ignore_index
    prediction, label = prediction[keep], label[keep]
    bins = {"bins": num_labels, "range": (0, num_labels - 1)}
    return np.stack([np.histogram(x, **bins)[0] for x in (prediction[prediction == label], prediction, label)])


def mean_iou(predictions, references, num_labels, ignore_index):
    """The scores over all maps, one map after the other."""
    total = np.zeros((3, num_labels))
    for prediction, label in zip(predictions, references, strict=True):
        total += areas(prediction, label, num_labels, ignore_index)
    hits, predicted, labeled = total
    with np.errstate(invalid="ignore"):
        iou, accuracy = hits / (predicted + labeled - hits), hits / labeled
    return {
        "mean_iou": np.nanmean(iou),
        "mean_accuracy": np.nanmean(accuracy),
        "overall_accuracy": hits.sum() / labeled.sum(),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


class UsualMeanIou(evaluate.Metric):
    def _info(self):
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
        return evaluate.MetricInfo(
            description="Mean IoU from stored maps.",
            citation="",
            inputs_description="Maps of class indices.",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _compute(self, predictions, references, num_labels, ignore_index):
        return mean_iou(predictions, references, num_labels, ignore_index)
