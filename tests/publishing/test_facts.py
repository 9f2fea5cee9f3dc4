"""What a card may tell: nothing private gets in, and nothing changes on the way through JSON."""

import dataclasses
import json
import re

import pytest

from hf_fst.evaluation import machine
from hf_fst.publishing import card, facts
from hf_fst.publishing.facts import Cost, Evaluation, RunFacts, Scores
from tests.publishing.conftest import CLASSES, REAL, SYNTHETIC, VALIDATION, make_facts


def test_settings_that_look_like_paths_stay_out():
    config = {
        "seed": 3,
        "learning_rate": 1e-3,
        "rule": "fst_w",
        "bf16": False,
        "lookahead_momentum": None,
        "optim": "/home/alice/optimizer.py",
        "output_dir": "/home/alice/runs/demo",
        "hub_model_id": "alice/model",
    }
    assert facts.settings_of(config) == {"rule": "fst_w", "learning_rate": 1e-3, "bf16": False, "seed": 3}
    assert facts.settings_of({"max_steps": 10, "num_train_epochs": 3}) == {"max_steps": 10}
    assert facts.settings_of({"max_steps": -1, "num_train_epochs": 3}) == {"max_steps": -1, "num_train_epochs": 3}


SECRETS = [
    "/home/alice/data",
    "data in /mnt/x",
    "~/data",
    "~alice/data",
    "../elsewhere/data",
    "./runs",
    "C:\\Users\\alice",
    "\\\\server\\share",
    "file:///data",
    "hf_" + "Ab1" * 11,
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "place",
    [
        lambda secret: {"labeled": dataclasses.replace(SYNTHETIC, title=secret)},
        lambda secret: {"unlabeled": dataclasses.replace(REAL, note=f"Images from {secret}")},
        lambda secret: {"classes": ["road", "car", secret]},
        lambda secret: {"settings": {"optim": secret}},
        lambda secret: {"overrides": {"objective": [secret]}},
        lambda secret: {"cost": Cost(secret, 1.0)},
        lambda secret: {"versions": {"torch": secret}},
        lambda secret: {"base_model": secret},
        lambda secret: {"recipe": secret},
        lambda secret: {"model_name": secret},
    ],
)
def test_a_path_or_a_token_is_refused_wherever_it_is_put(secret, place):
    with pytest.raises(ValueError, match="facts"):
        make_facts(**place(secret))


@pytest.mark.parametrize(
    "text", ["https://example.org/data", "1/8 labeled", "and/or", "road: 5 km/h", "hf_fst 0.1", "~5"]
)
def test_ordinary_text_is_not_taken_for_a_path(text):
    make_facts(labeled=dataclasses.replace(SYNTHETIC, note=text))


def test_hub_ids_are_told_from_local_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert facts.hub_id("nvidia/mit-b0") == "nvidia/mit-b0"
    assert facts.hub_id("gpt2") == "gpt2"
    for local in ("runs/demo", "./runs/other", "/data/model", "~/model", "a/b/c", "", None):
        assert facts.hub_id(local) is None


def test_facts_go_through_json_unchanged_and_make_the_same_card(tmp_path):
    run = make_facts(palette=[[1, 2, 3]] * 3)
    run.save(tmp_path)
    assert (
        json.loads((tmp_path / "fst_run.json").read_text())["evaluations"][1]["teacher"]["per_category_iou"][1] is None
    )
    again = RunFacts.load(tmp_path)
    assert again == run
    assert str(card.make_card(again)) == str(card.make_card(run))


def test_missing_or_foreign_facts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no fst_run.json"):
        RunFacts.load(tmp_path)
    for content in ("{", "{}", '{"labeled": {"colour": 1}}'):
        (tmp_path / "fst_run.json").write_text(content)
        with pytest.raises(ValueError, match="does not hold the facts of a run"):
            RunFacts.load(tmp_path)


def test_wrong_numbers_of_class_values_and_unknown_weights_are_refused():
    evaluation = Evaluation("best", 1, VALIDATION, Scores(0.1), Scores(0.1, per_category_iou=[0.1]))
    with pytest.raises(ValueError, match="1 class values for 3 classes"):
        make_facts(evaluations=[evaluation])
    with pytest.raises(ValueError, match="'best' or 'last'"):
        make_facts(saved="first")


def test_scores_are_read_from_a_log_entry():
    entry = {
        "eval_teacher_mean_iou": 0.3,
        "eval_teacher_iou_road": 0.5,
        "eval_teacher_iou_car": float("nan"),
        "step": 1,
    }
    assert Scores.from_metrics(entry, "teacher", CLASSES) == Scores(0.3, None, None, [0.5, None, None])
    with pytest.raises(ValueError, match="no test_teacher_mean_iou"):
        Scores.from_metrics(entry, "teacher", CLASSES, prefix="test")


def test_versions_and_hardware_name_no_machine():
    found = machine.versions()
    assert re.match(r"3\.\d+", found["python"]) and re.match(r"\d+\.\d+", found["torch"])
    assert re.match(r"\d+ CPU thread", machine.hardware("cpu"))
    make_facts(versions=found, cost=Cost(machine.hardware("cpu"), 1.0))
