"""Confusion matrices and scores, against maps worked by hand and independent counts."""

import math

import numpy as np
import pytest
import torch

from hf_fst.evaluation import CLASS_LISTS, ConfusionMatrix, confusion_matrix, scores


def naive_counts(predictions, labels, num_labels, ignored=(255, -100)):
    """One pixel at a time."""
    counts = np.zeros((num_labels, num_labels), dtype=np.int64)
    for prediction, label in zip(np.ravel(predictions).tolist(), np.ravel(labels).tolist(), strict=True):
        if label not in ignored:
            counts[label, prediction] += 1
    return counts


def random_maps(seed, num_labels, shape, ignored=(255, -100)):
    random = np.random.default_rng(seed)
    predictions = random.integers(0, num_labels, shape)
    labels = random.integers(0, num_labels, shape)
    for value in ignored:
        labels[random.random(shape) < 0.2] = value
    return predictions, labels


class TestCounting:
    def test_rows_are_labels_and_columns_predictions(self):
        labels = torch.tensor([[[0, 0, 1], [1, 2, 255]]])
        predictions = torch.tensor([[[0, 1, 1], [1, 0, 2]]])
        assert confusion_matrix(predictions, labels, 3).tolist() == [[[1, 1, 0], [0, 2, 0], [1, 0, 0]]]

    def test_each_image_has_its_own_matrix(self):
        labels = torch.tensor([[[0, 1]], [[1, 1]]])
        predictions = torch.tensor([[[0, 0]], [[1, 0]]])
        assert confusion_matrix(predictions, labels, 2).tolist() == [[[1, 0], [1, 0]], [[0, 0], [1, 1]]]

    # 126 and 127 classes lie on both sides of the narrow path's limit.
    @pytest.mark.parametrize("num_labels", [1, 2, 19, 126, 127, 150])
    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
    def test_equals_counting_one_pixel_at_a_time(self, num_labels, dtype):
        predictions, labels = random_maps(num_labels, num_labels, (2, 23, 31))
        got = confusion_matrix(torch.from_numpy(predictions).to(dtype), torch.from_numpy(labels).to(dtype), num_labels)
        assert got.dtype == torch.int64
        for image in range(2):
            assert got[image].tolist() == naive_counts(predictions[image], labels[image], num_labels).tolist()

    @pytest.mark.parametrize("label_type", [np.uint8, np.uint16, np.int32, np.int64])
    @pytest.mark.parametrize("prediction_type", [np.uint8, np.uint16, np.int64])
    def test_types_of_maps_do_not_matter(self, label_type, prediction_type):
        predictions, labels = random_maps(3, 19, (1, 17, 29), ignored=(255,))
        got = confusion_matrix(predictions.astype(prediction_type), labels.astype(label_type), 19)
        assert got[0].tolist() == naive_counts(predictions, labels, 19).tolist()

    @pytest.mark.parametrize("num_labels", [3, 140])
    @pytest.mark.parametrize("ignore_index", [0, 2, -1, 254, 65535])
    def test_any_label_can_be_ignored(self, num_labels, ignore_index):
        predictions, labels = random_maps(5, 3, (1, 20, 20), ignored=(255, -100, ignore_index))
        got = confusion_matrix(torch.tensor(predictions), torch.tensor(labels), num_labels, ignore_index)
        expected = naive_counts(predictions, labels, num_labels, ignored=(255, -100, ignore_index))
        assert got[0].tolist() == expected.tolist()

    def test_only_the_usual_labels_are_ignored_without_an_ignore_index(self):
        labels = torch.tensor([[[0, 255, -100, 1]]])
        assert confusion_matrix(torch.zeros(1, 1, 4).long(), labels, 2, None).tolist() == [[[1, 0], [1, 0]]]

    def test_what_is_predicted_on_ignored_pixels_does_not_matter(self):
        labels = torch.tensor([[[0, 255, 255]]])
        assert confusion_matrix(torch.tensor([[[0, 255, 7]]]), labels, 2).tolist() == [[[1, 0], [0, 0]]]

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
    def test_large_maps_are_counted_in_pieces(self, dtype, monkeypatch):
        monkeypatch.setattr("hf_fst.evaluation.confusion.PIECE", 100)
        monkeypatch.setattr("hf_fst.evaluation.confusion.CACHED", 256)  # 32 values of 64 bits
        predictions, labels = random_maps(8, 19, (1, 23, 31), ignored=(255,))
        predictions.flat[:200], labels.flat[-1] = 3, 18  # pieces with few and with many predicted classes
        got = confusion_matrix(torch.tensor(predictions).to(dtype), torch.tensor(labels).to(dtype), 19)
        assert got[0].tolist() == naive_counts(predictions, labels, 19).tolist()

    @pytest.mark.parametrize("shape", [(0, 4, 4), (1, 0, 4)])
    def test_nothing_counts_to_nothing(self, shape):
        counts = confusion_matrix(torch.zeros(shape).long(), torch.zeros(shape).long(), 3)
        assert counts.shape == (shape[0], 3, 3) and counts.sum() == 0

    def test_inputs_stay_as_they_are(self):
        predictions, labels = (torch.tensor(values) for values in random_maps(1, 4, (1, 9, 9)))
        before = predictions.clone(), labels.clone()
        confusion_matrix(predictions, labels, 4)
        assert torch.equal(predictions, before[0]) and torch.equal(labels, before[1])


class TestBadInput:
    @pytest.mark.parametrize("num_labels", [3, 150])
    @pytest.mark.parametrize("label", [3 + 150, -1, -56, -101, 256, 259, 511, 70000])
    def test_a_label_out_of_range_is_named(self, num_labels, label):
        with pytest.raises(ValueError, match=rf"The labels hold {label}, but there are {num_labels} classes"):
            confusion_matrix(torch.zeros(1, 1, 2).long(), torch.tensor([[[0, label]]]), num_labels)

    @pytest.mark.parametrize("label", [-1, 20, 254, 256, 2**32, 2**40 + 3, -(2**63)])
    @pytest.mark.parametrize("place", [0, 31, 32, 150, 712])
    def test_a_label_out_of_range_is_found_wherever_it_is(self, label, place, monkeypatch):
        monkeypatch.setattr("hf_fst.evaluation.confusion.PIECE", 100)
        monkeypatch.setattr("hf_fst.evaluation.confusion.CACHED", 256)
        predictions, labels = (torch.tensor(maps) for maps in random_maps(9, 19, (1, 23, 31)))
        labels.view(-1)[place] = label
        with pytest.raises(ValueError, match=rf"The labels hold {label}, but there are 19 classes"):
            confusion_matrix(predictions, labels, 19)

    def test_a_prediction_of_no_class_is_refused(self):
        with pytest.raises(ValueError, match="Some predictions are none of the 2 classes"):
            confusion_matrix(torch.tensor([[[2]]]), torch.tensor([[[0]]]), 2)

    def test_shapes_must_agree(self):
        with pytest.raises(ValueError, match=r"shape \(1, 2, 2\) and the labels \(1, 4, 4\): resize the logits"):
            confusion_matrix(torch.zeros(1, 2, 2).long(), torch.zeros(1, 4, 4).long(), 2)

    def test_logits_are_refused(self):
        with pytest.raises(ValueError, match="predictions are of type torch.float32.*argmax"):
            confusion_matrix(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2).long(), 2)

    def test_a_matrix_must_be_square(self):
        with pytest.raises(ValueError, match=r"shape \(2, 5\)"):
            scores(np.zeros((2, 5)))

    @pytest.mark.parametrize("classes", [[], [3], [-1]])
    def test_a_class_list_must_name_classes(self, classes):
        with pytest.raises(ValueError, match="must name some of the 3 classes"):
            scores(np.eye(3), classes)


class TestScores:
    # rows: 4 pixels of class 0 (3 hit), 4 of class 1 (2 hit), none of 2 though one is predicted; class 3 is absent
    MATRIX = np.array([[3, 1, 0, 0], [1, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])

    def test_by_hand(self):
        got = scores(self.MATRIX)
        assert got["per_category_iou"][:3] == [3 / 5, 2 / 5, 0] and math.isnan(got["per_category_iou"][3])
        assert got["per_category_accuracy"][:2] == [3 / 4, 2 / 4]
        assert all(math.isnan(value) for value in got["per_category_accuracy"][2:])
        assert got["mean_iou"] == pytest.approx((3 / 5 + 2 / 5 + 0) / 3, abs=1e-15)
        assert got["mean_accuracy"] == pytest.approx(5 / 8, abs=1e-15)
        assert got["overall_accuracy"] == 5 / 8
        assert got["frequency_weighted_iou"] == pytest.approx((4 * 3 / 5 + 4 * 2 / 5) / 8, abs=1e-15)

    def test_tensor_and_array_agree(self):
        assert repr(scores(torch.tensor(self.MATRIX))) == repr(scores(self.MATRIX))

    def test_a_fixed_list_changes_means_and_not_classes(self):
        got = scores(self.MATRIX, classes=[0, 2])
        assert got["mean_iou"] == pytest.approx((3 / 5 + 0) / 2, abs=1e-15)
        assert got["overall_accuracy"] == 3 / 4 and got["mean_accuracy"] == 3 / 4
        assert got["frequency_weighted_iou"] == pytest.approx(3 / 5, abs=1e-15)
        assert got["per_category_iou"][1] == 2 / 5

    def test_predictions_of_no_class_are_misses_and_nobodys_false_positives(self):
        got = scores(np.array([[2, 0, 2], [0, 4, 0]]))  # the last column is for no class
        assert got["per_category_iou"] == [2 / 4, 1.0] and got["overall_accuracy"] == 6 / 8

    def test_nothing_counted_is_nan_everywhere(self):
        got = scores(np.zeros((3, 3), dtype=int))
        assert all(math.isnan(value) for key, value in got.items() if not key.startswith("per_"))

    def test_counts_beyond_float32_are_exact(self):
        assert scores(np.array([[2**30, 1], [0, 2**30]]))["per_category_iou"][0] == 2**30 / (2**30 + 1)

    def test_synthia_lists_leave_out_what_synthia_lacks(self):
        everything = set(CLASS_LISTS["cityscapes_19"])
        assert everything - set(CLASS_LISTS["synthia_16"]) == {9, 14, 16}
        assert everything - set(CLASS_LISTS["synthia_13"]) == {3, 4, 5, 9, 14, 16}


class TestStreaming:
    @pytest.mark.parametrize("batch", [1, 2, 3, 7])
    def test_the_batch_size_does_not_matter(self, batch):
        predictions, labels = (torch.tensor(maps) for maps in random_maps(7, 5, (7, 13, 11)))
        matrix = ConfusionMatrix(5)
        for start in range(0, 7, batch):
            matrix.update(predictions[start : start + batch], labels[start : start + batch])
        assert matrix.reduce()[:, :5].tolist() == naive_counts(predictions, labels, 5).tolist()
        assert matrix.images == 7

    def test_maps_of_different_sizes_come_as_lists(self):
        matrix = ConfusionMatrix(2)
        matrix.update([torch.tensor([[0, 1]]), torch.tensor([[1], [1], [1]])], [[[0, 0]], [[1], [1], [255]]])
        assert matrix.reduce().tolist() == [[1, 1, 0], [0, 2, 0]]

    def test_predictions_of_no_class_are_counted_apart(self):
        matrix = ConfusionMatrix(2)
        matrix.update(torch.tensor([[[0, 255, -1, 2]]]), torch.tensor([[[0, 0, 1, 255]]]))
        assert matrix.reduce().tolist() == [[1, 0, 1], [0, 0, 1]]

    def test_compute_can_be_called_while_it_grows(self):
        matrix = ConfusionMatrix(2)
        matrix.update(torch.tensor([[[0]]]), torch.tensor([[[0]]]))
        assert matrix.compute()["overall_accuracy"] == matrix.compute()["overall_accuracy"] == 1
        matrix.update(torch.tensor([[[0]]]), torch.tensor([[[1]]]))
        assert matrix.compute()["overall_accuracy"] == 0.5
        matrix.reset()
        assert math.isnan(matrix.compute()["overall_accuracy"]) and matrix.images == 0

    def test_a_bad_batch_is_not_counted_in_part(self):
        matrix = ConfusionMatrix(2)
        with pytest.raises(ValueError, match="The labels hold 9"):
            matrix.update(torch.zeros(2, 1, 1).long(), torch.tensor([[[0]], [[9]]]))
        assert matrix.counts.sum() == 0 and matrix.images == 0

    def test_pairs_must_be_complete(self):
        with pytest.raises(ValueError, match="2 predictions and 1 labels"):
            ConfusionMatrix(2).update(torch.zeros(2, 1, 1).long(), torch.zeros(1, 1, 1).long())

    def test_what_is_gathered_is_what_is_counted(self):
        # stands for accelerator.gather_for_metrics on the last batch, where the second image is a repeated one
        matrix = ConfusionMatrix(2, gather=lambda counts: counts[:1])
        matrix.update(torch.zeros(2, 1, 1).long(), torch.zeros(2, 1, 1).long())
        assert matrix.reduce().tolist() == [[1, 0, 0], [0, 0, 0]] and matrix.images == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_a_class_that_is_to_be_ignored_does_not_count(dtype):
    labels = torch.tensor([[[0, 1, 2], [1, 2, 255]]], dtype=dtype)
    predictions = torch.tensor([[[0, 1, 1], [2, 2, 0]]], dtype=dtype)
    found = confusion_matrix(predictions, labels, 3, ignore_index=1)
    assert found[0].tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
