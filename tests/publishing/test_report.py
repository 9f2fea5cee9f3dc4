"""The report of a run: pictures, card and facts in its directory."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from hf_fst.publishing import card
from hf_fst.publishing.facts import Evaluation, RunFacts, Scores
from hf_fst.publishing.report import rewrite_report, write_report
from tests.publishing.conftest import CITY, make_facts, without_spaces

LOG = [
    {"step": 600, "loss": 1.0, "eval_student_mean_iou": 0.31, "eval_teacher_mean_iou": 0.34},
    {"step": 800, "loss": 0.9, "eval_student_mean_iou": 0.30, "eval_teacher_mean_iou": 0.32},
]


def test_report_writes_everything_and_the_card_shows_the_pictures(tmp_path):
    image, label = np.full((20, 30, 3), 90, np.uint8), np.zeros((20, 30), int)
    run = make_facts(evaluations=make_facts().evaluations[:2])
    path = write_report(tmp_path / "out", run, LOG, [(image, label, label, label)])
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "fst_run.json", "curves.png", "class_iou.png", "samples.png"}
    shown = re.findall(r"!\[.*?\]\((.*?)\)", path.read_text())
    assert sorted(shown) == ["class_iou.png", "curves.png", "samples.png"]
    assert str(tmp_path) not in path.read_text()
    for name in shown:
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 100


def test_a_second_report_removes_pictures_that_no_longer_hold(tmp_path):
    image, label = np.full((20, 30, 3), 90, np.uint8), np.zeros((20, 30), int)
    write_report(tmp_path, make_facts(), LOG, [(image, label, label, label)])
    path = write_report(tmp_path, make_facts(), [])
    assert {file.name for file in tmp_path.glob("*.png")} == set()
    assert ".png" not in path.read_text()


def test_templates_are_part_of_the_package():
    for template in (card.TEMPLATE, card.BARE_TEMPLATE):
        assert template.is_file() and template.parent == Path(card.__file__).parent


def test_a_card_is_written_anew_from_the_files_of_the_run(tmp_path):
    image, label = np.full((20, 30, 3), 90, np.uint8), np.zeros((20, 30), int)
    run = make_facts(evaluations=make_facts().evaluations[:2])
    first = write_report(tmp_path, run, LOG, [(image, label, label, label)]).read_text()
    history = [
        entry | {"eval_teacher_iou_road": None} for entry in LOG
    ]  # as JSON has what is nan in the trainer's log
    (tmp_path / "history.json").write_text(json.dumps(history))
    samples = (tmp_path / "samples.png").read_bytes()
    (tmp_path / "README.md").write_text("old")
    (tmp_path / "curves.png").unlink()
    assert rewrite_report(tmp_path).read_text() == first
    assert (tmp_path / "samples.png").read_bytes() == samples and (tmp_path / "curves.png").is_file()
    assert "license: mit\n" in rewrite_report(tmp_path, license="mit", model_name="Streets, FST-D").read_text()
    assert RunFacts.load(tmp_path).license == "mit"
    assert ModelCard.load(tmp_path / "README.md").data.model_name == "Streets, FST-D"
    with pytest.raises(ValueError, match="looks like a local path or a token"):
        rewrite_report(tmp_path, license="/home/alice/license")
    with pytest.raises(FileNotFoundError, match="has no fst_run.json"):
        rewrite_report(tmp_path / "elsewhere")


def test_runs_on_the_same_data_stand_beside_each_other(tmp_path):
    best = Evaluation("best", 700, CITY, Scores(0.3), Scores(0.26))
    elsewhere = Evaluation("best", 700, dataclasses.replace(CITY, config="coarse"), Scores(0.9), Scores(0.9))
    others = {
        "teacher": make_facts(rule="mean_teacher", model_name="other", evaluations=[elsewhere, best]),
        "baseline": make_facts(
            rule="supervised",
            objective="supervised",
            model_name="base",
            recipe=None,
            evaluations=[Evaluation("best", 700, CITY, Scores(0.235), Scores(0.235))],
        ),
    }
    for name, run in {"own": make_facts(), **others}.items():
        (tmp_path / name).mkdir()
        run.save(tmp_path / name)
    text = rewrite_report(tmp_path / "own", [tmp_path / name for name in others]).read_text()
    lines = without_spaces(text)
    assert "|**Segformer-street-fst_d**|fst_d|City,fine,test|20.0|25.0|" in lines
    assert "|other|mean_teacher|City,fine,test|30.0|26.0|" in lines
    assert "|base|supervised|City,fine,test|23.5|–|" in lines
    assert "90.0" not in text  # other data
    assert "- other: `hf-fst train street.yaml --seed 7 --rule fst_d --bf16 true`, 800 steps, seed 7." in text
    assert "On City, fine, test it is 1.0 points **below** other." in text
    assert "On City, fine, test it is 1.5 points above base." in text
    again = RunFacts.load(tmp_path / "own")
    assert str(card.make_card(again, ())) == text
