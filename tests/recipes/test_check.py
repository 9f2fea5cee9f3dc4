"""`hf-fst check`, its page, and the same check before the first step of `hf-fst train`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

from hf_fst import cli
from hf_fst.data.check import Finding, Part, Report
from hf_fst.recipes.check import page
from tests.recipes import tiny


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def keys(tmp_path):
    """The keys of a recipe of two folders of four images."""
    made = tiny.folders(tmp_path)
    for i in range(4):  # other pictures than the labeled ones
        path = tmp_path / "unlabeled/images" / f"{i}.png"
        PIL.Image.open(path).rotate(180).save(path)
    return made


def test_a_recipe_without_a_fault_has_a_page_and_code_0(keys, tmp_path, capsys):
    assert cli.main(["check", tiny.write(tmp_path / "r.yaml", keys)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("r: 8 images, nothing is wrong.\n")
    assert "\nlabeled         4         0  48 x 40          0.0          0.0\n" in text
    assert "\nunlabeled       4         0  48 x 40            –          0.0\n" in text
    assert "class 1" in text and text.endswith("4\n")


def test_what_is_wrong_is_on_the_page_and_in_the_file_with_code_1(keys, tmp_path, capsys):
    (tmp_path / "labeled/images/2.png").write_bytes(b"<html>")
    (tmp_path / "unlabeled/images/a.txt").write_text("")
    PIL.Image.open(tmp_path / "labeled/images/0.png").save(tmp_path / "unlabeled/images/9.png")
    recipe = tiny.write(tmp_path / "r.yaml", keys)
    found = tmp_path / "found.json"
    assert cli.main(["check", recipe, "--json", str(found), "--crop_size=100"]) == 1
    text = capsys.readouterr().out
    assert text.startswith("r: 9 images, 4 things are wrong.\n")
    assert "1. labeled/images/2.png is not an image; replace it" in text
    assert "\n2. Warning: " in text and "1. Warning" not in text  # the first keeps a run from training
    assert "   - unlabeled/images/9.png = labeled/images/0.png (labeled)\n" in text
    assert "\nNote: Not used in unlabeled: images/a.txt (a file of another kind).\n" in text
    assert "Note: With --on_bad_image skip, hf-fst train leaves out" in text
    assert text.endswith(f"\nPaths are relative to {tmp_path}/.\n")
    assert max(map(len, text.splitlines()[:-1])) <= 80
    assert cli.main(["check", recipe, "--json", str(found), "--crop_size=100"]) == 1  # over its own findings
    capsys.readouterr()
    assert cli.main(["check", recipe, "--on_bad_image", "skip"]) == 1
    assert "--on_bad_image" not in capsys.readouterr().out
    content = json.loads(found.read_text())
    assert [finding["kind"] for finding in content["findings"]] == ["unreadable", "padding", "padding", "duplicates"]
    assert content["parts"]["labeled"]["unreadable"] == 1 and content["parts"]["unlabeled"]["sizes"] == {"48x40": 5}


@pytest.mark.parametrize(
    "name, why",
    [
        ("r.yaml", "holds something other than findings"),
        ("labeled/id2label.json", "holds something other than findings"),
        ("none/found.json", "there is no folder for such a file"),
        ("labeled", "there is no folder for such a file"),
    ],
)
def test_a_file_for_the_findings_that_cannot_be_one_is_refused_before_anything_is_read(
    keys, tmp_path, capsys, name, why
):
    recipe = tiny.write(tmp_path / "r.yaml", keys)
    files = [Path(recipe), tmp_path / "labeled/id2label.json"]
    written = [file.read_text() for file in files]
    assert cli.main(["check", recipe, "--json", str(tmp_path / name)]) > 0
    said = capsys.readouterr()
    assert why in said.err and not said.out and [file.read_text() for file in files] == written


def test_masks_that_are_in_the_way_of_choosing_the_labeled_images_are_all_named(keys, tmp_path, capsys):
    for i in (1, 3):
        PIL.Image.new("RGB", (48, 40), "teal").save(tmp_path / f"labeled/masks/{i}.png")
    own = {key: value for key, value in keys.items() if not key.startswith("unlabeled")}
    assert cli.main(["check", tiny.write(tmp_path / "r.yaml", own, labeled=2)]) == 1
    text = capsys.readouterr().out
    assert "1. 2 of 4 labeled images cannot be used:" in text
    told = " ".join(text.split())
    assert "- masks/1.png is a color image (RGB), but" in told and text.count("color image") == 1  # one line a cause
    assert "`colors`, in a recipe under dataset_options" in told
    assert "The same holds for 1 more: images/3.png" in told


def test_all_that_is_wrong_with_folders_is_said_at_once(keys, tmp_path, capsys):
    (tmp_path / "labeled/id2label.json").write_text("{")
    (tmp_path / "labeled/masks/extra.png").write_bytes(b"")
    (tmp_path / "unlabeled/images").rename(tmp_path / "unlabeled/photos")
    nowhere = {"eval_dataset": "folder", "eval_data_dir": str(tmp_path / "nowhere")}
    assert cli.main(["check", tiny.write(tmp_path / "r.yaml", keys, nowhere)]) == 1
    said = capsys.readouterr().err
    assert said.count(" Also: ") == 3
    parts = (
        "id2label.json is not valid",
        "masks/extra.png;",
        "no folder {0}/unlabeled/images;",
        "no folder {0}/nowhere;",
    )
    assert all(part.format(tmp_path) in said for part in parts)


def test_a_run_is_refused_or_warned_before_its_first_step(keys, tmp_path, capsys):
    recipe = tiny.write(tmp_path / "r.yaml", keys)
    for i in range(4):
        PIL.Image.new("L", (48, 40), 1).save(tmp_path / f"labeled/masks/{i}.png")
    argv = ["train", recipe, "-o", str(tmp_path / "out")]
    assert cli.main(argv) == 1
    assert "hf-fst: Every labeled pixel is 'class 1', so there is nothing to learn" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    mask = np.array(PIL.Image.open(tmp_path / "labeled/masks/0.png"))
    mask[:20] = 0
    PIL.Image.fromarray(mask).save(tmp_path / "labeled/masks/0.png")
    PIL.Image.open(tmp_path / "labeled/images/0.png").save(tmp_path / "unlabeled/images/9.png")
    assert cli.main(argv) == 0
    assert "warning  The unlabeled images include 1 of the labeled images" in capsys.readouterr().out


def test_what_no_training_would_start_with_is_refused_by_the_check_too(keys, tmp_path, capsys):
    assert cli.main(["check", tiny.write(tmp_path / "r.yaml", keys, fsdp=True)]) == 1
    assert "fsdp is given, but there is only one process" in capsys.readouterr().err


def test_the_check_can_be_left_out(keys, tmp_path, capsys):
    for i in range(4):
        PIL.Image.new("L", (48, 40), 1).save(tmp_path / f"labeled/masks/{i}.png")
    recipe = tiny.write(tmp_path / "r.yaml", keys, max_steps=1)
    assert cli.main(["train", recipe, "-o", str(tmp_path / "out"), "--check", "false"]) == 0


def test_bad_images_are_skipped_where_the_recipe_says_so_but_not_where_scored(keys, tmp_path, capsys, caplog):
    (tmp_path / "labeled/images/2.png").write_bytes(b"<html>")
    recipe = tiny.write(tmp_path / "r.yaml", keys, max_steps=4)
    argv = ["train", recipe, "-o", str(tmp_path / "out")]
    assert cli.main(argv) == 1
    assert "2.png is not an image; replace it or remove it from the dataset." in capsys.readouterr().err
    assert cli.main([*argv, "--on_bad_image", "skip"]) == 0
    assert "2.png is not an image" in " ".join(capsys.readouterr().out.split())
    assert re.search(r"were replaced, \d in all:\n +\d x .*labeled/images/2.png is not an image", caplog.text)
    assert json.loads((tmp_path / "out/results.json").read_text())["skipped_images"] > 0
    scored = {"eval_dataset": "folder", "eval_data_dir": keys["data_dir"], "eval_split": "train"}
    recipe = tiny.write(tmp_path / "s.yaml", keys, scored, on_bad_image="skip")
    assert cli.main(["train", recipe, "-o", str(tmp_path / "scored")]) == 1


def test_many_classes_stand_side_by_side():
    names = [f"class number {i}" for i in range(50)]
    pixels = np.arange(50)[None]
    part = Part(["a.png"], np.array([[4, 4]]), ["x"], {}, pixels, {}, None)
    finding = Finding("classes", "labeled", "Sentence.", [f"detail {i}" for i in range(9)])
    text = page(Report({"labeled": part}, names, [finding]), [], "many", 80)
    lines = text.splitlines()
    (first,) = [line for line in lines if "class number 0 " in line]
    assert first.split() == "class number 0 none class number 25 2.0".split() or "class number 17" in first
    assert all(text.count(f"class number {i} ") == 1 for i in range(50)) and max(map(len, lines)) <= 80
    assert "   - detail 4\n   and 4 more; --json FILE lists all\n" in text


def test_a_class_of_few_pixels_is_not_rounded_to_none():
    part = Part(["a.png"], np.array([[4, 4]]), ["x"], {}, np.array([[99999, 1, 0]]), {}, None)
    text = page(Report({"labeled": part}, ["road", "pole", "sky"], []), [], "few", 80)
    assert [line.split()[1] for line in text.splitlines()[-3:]] == ["100.0", "<0.1", "none"]
