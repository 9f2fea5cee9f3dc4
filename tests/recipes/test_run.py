"""A run from a recipe: what it trains on, what it says, what it leaves behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from hf_fst import cli
from hf_fst.errors import UsageError
from hf_fst.recipes import load_recipe
from hf_fst.recipes.about import data_facts
from hf_fst.recipes.data import build_data, scored_classes
from hf_fst.recipes.load import make_recipe, to_config
from hf_fst.recipes.run import run, shareable
from hf_fst.training.checkpoints import complete_checkpoints
from hf_fst.training.settings import resolve
from tests.data import trees
from tests.recipes import tiny


@pytest.fixture(scope="module")
def street_run(tmp_path_factory):
    """The directory and the results of a run on street, with its report."""
    folder = tmp_path_factory.mktemp("street")
    path = tiny.write(folder / "r.yaml", tiny.STREET, rule="fst_d", eval_on_start=True, report=True)
    out = folder / "out"
    results = run(load_recipe(path, {"output_dir": str(out)}), command="hf-fst train r.yaml", overrides={})
    return out, results


def test_a_run_leaves_teacher_student_recipe_results_and_card(street_run):
    out, results = street_run
    teacher = AutoModelForSemanticSegmentation.from_pretrained(out)
    student = AutoModelForSemanticSegmentation.from_pretrained(out / "student")
    assert teacher.config.id2label[5] == "traffic sign" and teacher.config.label2id["car"] == 9
    assert any(not torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))
    assert not AutoImageProcessor.from_pretrained(out).do_resize
    assert json.loads((out / "results.json").read_text()) == results
    assert {"README.md", "curves.png", "samples.png", "fst_run.json", "history.json", "recipe.yaml"} <= {
        path.name for path in out.iterdir()
    }


def test_results_hold_what_a_table_needs(street_run):
    _, results = street_run
    assert results["command"] == "hf-fst train r.yaml"
    assert results["seeds"] == {"seed": 42, "data_seed": None, "split_seed": 0}
    assert results["images"] == {"labeled": 4, "unlabeled": 4, "validation": 2, "test": 2}
    assert {"torch", "transformers", "hf_fst"} <= results["versions"].keys()
    assert results["device"] and results["peak_memory_bytes"] > 0 and results["seconds_per_step"] > 0
    kinds = [(entry["weights"], entry["split"]) for entry in results["metrics"]]
    assert kinds == [("start", "validation"), ("last", "validation"), ("best", "validation"), ("best", "test")]
    assert [entry["step"] for entry in results["metrics"][:2]] == [0, 2]
    for entry in results["metrics"]:
        for network in ("student", "teacher"):
            ious = [iou for iou in entry[network]["iou"].values() if iou is not None]
            assert entry[network]["mean_iou"] == pytest.approx(sum(ious) / len(ious))


def test_the_best_entry_is_the_best_logged_one(street_run):
    out, results = street_run
    logged = [e for e in json.loads((out / "history.json").read_text()) if e.get("eval_runtime") and e["step"] > 0]
    best = max(logged, key=lambda entry: entry["eval_teacher_mean_iou"])
    entry = results["metrics"][2]
    assert (entry["step"], entry["teacher"]["mean_iou"]) == (best["step"], best["eval_teacher_mean_iou"])


def test_resume_goes_on_from_the_last_complete_checkpoint(street_run, tmp_path, capsys):
    source, _ = street_run
    out = tmp_path / "out"
    shutil.copytree(source, out)
    (complete_checkpoints(out)[-1] / "complete.json").unlink()  # was cut off while it was written
    assert [path.name for path in complete_checkpoints(out)] == ["checkpoint-1"]
    assert cli.main(["train", str(out / "recipe.yaml"), "-o", str(out), "--resume"]) == 0
    history = json.loads((out / "history.json").read_text())
    assert [entry["step"] for entry in history if "labeled_loss" in entry] == [1, 2]
    assert "last" in capsys.readouterr().out


def test_overwrite_removes_the_old_run_and_nothing_else(street_run, tmp_path):
    source, _ = street_run
    out = tmp_path / "out"
    shutil.copytree(source, out)
    (out / "mine.txt").write_text("mine")
    (out / "notes").mkdir()
    (out / "checkpoint-2-kept").mkdir()
    options = ["--overwrite", "--max_steps", "1", "--eval_on_start", "false"]
    assert cli.main(["train", str(out / "recipe.yaml"), "-o", str(out), *options]) == 0
    assert (out / "mine.txt").is_file() and (out / "notes").is_dir() and (out / "checkpoint-2-kept").is_dir()
    assert not (out / "checkpoint-2").exists() and (out / "checkpoint-1").is_dir()
    assert not (out / "fst_run.json").exists() or json.loads((out / "fst_run.json").read_text())["steps"] == 1
    assert json.loads((out / "results.json").read_text())["steps"] == 1


def test_overwrite_is_refused_where_no_run_is(tmp_path, capsys):
    for name in ("README.md", "mine.py", "runs/first/config.json"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("mine")
    recipe = tiny.write(tmp_path / "r.yaml", {**tiny.folders(tmp_path), "max_steps": 1})
    assert cli.main(["train", recipe, "-o", str(tmp_path / "mine"), "--overwrite"]) == 1
    assert "holds no run (it has no recipe.yaml)" in capsys.readouterr().err
    kept = sorted(path.name for path in (tmp_path / "mine").rglob("*") if path.is_file())
    assert kept == ["README.md", "config.json", "mine.py"]


def test_a_run_that_cannot_start_leaves_the_old_one_alone(street_run, tmp_path):
    source, _ = street_run
    out = tmp_path / "out"
    shutil.copytree(source, out)
    before = sorted(path.relative_to(out) for path in out.rglob("*"))
    assert cli.main(["train", str(out / "recipe.yaml"), "-o", str(out), "--overwrite", "--labeled", "400"]) == 1
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before


def test_json_goes_to_stdout_alone(tmp_path, capsys):
    keys = {**tiny.folders(tmp_path), "max_steps": 1}
    recipe = tiny.write(tmp_path / "r.yaml", keys)
    assert cli.main(["train", recipe, "-o", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1


def test_nothing_of_this_machine_is_written_down(tmp_path):
    keys = {**tiny.folders(tmp_path), "max_steps": 1, "hub_token": "hf_secret"}
    recipe = tiny.write(tmp_path / "r.yaml", keys, id2label=str(tmp_path / "labeled/id2label.json"))
    assert cli.main(["train", recipe, "-o", str(tmp_path / "out"), "--data_dir", str(tmp_path / "labeled")]) == 0
    for name in ("recipe.yaml", "results.json", "history.json"):
        text = (tmp_path / "out" / name).read_text()
        assert str(tmp_path) not in text and "hf_secret" not in text
    assert json.loads((tmp_path / "out/results.json").read_text())["command"] == (
        "hf-fst train r.yaml --output_dir OUTPUT_DIR --data_dir DATA_DIR"
    )


def test_shareable_cuts_absolute_paths_and_drops_folders():
    values = {
        "data_dir": "x",
        "id2label": "/home/me/names.json",
        "model": "~/net",
        "dataset": "folder",
        "labeled": "1/8",
    }
    assert shareable(values) == {"id2label": "names.json", "model": "net", "dataset": "folder", "labeled": "1/8"}


def test_the_published_schedule_and_head_rate_are_used(tmp_path):
    keys = {"max_steps": 4, "schedule": "poly", "warmup_steps": 2, "learning_rate": 0.1, "head_lr_multiplier": 10}
    path = tiny.write(tmp_path / "r.yaml", tiny.folders(tmp_path), keys, no_decay=["norm"], save_strategy="steps")
    run(load_recipe(path, {"output_dir": str(tmp_path / "out")}))
    rates = [entry["learning_rate"] for entry in json.loads((tmp_path / "out/history.json").read_text())[:4]]
    # (1 - i/4) and, in the first two steps, times 1e-6 and one half
    assert rates == pytest.approx([0.1 * 1e-6, 0.1 * 0.75 * 0.5, 0.1 * 0.5, 0.1 * 0.25], rel=1e-5)
    optimizer = torch.load(tmp_path / "out/checkpoint-4/optimizer.pt", weights_only=False)
    groups = {group["name"]: (group["initial_lr"], group["weight_decay"]) for group in optimizer["param_groups"]}
    assert groups == {"backbone": (0.1, 0.0), "backbone_no_decay": (0.1, 0.0), "head": (1.0, 0.0)}


def data_of(keys: dict):
    recipe = make_recipe(keys)
    config = to_config(recipe)
    return build_data(recipe, config, resolve(config).objective)


def test_semi_supervised_takes_the_rest_as_unlabeled_and_evaluates_on_its_own_splits(tmp_path):
    trees.camvid(tmp_path, counts=(5, 2, 3))
    data = data_of({"dataset": "camvid", "data_dir": str(tmp_path), "labeled": 2, "resize": [24, 18], "crop_size": 16})
    assert [len(view) for view in (data.labeled, data.unlabeled, data.validation, data.test)] == [2, 3, 2, 3]
    assert data.labeled[0]["pixel_values"].shape == (3, 16, 16)
    item = data.test[0]
    assert item["pixel_values"].shape == (3, 18, 24) and item["labels"].shape == (36, 48)  # labels keep their size
    assert data.names[8] == "car"


def test_domain_adaptation_evaluates_on_the_unlabeled_side(tmp_path):
    trees.gta5(tmp_path / "gta5")
    trees.cityscapes(tmp_path / "city")
    keys = {
        **{"dataset": "gta5", "data_dir": str(tmp_path / "gta5"), "resize": [48, 32]},
        **{"unlabeled_dataset": "cityscapes", "unlabeled_data_dir": str(tmp_path / "city")},
        **{"unlabeled_resize": [64, 32], "crop_size": 24, "cat_max_ratio": 0.75},
        "rare_class_sampling": {"min_pixels": 10, "temperature": 0.1},
    }
    data = data_of(keys)
    assert len(data.labeled) == 4 and len(data.unlabeled) == 4 and len(data.validation) == 2 and data.test is None
    assert data.validation[0]["pixel_values"].shape == (3, 32, 64)
    assert data.labeled[0]["pixel_values"].shape == (3, 24, 24) and "labels" in data.unlabeled[0]
    assert "labels" not in data_of({**keys, "unlabeled_diagnostics": False}).unlabeled[0]


def test_a_few_target_images_keep_their_labels_and_join_the_labeled_ones(tmp_path):
    raw = trees.gta5(tmp_path / "gta5")["train"]
    city = trees.cityscapes(tmp_path / "city", counts=(5, 2, 0))
    keys = {
        **{"dataset": "gta5", "data_dir": str(tmp_path / "gta5"), "resize": [48, 32], "crop_size": 24},
        **{"unlabeled_dataset": "cityscapes", "unlabeled_data_dir": str(tmp_path / "city")},
        **{"unlabeled_resize": [64, 32], "target_labeled": 2},
    }
    data = data_of(keys)
    assert len(raw) == 4 and len(city["train"]) == 5
    assert (len(data.labeled), data.few, len(data.unlabeled), len(data.validation)) == (6, 2, 3, 2)
    few = {value["path"] for value in data.labeled.datasets[1]._stored["image"]}
    rest = {value["path"] for value in data.unlabeled._stored["image"]}
    assert len(few | rest) == 5 and not few & rest and all("leftImg8bit" in path for path in few)
    assert all(data.labeled[i]["labels"].shape == (24, 24) for i in (0, 5))
    rare = data_of(
        {**keys, "target_labeled": "2/5", "target_labeled_share": 0.9, "rare_class_sampling": {"min_pixels": 5}}
    )
    assert rare.labeled.sources[0] is rare.rare and rare.labeled.probabilities.tolist() == pytest.approx([0.1, 0.9])
    recipe = make_recipe({**keys, "target_labeled": 2})
    facts = data_facts(recipe, data, to_config(recipe))
    assert (facts["labeled"].images, facts["labeled"].config) == (6, "and 2 of Cityscapes")
    with pytest.raises(UsageError, match="^target_labeled is set, but there is no unlabeled_dataset to take it from;"):
        data_of({"dataset": "gta5", "data_dir": str(tmp_path / "gta5"), "target_labeled": 2})
    with pytest.raises(ValueError, match="^5 labeled images are asked for, but 1 to 4 can be chosen here.$"):
        data_of({**keys, "target_labeled": 5})


def test_rare_class_sampling_is_shown_as_a_table_and_a_picture(tmp_path, capsys):
    keys = {**tiny.folders(tmp_path, ids=3), "max_steps": 1}
    for i in range(4):  # nobody has class 2
        path = tmp_path / f"labeled/masks/{i}.png"
        mask = np.zeros((40, 48), dtype=np.uint8)
        mask[:10, :12] = 1
        PIL.Image.fromarray(mask).save(path)
    recipe = tiny.write(tmp_path / "r.yaml", keys, rare_class_sampling={"min_pixels": 10, "temperature": 1.0})
    with pytest.warns(UserWarning, match="^No image has the class 'class 2'; Rare Class Sampling never draws it.$"):
        assert cli.main(["train", recipe, "-o", str(tmp_path / "out")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("class ")]
    # 120 of 1920 pixels are class 1; it is drawn with 1 / (1 + exp(-(1800 - 120) / 1920)) = 0.7057
    assert rows[1:] == [
        ["class", "0", "7,200", "93.8", "4", "29.4"],
        ["class", "1", "480", "6.2", "4", "70.6"],
        ["class", "2", "0", "0.0", "0", "0.0"],
    ]
    assert PIL.Image.open(tmp_path / "out/class_sampling.png").size[0] == 880


def test_the_labeled_side_is_evaluated_where_the_unlabeled_one_has_no_such_split(tmp_path):
    keys = tiny.folders(tmp_path, count=5)
    keys = {key: value for key, value in keys.items() if key not in ("eval_split", "eval_strategy")}
    data = data_of({**keys, "dataset_options": {"validation_share": 0.4}, "crop_size": 32, "eval_crop": 30})
    assert [len(view) for view in (data.labeled, data.unlabeled, data.validation)] == [3, 5, 2]
    assert data.evaluated == "folder" and data.test is None
    assert data.validation[0]["labels"].shape == (30, 30)


def test_without_a_crop_size_crops_are_as_large_as_the_first_image(tmp_path):
    trees.camvid(tmp_path)
    data = data_of({"dataset": "camvid", "data_dir": str(tmp_path), "labeled": 2, "resize": [24, 18]})
    assert data.labeled[0]["pixel_values"].shape == (3, 18, 24)


def test_labeled_images_come_from_a_list_a_share_or_a_count(tmp_path):
    keys = {**tiny.folders(tmp_path, count=5), "unlabeled_dataset": None, "unlabeled_data_dir": None}
    keys |= {"unlabeled_options": None, "crop_size": 32}
    (tmp_path / "list.txt").write_text("images/3.png\n1\n")
    listed = data_of({**keys, "labeled": str(tmp_path / "list.txt")})
    stored = listed.labeled._stored["image"]
    assert [Path(value["path"]).name for value in stored] == ["3.png", "1.png"]
    assert len(listed.unlabeled) == 3
    assert len(data_of({**keys, "labeled": "1/4"}).labeled) == 2  # rounded up, as the published splits are
    assert len(data_of({**keys, "labeled": 4}).unlabeled) == 1
    (tmp_path / "list.txt").write_text("9\n")
    with pytest.raises(ValueError, match="names '9', which 0 images of train have; give names that are there once."):
        data_of({**keys, "labeled": str(tmp_path / "list.txt")})


def test_splits_that_are_not_there_are_named(tmp_path):
    trees.camvid(tmp_path)
    keys = {"dataset": "camvid", "data_dir": str(tmp_path), "labeled": 2}
    with pytest.raises(ValueError, match="The evaluated dataset has no split 'tset' .it has train, unlabeled, "):
        data_of({**keys, "test_split": "tset"})
    assert data_of({**keys, "test_split": False, "eval_split": False}).test is None
    asking = {"eval_split": False, "eval_on_start": True}
    with pytest.raises(ValueError, match="^eval_split is false, but the recipe .*; set eval_on_start: false.$"):
        data_of({**keys, **asking})
    best = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    with pytest.raises(ValueError, match="; set eval_strategy: no and load_best_model_at_end: false.$"):
        data_of({**keys, "eval_split": False, **best})
    folders = tiny.folders(tmp_path / "own")
    with pytest.raises(ValueError, match="The evaluated dataset has no split 'validation' .it has train"):
        data_of({**{k: v for k, v in folders.items() if "eval" not in k}, "eval_strategy": "steps", "eval_steps": 1})


def test_labels_of_two_sides_must_have_the_same_classes(tmp_path):
    trees.camvid(tmp_path / "camvid")
    keys = {"dataset": "street", "dataset_options": tiny.STREET["dataset_options"]}
    with pytest.raises(ValueError, match="^Training has the classes road, .* but validation has sky, building, "):
        data_of({**keys, "unlabeled_dataset": "camvid", "unlabeled_data_dir": str(tmp_path / "camvid")})


def test_means_are_taken_over_the_wanted_classes():
    names = ["a", "b", "c"]
    assert scored_classes(make_recipe({}), names) is None
    assert scored_classes(make_recipe({"eval_classes": ["c", 0]}), names) == [2, 0]
    nineteen = [str(i) for i in range(19)]
    assert len(scored_classes(make_recipe({"eval_classes": "synthia_16"}), nineteen)) == 16
    with pytest.raises(UsageError, match="^eval_classes names 'd', but the classes are a, b, c.$"):
        scored_classes(make_recipe({"eval_classes": ["d"]}), names)


def test_the_wanted_classes_decide_what_is_logged_best_and_on_the_card(tmp_path):
    wanted = {"eval_classes": ["road", 9], "eval_steps": 1, "max_steps": 3, "learning_rate": 0.01, "report": True}
    path = tiny.write(tmp_path / "r.yaml", tiny.STREET, wanted, save_total_limit=1)
    out = tmp_path / "out"
    results = run(load_recipe(path, {"output_dir": str(out)}))
    assert results["scored_classes"] == [0, 9]
    logged = [e for e in json.loads((out / "history.json").read_text()) if "eval_teacher_mean_iou" in e]
    for entry in logged:
        for network in ("student", "teacher"):
            pair = [entry[f"eval_{network}_iou_{name}"] for name in ("road", "car")]
            assert entry[f"eval_{network}_mean_iou"] == pytest.approx(sum(pair) / 2)
    best = max(logged, key=lambda entry: entry["eval_teacher_mean_iou"])
    kept = next(entry for entry in results["metrics"] if entry["weights"] == "best")
    assert (kept["step"], kept["teacher"]["mean_iou"]) == (best["step"], best["eval_teacher_mean_iou"])
    card = (out / "README.md").read_text()
    assert "Means are over 2 of the 10 classes; the others stand in brackets." in card
    assert "| (sidewalk)" in card and "| road " in card
    assert f"mIoU {100 * results['metrics'][-1]['teacher']['mean_iou']:.1f} %" in card


def test_a_wanted_class_that_the_model_lacks_is_refused_by_the_trainer(tmp_path):
    from hf_fst import FSTConfig, FSTTrainer
    from tests.evaluation.conftest import tiny_model

    args = FSTConfig(output_dir=str(tmp_path), rule="supervised", eval_classes=[0, 4], use_cpu=True)
    with pytest.raises(ValueError, match=r"^eval_classes is \[0, 4\], but the model has the classes 0 to 3.$"):
        FSTTrainer(model=tiny_model(0), args=args)


def test_id2label_is_for_datasets_that_do_not_name_their_classes(tmp_path):
    trees.camvid(tmp_path)
    with pytest.raises(UsageError, match="the dataset 'camvid' names its classes itself; leave it out."):
        data_of({"dataset": "camvid", "data_dir": str(tmp_path), "labeled": 2, "id2label": "names.json"})


def test_the_written_recipe_is_complete(street_run):
    out, results = street_run
    values = yaml.safe_load((out / "recipe.yaml").read_text())
    assert values == results["recipe"]
    assert load_recipe(out / "recipe.yaml").model_config == tiny.MODEL
