"""`hf-fst eval` scores a run as its training did."""

from __future__ import annotations

import json

import pytest

from hf_fst import cli
from tests.recipes import tiny


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
    assert result["options"]["resize"] == [32, 48]  # as in training; kept as (shorter, longer)
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
        (["--options", "look"], 2, "--options has 'look'; give KEY=VALUE, the value as YAML."),
        (["--stride", "3"], 1, "stride is 3, but there is no window to slide; give a window too."),
        (["--split", "val"], 1, "The dataset has no split 'val' (it has train, validation, test); choose another."),
    ],
)
def test_eval_says_what_is_wrong(says, capsys, street_run, options, code, sentence):
    capsys.readouterr()
    assert says(["eval", str(street_run), *STREET, *options], code) == sentence
