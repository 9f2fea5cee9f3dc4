"""`hf-fst eval RUN` scores a run on its own images, and no run on what it was trained on."""

from __future__ import annotations

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import yaml

from hf_fst import cli
from tests.recipes import tiny


@pytest.fixture(scope="module")
def street_run(tmp_path_factory):
    """A run on street that was evaluated at half size, in windows, over two classes."""
    folder = tmp_path_factory.mktemp("street")
    larger = {"unlabeled_options": {**tiny.STREET["unlabeled_options"], "size": [64, 96]}}
    keys = {"eval_resize": [48, 32], "eval_window": 32, "eval_stride": 24, "eval_classes": ["road", "sky"]}
    recipe = tiny.write(folder / "r.yaml", tiny.STREET, larger, keys)
    assert cli.main(["train", recipe, "-o", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture
def scores(capsys, monkeypatch, tmp_path):
    """Runs an evaluation in a folder of its own and gives its results."""
    monkeypatch.chdir(tmp_path)

    def run(*argv) -> dict:
        capsys.readouterr()
        assert cli.main(["eval", *map(str, argv), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def folders(root, train=6, validation=2):
    """A folder of random images with masks, and the keys of a supervised run on it that keeps some for validation."""
    rng = np.random.default_rng(3)
    for kind in ("images", "masks"):
        (root / "own" / kind).mkdir(parents=True)
    for i in range(train + validation):
        PIL.Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(root / f"own/images/{i}.png")
        PIL.Image.fromarray(rng.integers(0, 2, (40, 48), dtype=np.uint8)).save(root / f"own/masks/{i}.png")
    (root / "names.json").write_text('{"0": "field", "1": "tree"}')
    share = validation / (train + validation)
    options = {"dataset": "folder", "dataset_options": {"validation_share": share}, "rule": "supervised"}
    return {**options, "data_dir": "own", "id2label": "names.json", "max_steps": 1}


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_a_run_alone_is_scored_as_in_its_training(scores, street_run, network):
    found = scores(street_run, *(["--student"] if network == "student" else []))
    assert list(found) == ["validation", "test"]
    last, best, tested = json.loads((street_run / "results.json").read_text())["metrics"]
    for split, logged in (("validation", best), ("test", tested)):
        result = found[split]
        assert (result["split"], result["images"], result["which"]) == (split, logged["images"], network)
        assert result["protocol"] == "resized into 48 x 32, windows of 32 every 24"
        assert [result["classes"][i] for i in result["scored_classes"]] == ["road", "sky"]
        for key in ("mean_iou", "overall_accuracy"):
            assert result[key] == pytest.approx(logged[network][key], abs=5e-4)  # rounding turns pixels
    assert found["validation"]["output_dir"] != found["test"]["output_dir"]


def test_a_split_an_output_directory_and_other_views_can_be_chosen(scores, street_run, tmp_path):
    [(split, result)] = scores(street_run, "--split", "test", "-o", "here", "--window", "48", "--classes", "0").items()
    assert (split, result["output_dir"], result["scored_classes"]) == ("test", "here", [0])
    assert result["protocol"] == "resized into 48 x 32, windows of 48 every 32"
    assert list(scores(street_run, "-o", "both")) == ["validation", "test"]
    assert {path.parent.name for path in (tmp_path / "both").glob("*/evaluation.json")} == {"validation", "test"}


def test_a_checkpoint_is_scored_as_its_run(scores, street_run):
    found = scores(street_run / "checkpoint-1")
    first = next(
        e for e in json.loads((street_run / "history.json").read_text()) if e["step"] == 1 and "eval_runtime" in e
    )
    assert found["validation"]["mean_iou"] == pytest.approx(first["eval_teacher_mean_iou"], abs=5e-4)


def test_own_folders_are_found_again_from_any_place(scores, monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    recipe = tiny.write(home / "r.yaml", folders(home), eval_crop=24)
    monkeypatch.chdir(home)
    assert cli.main(["train", recipe, "-o", "out"]) == 0
    assert str(tmp_path) not in (home / "out/recipe.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    [(split, result)] = scores("home/out").items()
    kept = json.loads((home / "out/results.json").read_text())["metrics"][-1]
    assert (split, result["images"]) == ("validation", 2)
    assert result["protocol"] == "full size, the middle 24 pixels"
    assert sum(map(sum, result["confusion_matrix"])) == 2 * 24 * 24
    assert result["mean_iou"] == pytest.approx(kept["student"]["mean_iou"], abs=2e-3)


def test_images_of_training_are_refused_with_how_many(says, scores, monkeypatch, tmp_path):
    recipe = tiny.write(tmp_path / "r.yaml", folders(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", recipe, "-o", "out"]) == 0
    # a larger share keeps other images for validation too
    shutil.copytree(tmp_path / "own", tmp_path / "moved")
    for path in (tmp_path / "moved/images").iterdir():  # another file with the same pixels is the same image
        PIL.Image.open(path).save(path.with_name(f"copy_{path.stem}.bmp"))
        path.unlink()
    for path in (tmp_path / "moved/masks").iterdir():
        path.rename(path.with_name(f"copy_{path.name}"))
    named = ["folder", "--data_dir", "moved", "--options", "id2label=../names.json"]
    assert says(["eval", "out", *named, "--split", "train"], 1) == (
        "6 of the 8 images of train are among those that the run was trained on (6 labeled); score others, or give "
        "--allow_overlap to score these all the same."
    )
    assert scores("out", *named, "--split", "train", "--allow_overlap")["images"] == 8
    assert says(["eval", "out", "--split", "train"], 1).startswith("6 of the 6 images of train are among those")
    values = yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())
    (tmp_path / "out/recipe.yaml").write_text(yaml.safe_dump(values | {"eval_split": "train"}))
    assert says(["eval", "out"], 1).startswith("6 of the 6 images of train are among those")


def test_unlabeled_images_of_training_count_too(says, street_run):
    same = ["street", "--options", "look=real", "size=[64, 96]", "num_train=7", "num_validation=2", "num_test=2"]
    assert says(["eval", str(street_run), *same, "--split", "train"], 1).startswith(
        "4 of the 7 images of train are among those that the run was trained on (4 unlabeled);"
    )


def test_where_the_training_images_are_gone_a_named_dataset_is_scored_with_a_warning(
    scores, caplog, monkeypatch, tmp_path
):
    recipe = tiny.write(tmp_path / "r.yaml", folders(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", recipe, "-o", "out"]) == 0
    (tmp_path / "own").rename(tmp_path / "elsewhere")
    result = scores(
        "out", "folder", "--data_dir", "elsewhere", "--options", "id2label=../names.json", "--split", "train"
    )
    assert result["images"] == 8 and "Whether out was trained on these images is not known" in caplog.text


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (["MODEL"], 2, "MODEL has no recipe.yaml, which says what to score; name a dataset, such as `street`."),
        (["RUN", "--options", "look=real"], 2, "--data_dir or --options are given without a dataset; name the one"),
        (["RUN", "--split", "val"], 1, "The dataset 'street' has no split 'val' (it has train, validation, test)"),
    ],
)
def test_what_cannot_be_scored_is_said(says, street_run, argv, code, sentence):
    places = {"RUN": str(street_run), "MODEL": str(street_run / "student")}
    words = [places.get(word, word) for word in argv]
    assert says(["eval", *words], code).startswith(sentence.replace("MODEL", places["MODEL"]))
