"""`hf-fst train folders` as a stranger types it: what is missing is named as the option to type."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from hf_fst import cli
from tests.recipes import tiny

QUICK = ["--pretrained_backbone", "false", "--model_config.hidden_size", "8", "--crop_size", "32", "--max_steps", "1"]
QUICK += ["--eval_steps", "1", "--save_steps", "1", "--report", "false", "--use_cpu", str(tiny.USE_CPU)]


@pytest.fixture
def folders(tmp_path):
    """The two folders as options, with enough images that some are kept aside."""
    tiny.folders(tmp_path, count=10)
    return {"--data_dir": str(tmp_path / "labeled"), "--unlabeled_data_dir": str(tmp_path / "unlabeled/images")}


def argv(tmp_path, folders, *more):
    return ["train", "folders", *sum(folders.items(), ()), "-o", str(tmp_path / "out"), *more, *QUICK]


def test_a_forgotten_folder_is_the_option_to_type(says, tmp_path, folders):
    assert says(argv(tmp_path, folders | {"--data_dir": "null"}), 1) == (
        "--data_dir is missing; name the folder that holds images/ and masks/ with files of the same stems."
    )
    same = folders | {"--unlabeled_data_dir": folders["--data_dir"]}
    assert says(argv(tmp_path, same), 2).startswith("unlabeled_data_dir is data_dir, which holds masks too; name the ")
    del folders["--unlabeled_data_dir"]
    assert says(argv(tmp_path, folders), 2) == (
        "unlabeled_data_dir is missing; name the folder of the images without labels with --unlabeled_data_dir FOLDER, "
        "or learn from the labeled images alone with --rule supervised."
    )


def test_the_advice_works(tmp_path, folders):
    del folders["--unlabeled_data_dir"]
    assert cli.main(argv(tmp_path, folders, "--rule", "supervised")) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["rule"] == results["recipe"]["objective"] == "supervised"
    assert results["images"] == {"labeled": 9, "validation": 1}


def test_folders_that_are_not_there_are_named_with_their_options(says, tmp_path, folders):
    nowhere = str(tmp_path / "nowhere")
    assert says(argv(tmp_path, folders | {"--unlabeled_data_dir": nowhere}), 1) == (
        f"There is no folder {nowhere}; --unlabeled_data_dir must hold at least one image."
    )
    shutil.move(tmp_path / "labeled/masks", tmp_path / "labeled/annotations")
    assert says(argv(tmp_path, folders), 1) == (
        f"There is no folder {tmp_path}/labeled/masks; {tmp_path}/labeled must hold images/ and masks/ with files of the "
        "same stems, or give their names as --dataset_options.images and --dataset_options.masks."
    )
    names = tmp_path / "labeled/id2label.json"
    names.rename(tmp_path / "names.json")
    assert says(argv(tmp_path, folders), 1).endswith("--dataset_options.images and --dataset_options.masks.")
    (tmp_path / "names.json").rename(names)
    more = ["--dataset_options.masks", "annotations", "--rule", "supervised"]
    assert cli.main(argv(tmp_path, folders, *more)) == 0


def test_masks_of_other_names_name_the_options_for_suffixes(says, tmp_path, folders):
    for mask in (tmp_path / "labeled/masks").iterdir():
        mask.rename(mask.with_name(f"{mask.stem}_label.png"))
    said = says(argv(tmp_path, folders), 1)
    assert said.endswith("as --dataset_options.image_suffix and --dataset_options.mask_suffix.")
    more = ["--dataset_options.image_suffix", ".png", "--dataset_options.mask_suffix", "_label.png"]
    assert cli.main(argv(tmp_path, folders, *more, "--rule", "supervised")) == 0


def test_too_few_images_to_keep_any_aside_name_the_share(says, tmp_path, folders):
    for i in range(4):
        for part in ("images", "masks"):
            (tmp_path / f"labeled/{part}/{i}.png").unlink()
    assert says(argv(tmp_path, folders), 1) == (
        "validation_share 0.1 of 6 images is less than one image; give a larger share, such as "
        "--dataset_options.validation_share 0.3."
    )


@pytest.mark.parametrize(
    ("option", "end"),
    [("mask", "did you mean 'masks'[?]"), ("depth", "it has images, masks, .*, validation_share, seed[.]")],
)
def test_an_option_that_the_dataset_does_not_have_is_named(says, tmp_path, folders, option, end):
    said = says(argv(tmp_path, folders, f"--dataset_options.{option}", "x"), 1)
    assert re.fullmatch(f"The dataset 'folder' has no option '{option}'; {end}", said), said


def test_a_misspelled_metric_is_refused_before_anything_is_written(says, tmp_path, folders):
    assert says(argv(tmp_path, folders, "--metric_for_best_model", "teacher_mean_iuo"), 1) == (
        "metric_for_best_model is 'teacher_mean_iuo'; did you mean 'teacher_mean_iou'?"
    )
    assert not (tmp_path / "out").exists()


def test_supervised_beats_the_options_of_the_method_in_the_recipe(tmp_path):
    keys = tiny.folders(tmp_path) | {
        "rule": "fst_d",
        "lookahead_steps": 2,
        "confidence_threshold": 0.5,
        "max_steps": 1,
    }
    recipe = tiny.write(tmp_path / "r.yaml", keys, objective="pseudo_label")
    assert cli.main(["train", recipe, "-o", str(tmp_path / "out"), "--rule", "supervised"]) == 0
