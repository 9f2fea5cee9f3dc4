"""Mean intersection over union for `evaluate`, from streamed counts instead of stored maps."""

import datasets
import evaluate
import numpy as np
import torch

from hf_fst.evaluation.confusion import ALWAYS_IGNORED, as_indices, byte_pairs, pieces, scores, strange_labels

_DESCRIPTION = """
Intersection over union (IoU) of a class is the number of pixels that are of the class in both prediction and label, over
the number that are in at least one of them; the mean is over the classes that occur. Maps are counted as they are
added, so neither memory nor disk grows with their number.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (maps of class indices): tensors, arrays, PIL images or lists, each (height, width), of any size.
    references (maps of class indices): labels of the same sizes.
    num_labels (`int`): number of classes.
    ignore_index (`int`, defaults to 255): label that is not counted; 255 and -100 never are.
    nan_to_num (`int`, *optional*): number that stands in the results for the nan of absent classes.
    label_map (`dict`, *optional*): old label to new label, all replaced at once.
    reduce_labels (`bool`, defaults to `False`): whether label 0 is background to ignore, and every other is one less.
Returns:
    `mean_iou`, `mean_accuracy`, `overall_accuracy` (floats) and `per_category_iou`, `per_category_accuracy`
    (arrays of `num_labels` floats, nan for absent classes).
Examples:
    >>> import evaluate, hf_fst.evaluation
    >>> mean_iou = evaluate.load(hf_fst.evaluation.MEAN_IOU)
    >>> mean_iou.add_batch(predictions=[[[0, 0], [1, 1]]], references=[[[0, 255], [1, 0]]])
    >>> mean_iou.compute(num_labels=2, ignore_index=255)["mean_iou"]
    0.5
"""


class MeanIou(evaluate.Metric):
    """Counts (label, prediction) pairs as maps come; what the pairs mean is decided in `compute`.

    Pairs of bytes go to a dense table, other values to a sparse one. For the gathering over processes
    (`num_process`, `process_id`, `experiment_id`) each process stores its counts as a single record and the base
    class does the rest; a record's `predictions` are [values, counts] and its `references` [values].
    """

    def _info(self):
        self._forget()
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _forget(self):
        self._bytes = torch.zeros(256, 256, dtype=torch.int64)
        self._others = {}
        self._maps = 0

    def __len__(self):
        """Number of maps added since the last `compute`."""
        return self._maps

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Counts one pair of maps."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Counts a batch of pairs of maps; where one of them is bad, none is counted."""
        if kwargs:
            raise ValueError(f"The metric takes predictions and references, and {', '.join(kwargs)} is neither.")
        if predictions is None or references is None or len(predictions) != len(references):
            raise ValueError("As many predictions as references are needed: give both, one map of each per image.")
        pairs = []
        for prediction, reference in zip(predictions, references, strict=True):
            prediction, reference = as_indices(prediction, "predictions"), as_indices(reference, "references")
            if prediction.shape != reference.shape:
                raise ValueError(
                    f"A prediction has shape {tuple(prediction.shape)} and its reference {tuple(reference.shape)}: "
                    "resize the logits to the reference's size before the argmax."
                )
            pairs.append((prediction.reshape(-1), reference.reshape(-1).to(prediction.device)))
        for pair in pairs:
            for prediction, reference in pieces(*pair):
                self._count(prediction, reference)
        self._maps += len(pairs)

    def _count(self, prediction, reference):
        if prediction.numel() == 0:
            return
        found = byte_pairs(prediction, reference)
        if found is not None:
            self._bytes[:, : found.shape[1]] += found.to(self._bytes.device)
            return
        both = torch.stack([reference.to(torch.int64), prediction.to(torch.int64)])
        pairs, counts = both.unique(dim=1, return_counts=True)
        for label, value, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
            self._others[label, value] = self._others.get((label, value), 0) + count

    def _finalize(self):
        labels, values = self._bytes.nonzero(as_tuple=True)
        counts = self._bytes[labels, values].tolist() + list(self._others.values())
        labels = labels.tolist() + [label for label, _ in self._others]
        values = values.tolist() + [value for _, value in self._others]
        self._forget()
        super().add_batch(predictions=[[values, counts]], references=[[labels]])
        super()._finalize()

    def _compute(
        self,
        predictions,
        references,
        num_labels,
        ignore_index=255,
        nan_to_num=None,
        label_map=None,
        reduce_labels=False,
    ):
        if not any(labels for (labels,) in references):
            raise ValueError("Nothing was added: call add or add_batch with at least one pixel before compute.")
        ignored = {*ALWAYS_IGNORED, ignore_index}
        label_map = label_map or {}
        matrix = np.zeros((num_labels, num_labels + 1), dtype=np.int64)
        strange = set()
        for (values, counts), (labels,) in zip(predictions, references, strict=True):
            for value, label, count in zip(values, labels, counts, strict=True):
                label = label_map.get(label, label)
                if reduce_labels and label not in ALWAYS_IGNORED:
                    label = 255 if label == 0 else label - 1
                if label in ignored:
                    continue
                if 0 <= label < num_labels:
                    matrix[label, value if 0 <= value < num_labels else num_labels] += count
                else:
                    strange.add(label)
        if strange:
            raise ValueError(strange_labels(sorted(strange), num_labels, ignored))
        results = scores(matrix)
        del results["frequency_weighted_iou"]
        results["per_category_iou"] = np.array(results["per_category_iou"])
        results["per_category_accuracy"] = np.array(results["per_category_accuracy"])
        if nan_to_num is not None:
            results = {key: np.nan_to_num(value, nan=nan_to_num) for key, value in results.items()}
        return results
