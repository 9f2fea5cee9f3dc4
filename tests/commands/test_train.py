"""What `hf-fst train` refuses, and how it says so."""

from __future__ import annotations

import json
import math

import numpy as np
import PIL.Image
import pytest

from hf_fst import cli
from hf_fst.commands.train import split_overrides
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.recipes.load import as_dict, load_recipe
from hf_fst.recipes.names import recipe_names
from tests.recipes import tiny


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--lookahead_steps", "-1", "--rule", "fst_d"], "lookahead_steps is -1; use a number from 0 to 1000."),
        (["--teacher_momentum", "1.5"], "teacher_momentum is 1.5; use a number from 0 to 1."),
        (
            ["--rule", "fst"],
            "rule is 'fst'; use one of supervised, mean_teacher, naive_fst, improved_fst, fst_d, fst_w.",
        ),
        (
            ["--objective", "mix"],
            f"objective is 'mix'; use one of {', '.join(OBJECTIVES)}.",
        ),
        (["--model", "dafomer-mit-b5"], "There is no model 'dafomer-mit-b5'; did you mean 'daformer-mit-b5'?"),
        (["--learnin-rate=1"], "There is no key 'learnin_rate' in a recipe; did you mean 'learning_rate'?"),
        (["--overwrite", "--resume"], "--overwrite and --resume exclude each other; give one."),
        (
            ["--model_config.depths", "3"],
            "model_config of model_type 'segformer' gives no segmentation model: Validation error for field 'depths': "
            "TypeError: Field 'depths' with value 3 doesn't match any type in (list[int], tuple[int, ...]). "
            "Errors: Field 'depths' expected a list, got int; Field 'depths' expected a tuple, got int.",
        ),
    ],
)
def test_wrong_usage_is_one_sentence_and_code_2(says, tmp_path, camvid, options, sentence):
    recipe = tiny.write(tmp_path / "r.yaml", camvid)
    assert says(["train", recipe, "-o", str(tmp_path / "out"), *options], 2) == sentence
    assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_segment_is_wrong_usage(says, tmp_path, camvid):
    recipe = tiny.write(tmp_path / "r.yaml", camvid, model_config={"model_type": "bert"})
    assert says(["train", recipe, "-o", str(tmp_path / "out")], 2) == (
        "model_config of model_type 'bert' gives no segmentation model: Unrecognized configuration class "
        "<class 'transformers.models.bert.configuration_bert.BertConfig'> for this kind of AutoModel: "
        "AutoModelForSemanticSegmentation."
    )


def test_a_missing_recipe_is_a_failure(says):
    assert says(["train", "none.yaml"], 1).startswith("There is no recipe 'none.yaml'; give the path ")


def test_a_missing_folder_is_named(says, tmp_path, camvid):
    recipe = tiny.write(tmp_path / "r.yaml", camvid)
    argv = ["train", recipe, "-o", str(tmp_path / "out"), "--data_dir", str(tmp_path / "nowhere")]
    assert says(argv, 1) == (
        f"There is no folder {tmp_path}/nowhere; --data_dir must hold train/, trainannot/, val/, valannot/, test/ and "
        "testannot/ (images and index masks of the same names)."
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mask_of_another_size_is_named(says, tmp_path, workers):
    keys = tiny.folders(tmp_path)
    mask, image = tmp_path / "labeled/masks/2.png", tmp_path / "labeled/images/2.png"
    PIL.Image.new("L", (47, 40)).save(mask)
    recipe = tiny.write(tmp_path / "r.yaml", keys, dataloader_num_workers=workers)
    assert says(["train", recipe, "-o", str(tmp_path / "out")], 1) == (
        f"The mask {mask} is 47 x 40 pixels, but its image {image} is 48 x 40; they must have the same size."
    )


def test_label_ids_out_of_range_are_named(says, tmp_path):
    keys = tiny.folders(tmp_path)
    mask = tmp_path / "labeled/masks/1.png"
    PIL.Image.fromarray(np.full((40, 48), 7, dtype=np.uint8)).save(mask)
    recipe = tiny.write(tmp_path / "r.yaml", keys)
    assert says(["train", recipe, "-o", str(tmp_path / "out")], 1) == (
        f"{mask} has label ids out of range (7): 0 to 1 and 255 (ignored) are accepted; correct the mask or the "
        "class names, or give an id_map, the train id or 255 of each raw id."
    )


def test_an_unreadable_image_is_named(says, tmp_path):
    keys = tiny.folders(tmp_path)
    image = tmp_path / "unlabeled/images/3.png"
    image.write_bytes(b"no picture")
    recipe = tiny.write(tmp_path / "r.yaml", keys)
    assert says(["train", recipe, "-o", str(tmp_path / "out")], 1) == (
        f"{image} is not an image; replace it or remove it from the dataset."
    )


def test_an_empty_unlabeled_set_is_refused(says, tmp_path, camvid):
    keys = tiny.folders(tmp_path)
    for image in (tmp_path / "unlabeled/images").iterdir():
        image.unlink()
    recipe = tiny.write(tmp_path / "r.yaml", keys)
    assert says(["train", recipe, "-o", str(tmp_path / "out")], 1) == (
        f"{tmp_path}/unlabeled/images holds no files *.jpg, *.jpeg, *.png, *.bmp, *.tif, *.tiff, *.webp; "
        "images/ is expected."
    )
    argv = ["train", tiny.write(tmp_path / "r.yaml", camvid, labeled=4), "-o", str(tmp_path / "out")]
    assert says(argv, 1) == "4 labeled images are asked for, but 1 to 3 can be chosen here."
    argv = ["train", tiny.write(tmp_path / "r.yaml", camvid, labeled=None), "-o", str(tmp_path / "out")]
    assert says(argv, 2) == (
        "objective 'cut_mix' learns from unlabeled images, but there are none; set unlabeled_dataset, or labeled for a "
        "part of `dataset`, or use rule: supervised."
    )


def test_a_trained_head_with_other_classes_is_refused_or_replaced(says, tmp_path, camvid):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    options = {key: value for key, value in tiny.MODEL.items() if key != "model_type"}
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=5, **options)).save_pretrained(tmp_path / "five")
    recipe = tiny.write(tmp_path / "r.yaml", camvid, model=str(tmp_path / "five"), model_config=None)
    argv = ["train", recipe, "-o", str(tmp_path / "out")]
    assert says(argv, 1) == (
        f"The model {tmp_path}/five has 5 classes but the dataset has 11; set replace_head: true to give it a new "
        "head, or use a dataset with its classes."
    )
    assert cli.main([*argv, "--replace_head", "--max_steps", "1"]) == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["id2label"]["8"] == "car"


def test_a_batch_without_labeled_pixels_is_trained_on_without_nan(tmp_path):
    keys = tiny.folders(tmp_path)
    for mask in sorted((tmp_path / "labeled/masks").iterdir())[1:]:
        PIL.Image.new("L", (48, 40), 255).save(mask)
    recipe = tiny.write(tmp_path / "r.yaml", keys, objective="pseudo_label")
    assert cli.main(["train", recipe, "-o", str(tmp_path / "out")]) == 0
    losses = [entry for entry in json.loads((tmp_path / "out/history.json").read_text()) if "labeled_loss" in entry]
    # two steps see each of the four images once: one of them sees the one that has labels
    without, with_labels = sorted(entry["labeled_loss"] for entry in losses)
    assert without == 0.0 < with_labels
    assert all(math.isfinite(entry["loss"]) and entry["loss"] > 0 for entry in losses)
    assert json.loads((tmp_path / "out/results.json").read_text())["skipped_steps"] == {"real": 0, "virtual": 0}


def test_labels_that_are_all_ignored_are_refused(says, tmp_path):
    keys = tiny.folders(tmp_path)
    for mask in (tmp_path / "labeled/masks").iterdir():
        PIL.Image.new("L", (48, 40), 255).save(mask)
    sentence = says(["train", tiny.write(tmp_path / "r.yaml", keys), "-o", str(tmp_path / "out")], 1)
    assert sentence.startswith("No pixel of the labels has a class: all are 255 (ignored)")
    assert not (tmp_path / "out").exists()


def test_an_output_directory_with_something_in_it_is_refused(says, tmp_path, camvid):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    recipe = tiny.write(tmp_path / "r.yaml", camvid)
    assert says(["train", recipe, "-o", str(out)], 1) == (
        f"The output directory {out} is not empty; give another output_dir, --resume to continue its run, or "
        "--overwrite to replace it."
    )
    assert says(["train", recipe, "-o", str(out), "--resume"], 1) == (
        f"{out} holds no complete checkpoint to resume from; start it without --resume."
    )
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_the_help_of_train_names_every_key(capsys):
    from hf_fst.recipes.keys import own_keys

    assert cli.main(["train", "--help"]) == 0
    words = set(capsys.readouterr().out.split())
    assert {*own_keys(), "rule", "lookahead_steps", "teacher_momentum", "defaults", "sweep", "--dry_run"} <= words


def test_overrides_are_taken_out_of_the_arguments():
    argv = [
        "train",
        "--rule",
        "fst_w",
        "r.yaml",
        "--dry-run",
        "--bf16",
        "--sweep",
        "a",
        "--model-config.depth=3",
        "-o",
        "x",
    ]
    assert split_overrides(argv) == (
        ["train", "r.yaml", "--dry_run", "--sweep", "a"],
        {"rule": "fst_w", "bf16": "true", "model_config.depth": "3", "output_dir": "x"},
    )
    assert split_overrides(["train", "--replace_head", "-o", "x"])[1] == {"replace_head": "true", "output_dir": "x"}


def test_the_recipes_of_the_library_are_listed_with_a_line_each(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert cli.main(["train", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert "folders                    Two folders of your own: one with labels, one without." in lines


def test_the_config_of_a_run_is_printed_as_a_recipe_that_can_be_trained(capsys, tmp_path):
    assert cli.main(["train", "camvid-semi", "--sweep", "fst_d", "--print_config", "--seed", "3"]) == 0
    path = tmp_path / "mine.yaml"
    path.write_text(text := capsys.readouterr().out, encoding="utf-8")
    assert text.startswith("# CamVid with 1/8 of the labels: four methods, equal iterations.")
    printed, recipe = load_recipe(path), load_recipe("camvid-semi", {"seed": "3"}, "fst_d")
    assert as_dict(printed) == as_dict(recipe) and recipe.options["seed"] == 3
