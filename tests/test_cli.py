"""The command line: what it prints, and how it says no."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from hf_fst import cli
from hf_fst.commands.train import split_overrides
from tests.data import trees
from tests.recipes import tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture
def camvid(tmp_path):
    """The folder of a tiny CamVid and the recipe keys for it."""
    trees.camvid(tmp_path / "camvid")
    return {"dataset": "camvid", "data_dir": str(tmp_path / "camvid"), "labeled": 2, "objective": "cut_mix"}


def says(capsys, argv: list[str], code: int) -> str:
    """Runs a command that must fail with `code`; the one sentence it says."""
    assert cli.main(argv) == code
    sentences = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-fst: ")]
    assert len(sentences) == 1
    return sentences[0].removeprefix("hf-fst: ")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--lookahead_steps", "-1", "--rule", "fst_d"], "lookahead_steps (K) is -1; use 0 (mean teacher) or more."),
        (["--teacher_momentum", "1.5"], "teacher_momentum is 1.5; use a number from 0 to 1."),
        (
            ["--rule", "fst"],
            "rule is 'fst'; use one of supervised, mean_teacher, naive_fst, improved_fst, fst_d, fst_w.",
        ),
        (
            ["--objective", "mix"],
            "objective is 'mix'; use one of supervised, pseudo_label, class_mix, cut_mix, entropy_drop.",
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
def test_wrong_usage_is_one_sentence_and_code_2(capsys, tmp_path, camvid, options, sentence):
    recipe = tiny.write(tmp_path / "r.yaml", camvid)
    assert says(capsys, ["train", recipe, "-o", str(tmp_path / "out"), *options], 2) == sentence
    assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_segment_is_wrong_usage(capsys, tmp_path, camvid):
    recipe = tiny.write(tmp_path / "r.yaml", camvid, model_config={"model_type": "bert"})
    assert says(capsys, ["train", recipe, "-o", str(tmp_path / "out")], 2) == (
        "model_config of model_type 'bert' gives no segmentation model: Unrecognized configuration class "
        "<class 'transformers.models.bert.configuration_bert.BertConfig'> for this kind of AutoModel: "
        "AutoModelForSemanticSegmentation."
    )


def help_of(capsys, *words):
    assert cli.main([*words, "--help"]) == 0
    return capsys.readouterr().out


def test_every_command_explains_itself_and_its_examples_have_only_its_options(capsys):
    commands = re.findall(r"^    (\w+)  ", help_of(capsys).partition("commands:")[2], re.MULTILINE)
    assert len(commands) == len(cli.COMMANDS)
    for command in commands:
        text = help_of(capsys, command)
        known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", text.partition("\nexample")[0]))
        assert {"--json", "--debug", "-h"} <= known
        examples = re.findall(rf"^  .*?hf-fst {command} (.*)$", text, re.MULTILINE)
        assert examples, f"{command} has no example"
        if command != "train":  # whose options are the keys of a recipe
            used = {word.partition("=")[0] for line in examples for word in line.split() if word.startswith("-")}
            assert used <= known, f"{command} has no {used - known}"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["eval", "m", "street", "--window", "0"], "Argument --window: '0' is no whole number, 1 or more"),
        (["predict", "m", "i", "-o", "o", "-j", "two"], "Argument -j/--workers: 'two' is no whole number, 0 or more"),
        (["demo", "m", "--port", "99999"], "Argument --port: '99999' is no whole number, 1 to 65535"),
    ],
)
def test_a_number_out_of_range_is_wrong_usage(capsys, argv, sentence):
    assert says(capsys, argv, 2) == f"{sentence}; `hf-fst {argv[0]} --help` shows how to use it."


def test_an_unknown_command_is_one_sentence_and_code_2(capsys):
    assert says(capsys, ["trian"], 2).startswith("Argument COMMAND: invalid choice: 'trian' (choose from ")
    assert says(capsys, ["train"], 2) == (
        "The following arguments are required: RECIPE; `hf-fst train --help` shows how to use it."
    )


def test_a_missing_recipe_is_a_failure(capsys):
    assert says(capsys, ["train", "none.yaml"], 1) == "There is no recipe none.yaml; give a YAML file."


def test_a_missing_folder_is_named(capsys, tmp_path, camvid):
    recipe = tiny.write(tmp_path / "r.yaml", camvid)
    argv = ["train", recipe, "-o", str(tmp_path / "out"), "--data_dir", str(tmp_path / "nowhere")]
    assert says(capsys, argv, 1) == (
        f"There is no folder {tmp_path}/nowhere; data_dir must hold train/, trainannot/, val/, valannot/, test/ and "
        "testannot/ (images and index masks of the same names)."
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mask_of_another_size_is_named(capsys, tmp_path, workers):
    keys = tiny.folders(tmp_path)
    mask, image = tmp_path / "labeled/masks/2.png", tmp_path / "labeled/images/2.png"
    PIL.Image.new("L", (47, 40)).save(mask)
    recipe = tiny.write(tmp_path / "r.yaml", keys, dataloader_num_workers=workers)
    assert says(capsys, ["train", recipe, "-o", str(tmp_path / "out")], 1) == (
        f"The mask {mask} is 47 x 40 pixels, but its image {image} is 48 x 40; they must have the same size."
    )


def test_label_ids_out_of_range_are_named(capsys, tmp_path):
    keys = tiny.folders(tmp_path)
    mask = tmp_path / "labeled/masks/1.png"
    PIL.Image.fromarray(np.full((40, 48), 7, dtype=np.uint8)).save(mask)
    recipe = tiny.write(tmp_path / "r.yaml", keys)
    assert says(capsys, ["train", recipe, "-o", str(tmp_path / "out")], 1) == (
        f"{mask} has label ids out of range (7): 0 to 1 and 255 (ignored) are accepted; correct the mask, the class "
        "names or the id map."
    )


def test_an_unreadable_image_is_named(capsys, tmp_path):
    keys = tiny.folders(tmp_path)
    image = tmp_path / "unlabeled/images/3.png"
    image.write_bytes(b"no picture")
    recipe = tiny.write(tmp_path / "r.yaml", keys)
    assert says(capsys, ["train", recipe, "-o", str(tmp_path / "out")], 1) == (
        f"{image} is not an image; replace it or take it out of the dataset."
    )


def test_an_empty_unlabeled_set_is_refused(capsys, tmp_path, camvid):
    keys = tiny.folders(tmp_path)
    for image in (tmp_path / "unlabeled/images").iterdir():
        image.unlink()
    recipe = tiny.write(tmp_path / "r.yaml", keys)
    assert says(capsys, ["train", recipe, "-o", str(tmp_path / "out")], 1) == (
        f"{tmp_path}/unlabeled/images holds no files *.jpg, *.jpeg, *.png, *.bmp, *.tif, *.tiff, *.webp; "
        "images/ is expected."
    )
    argv = ["train", tiny.write(tmp_path / "r.yaml", camvid, labeled=4), "-o", str(tmp_path / "out")]
    assert says(capsys, argv, 1) == "4 labeled images are asked for, but 1 to 3 can be chosen here."
    argv = ["train", tiny.write(tmp_path / "r.yaml", camvid, labeled=None), "-o", str(tmp_path / "out")]
    assert says(capsys, argv, 2) == (
        "objective 'cut_mix' learns from unlabeled images, but there are none; set unlabeled_dataset, or labeled for a "
        "part of `dataset`, or use rule: supervised."
    )


def test_a_trained_head_with_other_classes_is_refused_or_replaced(capsys, tmp_path, camvid):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    options = {key: value for key, value in tiny.MODEL.items() if key != "model_type"}
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=5, **options)).save_pretrained(tmp_path / "five")
    recipe = tiny.write(tmp_path / "r.yaml", camvid, model=str(tmp_path / "five"), model_config=None)
    argv = ["train", recipe, "-o", str(tmp_path / "out")]
    assert says(capsys, argv, 1) == (
        f"The model {tmp_path}/five has 5 classes but the dataset has 11; set replace_head: true to give it a new "
        "head, or use a dataset with its classes."
    )
    assert cli.main([*argv, "--replace_head", "--max_steps", "1"]) == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["id2label"]["8"] == "car"


def test_a_batch_without_labeled_pixels_is_trained_on_without_nan(tmp_path):
    keys = tiny.folders(tmp_path)
    for mask in (tmp_path / "labeled/masks").iterdir():
        PIL.Image.new("L", (48, 40), 255).save(mask)
    recipe = tiny.write(tmp_path / "r.yaml", keys, objective="pseudo_label")
    assert cli.main(["train", recipe, "-o", str(tmp_path / "out")]) == 0
    losses = [entry for entry in json.loads((tmp_path / "out/history.json").read_text()) if "labeled_loss" in entry]
    assert [entry["labeled_loss"] for entry in losses] == [0.0, 0.0]
    assert all(math.isfinite(entry["loss"]) and entry["loss"] > 0 for entry in losses)
    assert json.loads((tmp_path / "out/results.json").read_text())["skipped_steps"] == {"real": 0, "virtual": 0}


def test_an_output_directory_with_something_in_it_is_refused(capsys, tmp_path, camvid):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    recipe = tiny.write(tmp_path / "r.yaml", camvid)
    assert says(capsys, ["train", recipe, "-o", str(out)], 1) == (
        f"The output directory {out} is not empty; give another output_dir, --resume to go on with its run, or "
        "--overwrite to replace it."
    )
    assert says(capsys, ["train", recipe, "-o", str(out), "--resume"], 1) == (
        f"{out} holds no complete checkpoint to resume from; start it without --resume."
    )
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_an_error_that_is_not_ours_keeps_its_traceback_and_asks_for_a_report(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("hf_fst.recipes.load.load_recipe", lambda *a, **k: np.zeros(2) + np.zeros(3))
    assert cli.main(["train", "r.yaml"]) == 1
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert error.splitlines()[-1].startswith("hf-fst: This error is not expected; please report it to ")


def test_a_full_accelerator_is_nobodys_bug(capsys, monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("hf_fst.recipes.load.load_recipe", full)
    assert says(capsys, ["train", "r.yaml"], 1).startswith("The memory of the accelerator is full; take smaller crops")


def test_of_several_processes_the_first_alone_ends_with_a_failure_of_files(capsys, monkeypatch):
    monkeypatch.setattr("hf_fst.recipes.load.load_recipe", lambda *args: None)
    monkeypatch.setattr("hf_fst.recipes.run.run", lambda *args, **options: {"failed": [{"file": "a", "reason": "b"}]})
    for rank, code in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["train", "r.yaml"]) == code


def test_an_error_of_any_kind_asks_for_a_report(capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards
    monkeypatch.setattr("hf_fst.recipes.load.load_recipe", lambda *a, **k: {}["nothing"])
    with pytest.raises(KeyError) as caught:
        cli.main(["train", "r.yaml"])
    sys.excepthook(KeyError, caught.value, caught.value.__traceback__)  # as Python does where nobody catches it
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error and "KeyError: 'nothing'" in error
    assert error.splitlines()[-1].startswith("hf-fst: This error is not expected; please report it to ")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/data/runs"),
            "Permission denied: /data/runs; make room or choose another place.",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left on device: where the command writes; make room or choose another place.",
        ),
    ],
)
def test_a_place_that_cannot_be_written_to_is_one_sentence(capsys, monkeypatch, error, sentence):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("hf_fst.recipes.load.load_recipe", fail)
    assert says(capsys, ["train", "r.yaml"], 1) == sentence


def test_ctrl_c_is_one_word_and_code_130(capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_fst.recipes.load.load_recipe", stop)
    assert says(capsys, ["train", "r.yaml"], 130) == "Stopped."


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"hf_fst {importlib.metadata.version('hf_fst')}\n"


def test_debug_shows_the_traceback_of_our_own_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no recipe"):
        cli.main(["train", str(tmp_path / "none.yaml"), "--debug"])


def test_the_command_line_itself_imports_nothing_heavy():
    # a stand-in for the package, whose own __init__ brings the trainer
    code = (
        "import sys, types\nsys.modules['hf_fst'] = package = types.ModuleType('hf_fst')\n"
        "package.__path__ = ['hf_fst']\nfrom hf_fst.cli import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'yaml'} & set(sys.modules)\nassert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "hf-fst train examples/recipes/street_da_fst_d.yaml" in result.stdout


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


@pytest.fixture(scope="module")
def street_run(tmp_path_factory):
    """The directory of a run on street that was evaluated at half size."""
    folder = tmp_path_factory.mktemp("street")
    larger = {"unlabeled_options": {**tiny.STREET["unlabeled_options"], "size": [64, 96]}}
    recipe = tiny.write(folder / "r.yaml", tiny.STREET, larger, eval_resize=[48, 32])
    assert cli.main(["train", recipe, "-o", str(folder / "out")]) == 0
    return folder / "out"


STREET = ["street", "--options", "look=real", "size=[64, 96]", "num_train=4", "num_validation=2", "num_test=2"]


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_eval_gives_the_scores_of_the_run(capsys, monkeypatch, street_run, tmp_path, network):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    argv = ["eval", str(street_run), *STREET, "--split", "test", "--json"]
    assert cli.main(argv + ["--student"] * (network == "student")) == 0
    result = json.loads(capsys.readouterr().out)
    tested = json.loads((street_run / "results.json").read_text())["metrics"][-1]
    assert tested["split"] == "test"
    assert result["options"]["resize"] == [48, 32]  # as in training
    for key in ("mean_iou", "overall_accuracy"):
        assert result[key] == pytest.approx(tested[network][key], abs=5e-4)  # rounding turns pixels


def test_eval_has_a_place_for_each_evaluation(capsys, monkeypatch, street_run, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(street_run)
    capsys.readouterr()
    folders = []
    for more in ([], ["--batch_size", "2"], ["--flip"], ["--student"]):
        assert cli.main(["eval", "demo", *STREET, *more]) == 0
        printed = capsys.readouterr().out.splitlines()[-1]
        folders.append(printed.removeprefix("Written to ").removesuffix("."))
    # how many images go in at once changes nothing
    assert folders[0] == folders[1] and len(set(folders)) == 3
    assert folders[0].startswith("runs/eval/demo-street-validation-teacher-")
    assert folders[3].startswith("runs/eval/demo-street-validation-student-")
    written = {path.name for path in (tmp_path / "runs/eval").iterdir()}
    assert written == {folder.removeprefix("runs/eval/") for folder in folders}
    for folder in folders:
        assert json.loads((tmp_path / folder / "evaluation.json").read_text())["images"] == 2
        assert (tmp_path / folder / ".eval_results/street-validation.yaml").is_file()


def test_eval_takes_windows_scales_and_classes_and_writes_files(capsys, street_run, tmp_path):
    argv = ["eval", str(street_run), *STREET, "--resize", "none", "--window", "48", "--stride", "32"]
    argv += ["--scales", "0.75,1", "--flip", "--classes", "0,7", "--boundary"]
    argv += ["-o", str(tmp_path / "out"), "--save_predictions"]
    assert cli.main(argv) == 0
    result = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert result["protocol"] == "full size, windows of 48 every 32, scales 0.75 1, mirrored too"
    assert result["scored_classes"] == [0, 7] and "mean_boundary_iou" in result
    assert len(list((tmp_path / "out/predictions").iterdir())) == 2
    assert "traffic sign" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--scales", "big"], 2, "--scales is 'big'; give one or more numbers with commas between them."),
        (["--resize", "3"], 2, "--resize is '3'; give 2 numbers with commas between them."),
        (["--options", "look"], 2, "--options has 'look'; give KEY=VALUE."),
        (["--stride", "3"], 1, "stride is 3, but without a window there is nothing to slide: give a window too."),
        (["--split", "val"], 1, "The dataset has no split 'val': it has train, validation, test."),
    ],
)
def test_eval_says_what_is_wrong(capsys, street_run, options, code, sentence):
    capsys.readouterr()
    assert says(capsys, ["eval", str(street_run), *STREET, *options], code) == sentence


def test_convert_writes_a_model_with_class_names(capsys, monkeypatch, tmp_path):
    from dataclasses import replace

    import torch
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    from hf_fst.models import BUILDS
    from tests.models.test_convert import TINY, image, published_state, save

    name = "deeplabv2-resnet50"
    entry = BUILDS[name]
    monkeypatch.setitem(BUILDS, name, replace(entry, options={**entry.options, **TINY[name]}))
    save(tmp_path / "x.pth", name, published_state(name), published_state(name, 0.9))
    (tmp_path / "names.json").write_text(json.dumps(["road", "sky", "car", "pole", "tree"]))
    argv = ["convert", str(tmp_path / "x.pth"), "--model", name, "-o", str(tmp_path / "out")]
    assert cli.main([*argv, "--id2label", str(tmp_path / "names.json")]) == 0
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert model.config.id2label[2] == "car"
    assert not AutoImageProcessor.from_pretrained(tmp_path / "out").do_resize
    with torch.no_grad():
        assert torch.isfinite(model(image(name)).logits).all()
    assert "filled all" in capsys.readouterr().out
    assert says(capsys, argv, 1) == (
        f"{tmp_path}/out is not empty; give another --output, or --overwrite to write into it."
    )
    assert says(capsys, [*argv, "--overwrite", "--model", "deeplab"], 2).startswith(
        "There is no network 'deeplab'; use one"
    )


def test_processes_of_one_launch_say_a_sentence_once(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(cli.tempfile, "gettempdir", lambda: str(tmp_path))
    for sentence in ("It is wrong.", "It is wrong.", "It is very wrong."):
        cli.say(sentence)
    assert capsys.readouterr().err == "hf-fst: It is wrong.\nhf-fst: It is very wrong.\n"
