"""Evaluation of a saved model on image files, against a count made without any of the package's code."""

import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import parse_eval_result_entries
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation, SegformerImageProcessor

from hf_fst.data.cityscapes import RAW_IDS
from hf_fst.data.labels import LabelMap
from hf_fst.errors import UserError
from hf_fst.evaluation.inference import Look
from hf_fst.evaluation.results import default_folder, image_names, table
from hf_fst.evaluation.runner import evaluate_model
from tests.device import USE_CPU
from tests.evaluation.conftest import NAMES, make_dataset, tiny_model

# at a tie between two classes another device may choose the other one
AS_COUNTED = pytest.mark.skipif(not USE_CPU, reason="the reference counts on the CPU")


def evaluate(model, dataset, **options):
    return evaluate_model(model, dataset, progress=False, **options)


def logits_by_hand(model, row, size=None):
    pixels = np.asarray(row["image"].convert("RGB"), dtype=np.float64) / 255
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    pixels = torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]
    if size is not None:
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
    with torch.no_grad():
        return model(pixel_values=pixels).logits


def count_by_hand(predictions, rows):
    counts = np.zeros((4, 4), dtype=np.int64)
    for prediction, row in zip(predictions, rows, strict=True):
        label = np.asarray(row["label"])
        for index in range(4):
            for other in range(4):
                counts[index, other] += ((label == index) & (prediction == other)).sum()
    return counts.tolist()


def predict_by_hand(model, rows):
    predictions = []
    for row in rows:
        size = row["image"].size[::-1]
        logits = F.interpolate(logits_by_hand(model, row), size, mode="bilinear", align_corners=False)
        predictions.append(logits.argmax(1)[0].numpy())
    return predictions


class TestScores:
    @AS_COUNTED
    @pytest.mark.parametrize("which, folder", [("teacher", "."), ("student", "student")])
    def test_equal_an_independent_count_to_the_last_pixel(self, run_dir, dataset, which, folder):
        model = AutoModelForSemanticSegmentation.from_pretrained(run_dir / folder)
        rows = list(dataset["validation"])
        expected = count_by_hand(predict_by_hand(model, rows), rows)
        result = evaluate(run_dir, dataset, which=which)
        assert result["confusion_matrix"] == expected
        assert np.count_nonzero(np.sum(expected, axis=0)) > 1  # a model that says one class everywhere proves little
        hits = np.diag(expected)
        union = np.sum(expected, axis=0) + np.sum(expected, axis=1) - hits
        assert result["mean_iou"] == pytest.approx((hits / union).mean(), abs=1e-15)
        assert result["images"] == 7 and result["classes"] == NAMES

    @AS_COUNTED
    @pytest.mark.parametrize("options", [
        {"batch_size": 3}, {"batch_size": 100}, {"num_workers": 1, "batch_size": 2},
        {"look": Look(window=64, stride=64)},
    ])  # fmt: skip
    def test_batches_workers_and_a_window_of_the_whole_image_change_nothing(self, run_dir, dataset, options):
        whole = evaluate(run_dir, dataset)
        assert evaluate(run_dir, dataset, **options)["confusion_matrix"] == whole["confusion_matrix"]

    def test_sliding_windows_equal_an_independent_count(self, run_dir, dataset):
        model = AutoModelForSemanticSegmentation.from_pretrained(run_dir)
        rows = [row for row in dataset["validation"] if row["image"].size == (64, 48)]
        predictions = []
        for row in rows:
            total, seen = torch.zeros(4, 48, 64), torch.zeros(48, 64)
            for top in (0, 16):
                for left in (0, 24, 32):
                    crop = {"image": row["image"].crop((left, top, left + 32, top + 32))}
                    logits = F.interpolate(logits_by_hand(model, crop), (32, 32), mode="bilinear", align_corners=False)
                    total[:, top : top + 32, left : left + 32] += logits[0]
                    seen[top : top + 32, left : left + 32] += 1
            predictions.append((total / seen).argmax(0).numpy())
        subset = dataset["validation"].select([i for i, row in enumerate(dataset["validation"]) if row in rows])
        result = evaluate(run_dir, subset, look=Look(window=32, stride=24))
        assert result["confusion_matrix"] == count_by_hand(predictions, rows)
        assert result["confusion_matrix"] != evaluate(run_dir, subset)["confusion_matrix"]

    def test_resized_images_are_scored_at_the_labels_size(self, run_dir, dataset):
        model = AutoModelForSemanticSegmentation.from_pretrained(run_dir)
        rows = [row for row in dataset["validation"] if row["image"].size == (64, 48)]
        predictions = []
        for row in rows:
            logits = F.interpolate(logits_by_hand(model, row, (24, 32)), (48, 64), mode="bilinear")
            predictions.append(logits.argmax(1)[0].numpy())
        subset = dataset["validation"].select([i for i, row in enumerate(dataset["validation"]) if row in rows])
        got = np.array(evaluate(run_dir, subset, look=Look(resize=(24, 32)))["confusion_matrix"])
        expected = np.array(count_by_hand(predictions, rows))
        # the package rounds resized images to bytes, so a few pixels may differ
        assert got.sum() == expected.sum() and np.abs(got - expected).sum() < 0.03 * got.sum()

    def test_the_models_own_size_leaves_labels_alone(self, tmp_path, dataset):
        processor = SegformerImageProcessor(size={"height": 32, "width": 32})
        result = evaluate(tiny_model(1), dataset, processor=processor, look=Look(resize="model"))
        assert result["protocol"] == "the model's own size"
        assert np.sum(result["confusion_matrix"]) == sum(
            int((np.asarray(row["label"]) != 255).sum()) for row in dataset["validation"]
        )

    @pytest.mark.parametrize("broken", [
        {"size": {"height": 0, "width": 0}},
        {"size": {"height": 10**9, "width": 3}},
        {"size": {"height": 32, "width": 32}, "resample": 99},
    ])  # fmt: skip
    def test_a_size_that_is_none_is_refused_before_the_first_image(self, dataset, broken):
        processor = SegformerImageProcessor(do_resize=True)
        for key, value in broken.items():
            setattr(processor, key, value)
        with pytest.raises(
            UserError, match="^The SegformerImageProcessor cannot bring images to its size .*, or choose"
        ):
            evaluate(tiny_model(1), dataset, processor=processor, look=Look(resize="model"))

    def test_a_class_list_by_name(self, tmp_path):
        data = make_dataset(tmp_path, sizes=[(32, 32)], num_labels=19)
        processor = SegformerImageProcessor(do_resize=False)
        everything = evaluate(tiny_model(1, 19), data, processor=processor)
        listed = evaluate(tiny_model(1, 19), data, processor=processor, classes="synthia_13")
        kept = [iou for index, iou in enumerate(everything["per_category_iou"]) if index not in (3, 4, 5, 9, 14, 16)]
        assert listed["mean_iou"] == pytest.approx(np.nanmean(kept), abs=1e-15)
        assert "(terrain)" not in table(everything) and "(class 9)" in table(listed)

    def test_views_are_used(self, run_dir, dataset):
        plain, many = evaluate(run_dir, dataset), evaluate(run_dir, dataset, look=Look(scales=(1.0, 1.5), flip=True))
        assert plain["confusion_matrix"] != many["confusion_matrix"]
        assert np.sum(plain["confusion_matrix"]) == np.sum(many["confusion_matrix"])

    def test_boundary_iou_is_given_on_request(self, run_dir, dataset):
        result = evaluate(run_dir, dataset, boundary=True)
        assert 0 < result["mean_boundary_iou"] < 1 and len(result["per_category_boundary_iou"]) == 4
        assert "boundary IoU" in table(result)

    def test_columns_may_have_their_other_names(self, run_dir, dataset):
        renamed = dataset["validation"].rename_columns({"image": "pixel_values", "label": "annotation"})
        renamed = renamed.cast_column("annotation", datasets.Image())
        expected = evaluate(run_dir, dataset)
        assert evaluate(run_dir, renamed)["confusion_matrix"] == expected["confusion_matrix"]


class TestFiles:
    def test_json_and_eval_results_hold_the_scores(self, run_dir, dataset, tmp_path):
        result = evaluate(run_dir, dataset, output_dir=tmp_path, dataset_id="someone/streets", look=Look(32, 16))
        written = json.loads((tmp_path / "evaluation.json").read_text())
        assert written["mean_iou"] == result["mean_iou"] and written["confusion_matrix"] == result["confusion_matrix"]
        (path,) = (tmp_path / ".eval_results").iterdir()
        assert path.name == "someone-streets-validation.yaml"
        (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text()))
        assert entry.dataset_id == "someone/streets" and entry.value == pytest.approx(result["mean_iou"], abs=1e-6)
        assert entry.notes == "mIoU of the teacher, split validation, full size, windows of 32 every 16"

    def test_places_tell_what_was_evaluated(self):
        plain = {"look": Look(), "options": {}, "classes": None}
        place = default_folder("nvidia/segformer-b0", "cityscapes", "validation", "teacher", "/data/city", **plain)
        assert place == Path("runs/eval/nvidia--segformer-b0-cityscapes-validation-teacher")
        assert default_folder("/models/../x y/", "voc", "test", "student", **plain) == Path(
            "runs/eval/models--..--x-y-voc-test-student"
        )
        own = [default_folder("m", "folder", "validation", "teacher", place, **plain) for place in ("a", "b", "a")]
        assert own[0] == own[2] != own[1]
        changed = [{"look": Look(64)}, {"look": Look(flip=True)}, {"classes": "synthia_16"}, {"options": {"a": 1}}]
        places = {default_folder("m", "voc", "test", "teacher", **{**plain, **change}) for change in changed}
        assert len(places) == 4 and default_folder("m", "voc", "test", "teacher", **plain) not in places

    def test_absent_classes_are_null_in_json(self, tmp_path):
        data = make_dataset(tmp_path, sizes=[(16, 16)], num_labels=19)
        Image.new("L", (16, 16), 2).save(tmp_path / "street_0_label.png")
        options = {"processor": SegformerImageProcessor(do_resize=False), "save_predictions": True}
        evaluate(tiny_model(1, 19), data, output_dir=tmp_path / "out", **options)
        seen = {2, *np.unique(Image.open(tmp_path / "out" / "predictions" / "street_0.png")).tolist()}
        found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["per_category_iou"]
        assert len(seen) < 19 and [iou is None for iou in found] == [i not in seen for i in range(19)]

    @AS_COUNTED
    def test_predictions_and_overlays(self, run_dir, dataset, tmp_path):
        evaluate(run_dir, dataset, output_dir=tmp_path, save_predictions=True, save_overlays=True, batch_size=2)
        rows = list(dataset["validation"])
        expected = predict_by_hand(AutoModelForSemanticSegmentation.from_pretrained(run_dir), rows)
        for index, prediction in enumerate(expected):
            written = Image.open(tmp_path / "predictions" / f"street_{index}.png")
            assert written.mode == "L" and np.array_equal(np.asarray(written), prediction)
            assert Image.open(tmp_path / "overlays" / f"street_{index}.jpg").size == rows[index]["image"].size

    def test_ids_for_the_cityscapes_server(self, tmp_path):
        data = make_dataset(tmp_path, sizes=[(32, 32)], num_labels=19)
        processor = SegformerImageProcessor(do_resize=False)
        options = {"processor": processor, "output_dir": tmp_path / "out"}
        evaluate(tiny_model(1, 19), data, save_predictions=True, **options)
        indices = np.asarray(Image.open(tmp_path / "out/predictions/street_0.png"))
        evaluate(tiny_model(1, 19), data, save_predictions="cityscapes", **options)
        ids = np.asarray(Image.open(tmp_path / "out/predictions/street_0.png"))
        assert np.array_equal(ids, np.array(RAW_IDS)[indices]) and RAW_IDS[0] == 7 and RAW_IDS[18] == 33

    def test_a_split_without_labels_can_be_predicted(self, run_dir, dataset, tmp_path):
        unlabeled = dataset["validation"].remove_columns("label")
        result = evaluate(run_dir, unlabeled, output_dir=tmp_path, save_predictions=True, look=Look(resize=32))
        assert result["mean_iou"] is None and not result["labeled"]
        assert Image.open(tmp_path / "predictions" / "street_1.png").size == (48, 64)
        assert json.loads((tmp_path / "evaluation.json").read_text())["mean_iou"] is None

    def test_names_of_images_are_never_shared(self, tmp_path):
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
        paths = [tmp_path / "a/one.png", tmp_path / "b/one.png", tmp_path / "b/two.png"]
        for path in paths:
            Image.new("RGB", (2, 2)).save(path)
        content = {"bytes": paths[0].read_bytes(), "path": None}
        features = datasets.Features(image=datasets.Image())
        made = datasets.Dataset.from_dict({"image": [*map(str, paths), content]}, features=features)
        assert image_names(made) == ["0_one", "1_one", "two", "3"]
        assert image_names(made.select([2, 1])) == ["two", "one"]

    def test_speed_is_shown(self, run_dir, dataset):
        result = evaluate(run_dir, dataset)
        assert result["images_per_second"] == pytest.approx(7 / result["seconds"])
        assert "7 images," in table(result) and all(name in table(result) for name in NAMES)
        assert "; 1 image, " in table({**result, "images": 1})

    def test_progress_is_shown(self, run_dir, dataset, capsys):
        evaluate_model(run_dir, dataset)
        assert "7/7" in capsys.readouterr().err


class TestBadInput:
    def test_class_counts_that_differ(self, run_dir, tmp_path):
        data = make_dataset(tmp_path, sizes=[(16, 16)], num_labels=5)
        data = data.cast_column("label", LabelMap(names=["a", "b", "c", "d", "e"]))
        with pytest.raises(ValueError, match="has 4 classes and the dataset 5: evaluate it on a dataset with the"):
            evaluate(run_dir, data)

    def test_classes_that_the_model_does_not_know_are_not_counted(self, run_dir, tmp_path, caplog):
        names = ["boat", "tree", "Car", "road", "dog", "sky"]
        rows = make_dataset(tmp_path, sizes=[(16, 16), (8, 24)], num_labels=4)
        more = rows.cast_column("label", LabelMap(names=names, id_map=[5, 0, 2, 4]))
        known = rows.cast_column("label", LabelMap(names=NAMES, id_map=[0, 255, 2, 255]))
        with caplog.at_level(logging.WARNING):
            result = evaluate(run_dir, more)
        assert "The model does not have the classes boat, dog, whose pixels are not counted." in caplog.text
        assert result["confusion_matrix"] == evaluate(run_dir, known)["confusion_matrix"]

    def test_class_names_that_differ_are_told(self, run_dir, dataset, caplog):
        other = dataset["validation"].cast_column("label", LabelMap(names=["sky", "street", "car", "tree"]))
        with caplog.at_level(logging.WARNING):
            evaluate(run_dir, other)
        assert "Class 1 is 'road' for the model and 'street' in the dataset" in caplog.text

    def test_class_names_that_differ_in_case_blanks_or_underscores_are_the_same(self, run_dir, dataset, caplog):
        other = dataset["validation"].cast_column("label", LabelMap(names=["SKY", "Road", "c ar", "tr_ee"]))
        with caplog.at_level(logging.WARNING):
            evaluate(run_dir, other)
        assert "Class" not in caplog.text

    @pytest.mark.parametrize("options, message", [
        ({"split": "test"}, "has no split 'test' .it has validation.; choose another"),
        ({"which": "both"}, "which is 'both'; give 'teacher' or 'student'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"classes": "synthia"}, "no class list 'synthia': choose one of cityscapes_19, synthia_16, synthia_13"),
        ({"classes": [4]}, "must name some of the 4 classes"),
        ({"classes": ["road"]}, "The class list .'road'. must name some of the 4 classes 0 to 3, each once"),
        ({"classes": [1, 0, 1]}, "must name some of the 4 classes 0 to 3, each once"),
        ({"output_dir": __file__}, r"test_runner.py cannot be written to .it is not a folder.; give another place"),
        ({"save_predictions": True}, "output_dir is missing; give it"),
        ({"save_predictions": "voc"}, "save_predictions is 'voc'"),
        ({"save_predictions": "cityscapes"}, "The model has 4 classes, but Cityscapes' ids are those of its 19"),
    ])  # fmt: skip
    def test_options(self, run_dir, dataset, options, message):
        with pytest.raises(ValueError, match=message):
            evaluate(run_dir, dataset, **options)

    def test_data(self, run_dir, dataset):
        unlabeled = dataset["validation"].remove_columns("label")
        with pytest.raises(ValueError, match="has no labels, so there is nothing to score: save predictions instead"):
            evaluate(run_dir, unlabeled)
        with pytest.raises(ValueError, match="has no images"):
            evaluate(run_dir, dataset["validation"].select([]))
        with pytest.raises(ValueError, match="The dataset is a list"):
            evaluate(run_dir, [])
        with pytest.raises(ValueError, match="needs its image processor"):
            evaluate(tiny_model(1), dataset)

    def test_masks_that_are_ignored_everywhere(self, run_dir, tmp_path):
        blank = make_dataset(tmp_path, [(16, 16)])
        Image.fromarray(np.full((16, 16), 255, np.uint8)).save(tmp_path / "street_0_label.png")
        with pytest.raises(
            ValueError, match="No pixel of the 1 images of 'validation' has a class, so there is nothing"
        ):
            evaluate(run_dir, blank)
