"""The metric module, loaded through `evaluate`, against the published algorithm of the metric it replaces."""

import multiprocessing

import evaluate
import numpy as np
import pytest
import torch
from PIL import Image

from hf_fst.evaluation import MEAN_IOU

KEYS = ["mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy"]


@pytest.fixture
def metric(tmp_path):
    return evaluate.load(MEAN_IOU, cache_dir=str(tmp_path))


def published(predictions, references, num_labels, ignore_index, nan_to_num=None, label_map=None, reduce_labels=False):
    """Histograms of intersection, prediction and label of each map, summed over maps."""
    edges = np.arange(num_labels + 1)
    areas = np.zeros((3, num_labels))
    for prediction, reference in zip(predictions, references, strict=True):
        prediction, reference = np.array(prediction, dtype=np.int64), np.array(reference, dtype=np.int64)
        before = reference.copy()
        for old, new in (label_map or {}).items():
            reference[before == old] = new
        if reduce_labels:
            reference[reference == 0] = 255
            reference -= 1
            reference[reference == 254] = 255
        keep = reference != ignore_index
        prediction, reference = prediction[keep], reference[keep]
        for area, values in zip(areas, (prediction[prediction == reference], prediction, reference), strict=True):
            area += [np.count_nonzero(values == index) for index in edges[:-1]]
    hits, predicted, labeled = areas
    with np.errstate(invalid="ignore"):
        iou, accuracy = hits / (predicted + labeled - hits), hits / labeled
        results = [np.nanmean(iou), np.nanmean(accuracy), hits.sum() / labeled.sum(), iou, accuracy]
    results = dict(zip(KEYS, results, strict=True))
    if nan_to_num is not None:
        results = {key: np.nan_to_num(value, nan=nan_to_num) for key, value in results.items()}
    return results


def maps(seed, count=3, num_labels=7, ignored=255):
    random = np.random.default_rng(seed)
    predictions = random.integers(0, num_labels - 1, (count, 12, 17))  # the last class is never predicted
    references = random.integers(0, num_labels - 2, (count, 12, 17))  # and the last two are never labeled
    references[random.random(references.shape) < 0.3] = ignored
    return predictions, references


def assert_same(got, expected):
    assert list(got) == KEYS
    for key in KEYS:
        np.testing.assert_allclose(got[key], expected[key], rtol=0, atol=1e-15, err_msg=key)


@pytest.mark.parametrize("options", [
    {},
    {"nan_to_num": 0},
    {"nan_to_num": -1},
    {"label_map": {0: 1, 1: 0, 4: 255}},
    {"reduce_labels": True},
    {"reduce_labels": True, "label_map": {3: 0}, "nan_to_num": 0},
])  # fmt: skip
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_equals_the_published_algorithm(metric, options, dtype):
    predictions, references = maps(1)
    for prediction, reference in zip(predictions.astype(dtype), references.astype(dtype), strict=True):
        metric.add_batch(predictions=[prediction], references=[reference])
    got = metric.compute(num_labels=7, ignore_index=255, **options)
    assert_same(got, published(predictions, references, 7, 255, **options))


@pytest.mark.parametrize("ignore_index", [0, 3, -1, -100, 254, 1000])
def test_any_ignore_index(metric, ignore_index):
    predictions, references = maps(2, ignored=ignore_index)
    got = metric.compute(predictions=predictions, references=references, num_labels=7, ignore_index=ignore_index)
    assert_same(got, published(predictions, references, 7, ignore_index))


@pytest.mark.parametrize("num_labels", [150, 300])
def test_many_classes(metric, num_labels):
    random = np.random.default_rng(3)
    predictions, references = random.integers(0, num_labels, (2, 2, 60, 70))
    references[references == 255] = 254
    got = metric.compute(predictions=predictions, references=references, num_labels=num_labels, ignore_index=255)
    assert_same(got, published(predictions, references, num_labels, 255))


def test_a_prediction_of_no_class_is_a_miss(metric):
    predictions, references = maps(4)
    predictions[:, :3] = 255
    metric.add_batch(predictions=predictions, references=references)
    assert_same(metric.compute(num_labels=7, ignore_index=255), published(predictions, references, 7, 255))


def test_what_is_added_does_not_matter(metric):
    predictions, references = maps(5, count=4)
    expected = published(predictions, references, 7, 255)
    metric.add_batch(predictions=torch.tensor(predictions), references=torch.tensor(references))
    assert_same(metric.compute(num_labels=7, ignore_index=255), expected)
    metric.add_batch(predictions=predictions.tolist(), references=references.tolist())
    assert_same(metric.compute(num_labels=7, ignore_index=255), expected)
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=Image.fromarray(reference.astype(np.uint8)))
    assert len(metric) == 4
    assert_same(metric.compute(num_labels=7, ignore_index=255), expected)


def test_maps_of_different_sizes(metric):
    metric.add_batch(predictions=[np.zeros((2, 3), int), np.ones((4, 1), int)],
                     references=[np.zeros((2, 3), int), np.zeros((4, 1), int)])  # fmt: skip
    assert metric.compute(num_labels=2, ignore_index=255)["per_category_iou"].tolist() == [6 / 10, 0]


def test_compute_starts_anew(metric):
    metric.compute(predictions=[[[0]]], references=[[[1]]], num_labels=2, ignore_index=255)
    assert len(metric) == 0
    got = metric.compute(predictions=[[[0]]], references=[[[0]]], num_labels=2, ignore_index=255)
    assert got["overall_accuracy"] == 1


def test_all_ignored_is_nan(metric):
    got = metric.compute(predictions=[[[0, 1]]], references=[[[255, -100]]], num_labels=2, ignore_index=255)
    assert all(np.isnan(got[key]).all() for key in KEYS)


def test_nothing_is_written_until_compute(metric, tmp_path):
    for _ in range(3):
        metric.add_batch(predictions=np.zeros((2, 64, 64), int), references=np.zeros((2, 64, 64), int))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_works_in_a_combination(tmp_path):
    both = evaluate.combine([evaluate.load(MEAN_IOU, cache_dir=str(tmp_path)) for _ in range(2)])
    both.add_batch(predictions=[[[0, 1]]], references=[[[0, 1]]])
    assert both.compute(num_labels=2, ignore_index=255)["mean_iou_0_mean_iou"] == 1


class TestBadInput:
    def test_a_label_out_of_range_is_named(self, metric):
        metric.add_batch(predictions=[[[0, 0, 0]]], references=[[[0, 12, 700]]])
        with pytest.raises(ValueError, match="The labels hold 12, 700, but there are 2 classes"):
            metric.compute(num_labels=2, ignore_index=255)

    def test_a_bad_batch_is_not_counted_in_part(self, metric):
        with pytest.raises(ValueError, match=r"shape \(1, 1\) and its reference \(1, 2\)"):
            metric.add_batch(predictions=[[[0]], [[0]]], references=[[[0]], [[0, 0]]])
        assert len(metric) == 0

    def test_nothing_added(self, metric):
        with pytest.raises(ValueError, match="Nothing was added"):
            metric.compute(num_labels=2, ignore_index=255)

    def test_unpaired(self, metric):
        with pytest.raises(ValueError, match="As many predictions as references"):
            metric.add_batch(predictions=[[[0]]], references=[])
        with pytest.raises(ValueError, match="takes predictions and references, and labels is neither"):
            metric.add_batch(predictions=[[[0]]], references=[[[0]]], labels=[[[0]]])

    def test_logits(self, metric):
        with pytest.raises(ValueError, match="predictions are of type torch.float64"):
            metric.add_batch(predictions=np.zeros((1, 2, 2)), references=np.zeros((1, 2, 2), int))


COUNTS = (1, 5)  # of one map the second process has none


def one_of_two(process_id, cache_dir, results):
    options = {"num_process": 2, "process_id": process_id, "cache_dir": cache_dir, "timeout": 60}
    for count in COUNTS:
        metric = evaluate.load(MEAN_IOU, experiment_id=f"pair-{count}", **options)
        predictions, references = maps(6, count=count)
        for index in range(process_id, count, 2):
            metric.add(prediction=predictions[index], reference=references[index])
        results.put((process_id, count, metric.compute(num_labels=7, ignore_index=255)))


@pytest.mark.distributed
def test_two_processes_gather_as_evaluate_does(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=one_of_two, args=(i, str(tmp_path), results)) for i in range(2)]
    for worker in workers:
        worker.start()
    got = [results.get(timeout=120) for _ in range(2 * len(COUNTS))]
    for worker in workers:
        worker.join(timeout=30)
    for process_id, count, result in got:
        if process_id == 1:
            assert result is None  # only the main process has the result, as with every metric
        else:
            predictions, references = maps(6, count=count)
            assert_same(result, published(predictions, references, 7, 255))
