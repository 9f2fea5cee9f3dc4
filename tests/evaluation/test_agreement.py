"""The counts against the official Cityscapes evaluation, and the scores against scikit-learn's."""

import math
from argparse import Namespace

import evaluate
import numpy as np
import pytest
import sklearn.metrics
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from cityscapesscripts.helpers.labels import id2label, trainId2label
from PIL import Image

from hf_fst.evaluation import MEAN_IOU, ConfusionMatrix, confusion_matrix, scores

IDS = [label for label in id2label if label >= 0]
SCORED = [trainId2label[index].id for index in range(19)]
NAMES = [trainId2label[index].name for index in range(19)]
TRAIN_ID = np.full(256, 255)
for _id in SCORED:
    TRAIN_ID[_id] = id2label[_id].trainId
IGNORED = [label for label in IDS if label not in SCORED]


def draw(seed, ids, shape=(37, 53), count=3):
    return list(np.random.default_rng(seed).choice(ids, (count, *shape)))


def blocks(seed, ids):
    return [np.kron(block, np.ones((8, 8), dtype=int)) for block in draw(seed, ids, shape=(6, 9))]


# name: (predicted ids, labeled ids), lists of maps
CASES = {
    "random": (draw(0, SCORED), draw(1, IDS)),
    "blocks": (blocks(2, SCORED), blocks(3, IDS)),
    "predictions of ignored ids": (draw(4, IDS), draw(5, IDS)),
    "only ignored predictions": (draw(6, IGNORED), draw(7, IDS)),
    "all ignored": (draw(8, SCORED), draw(9, IGNORED)),
    "one image all ignored": (draw(10, SCORED), [*draw(11, IGNORED, count=1), *draw(12, IDS, count=2)]),
    "empty classes": (draw(13, SCORED[:4]), draw(14, SCORED[2:6])),
    "predicted but never labeled": (draw(15, SCORED[5:9]), draw(16, SCORED[:5])),
    "perfect": (draw(17, SCORED), draw(17, SCORED)),
    "one class": ([np.full((5, 4), 26)], [np.full((5, 4), 26)]),
    "one pixel": ([np.array([[7]])], [np.array([[8]])]),
    "one ignored pixel": ([np.array([[7]])], [np.array([[0]])]),
    "a row and a column": ([draw(18, SCORED, (1, 300), 1)[0], draw(19, SCORED, (300, 1), 1)[0]],
                           [draw(20, IDS, (1, 300), 1)[0], draw(21, IDS, (300, 1), 1)[0]]),
}  # fmt: skip


def by_cityscapes(predictions, labels, folder, dtype):
    """Runs the official evaluation on files; instance scores are left out, they need instance maps."""
    files = {"prediction": [], "label": []}
    for kind, maps in (("prediction", predictions), ("label", labels)):
        for index, ids in enumerate(maps):
            files[kind].append(str(folder / f"{kind}_{index}.png"))
            Image.fromarray(ids.astype(dtype)).save(files[kind][-1])
    settings = {"evalInstLevelScore": False, "evalPixelAccuracy": False, "JSONOutput": False, "quiet": True}
    settings = Namespace(**{**vars(official.args), **settings})
    return official.evaluateImgLists(files["prediction"], files["label"], settings), files


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("case", CASES)
def test_equals_cityscapesscripts(case, dtype, tmp_path):
    predictions, labels = CASES[case]
    expected, files = by_cityscapes(predictions, labels, tmp_path, dtype)
    matrix = ConfusionMatrix(19)
    for prediction, label in zip(files["prediction"], files["label"], strict=True):
        with Image.open(prediction) as predicted, Image.open(label) as labeled:
            assert (predicted.mode == "L") == (dtype == np.uint8)
            matrix.update(TRAIN_ID[np.asarray(predicted)][None], TRAIN_ID[np.asarray(labeled)][None])
    official_counts = np.array(expected["confMatrix"], dtype=np.int64)[np.ix_(SCORED, SCORED)]
    assert matrix.reduce()[:, :19].tolist() == official_counts.tolist()
    got = matrix.compute()
    assert got["per_category_iou"] == pytest.approx([expected["classScores"][name] for name in NAMES], nan_ok=True)
    assert got["mean_iou"] == pytest.approx(expected["averageScoreClasses"], nan_ok=True, abs=1e-15)
    assert math.isnan(got["mean_iou"]) == (case in ("all ignored", "one ignored pixel"))


@pytest.mark.parametrize("case", CASES)
def test_the_metric_equals_cityscapesscripts_on_raw_ids(case, tmp_path):
    predictions, labels = CASES[case]
    expected, files = by_cityscapes(predictions, labels, tmp_path, np.uint8)
    metric = evaluate.load(MEAN_IOU, cache_dir=str(tmp_path / "cache"))
    for prediction, label in zip(predictions, files["label"], strict=True):
        metric.add(prediction=TRAIN_ID[prediction], reference=Image.open(label))
    got = metric.compute(num_labels=19, ignore_index=255, label_map=dict(enumerate(TRAIN_ID.tolist())))
    assert got["per_category_iou"].tolist() == pytest.approx(
        [expected["classScores"][name] for name in NAMES], nan_ok=True
    )
    assert got["mean_iou"] == pytest.approx(expected["averageScoreClasses"], nan_ok=True, abs=1e-15)


@pytest.mark.parametrize("case", ["random", "blocks", "empty classes", "predicted but never labeled", "perfect"])
def test_scores_equal_scikit_learns(case):
    predictions, labels = (TRAIN_ID[np.concatenate([ids.ravel() for ids in maps])] for maps in CASES[case])
    keep = labels != 255
    got = scores(confusion_matrix(torch.tensor(predictions)[None, None], torch.tensor(labels)[None, None], 19)[0])
    present = sorted({*predictions[keep], *labels[keep]})
    options = {"labels": present, "average": None, "zero_division": 0}
    iou = sklearn.metrics.jaccard_score(labels[keep], predictions[keep], **options)
    assert [got["per_category_iou"][index] for index in present] == pytest.approx(iou.tolist(), abs=1e-15)
    assert got["mean_iou"] == pytest.approx(iou.mean(), abs=1e-15)
    weighted = sklearn.metrics.jaccard_score(labels[keep], predictions[keep], **{**options, "average": "weighted"})
    assert got["frequency_weighted_iou"] == pytest.approx(weighted, abs=1e-15)
    assert got["overall_accuracy"] == pytest.approx((labels[keep] == predictions[keep]).mean(), abs=1e-15)
    balanced = sklearn.metrics.recall_score(
        labels[keep], predictions[keep], labels=sorted({*labels[keep]}), average=None
    )
    assert got["mean_accuracy"] == pytest.approx(balanced.mean(), abs=1e-15)
