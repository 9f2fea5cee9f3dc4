"""Runs that are made within a time limit and kept, and what pairs of seeds say; the runs themselves are stand-ins."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import pytest
from scipy import stats

from hf_fst.drawing.tables import interval
from hf_fst.recipes import trials
from hf_fst.recipes.compare import table, verdict
from hf_fst.recipes.load import options_for
from hf_fst.recipes.trials import Trial, curve_of, paired, run_trials, scores_of

RUN = """
import json, pathlib, sys, time
words = sys.argv[1:]
options = dict(zip(words[2::2], words[3::2]))
folder = pathlib.Path(options["--output_dir"])
folder.mkdir(exist_ok=True)
time.sleep(float(options.get("--sleep", 0)))
if "--fail" not in options:
    (folder / "results.json").write_text(json.dumps({"words": words}))
    (folder / "history.json").write_text("[]")
"""


@pytest.fixture
def made(monkeypatch):
    """What was typed for each run."""
    found, start = [], subprocess.Popen

    def stand_in(words, **options):
        found.append(words[3:])
        return start([sys.executable, "-c", RUN, *words[3:]], **options)

    monkeypatch.setattr(trials.subprocess, "Popen", stand_in)
    monkeypatch.setattr(trials, "HISTORY_FILE", "history.json")
    return found


def test_runs_are_made_in_order_and_once(tmp_path, made):
    wanted = [Trial("fst_d, M=4", seed, {"rule": "fst_d", "model": None, "crop_size": [4, 8]}) for seed in (0, 1)]
    found = run_trials("mine", wanted, tmp_path, ["--data_dir", "images"])
    assert list(found) == wanted and len(made) == 2
    expected = ["--data_dir", "images", "--seed", "0", "--rule", "fst_d", "--model", "null", "--crop_size", "[4, 8]"]
    assert made[0][:2] == ["train", "mine"] and made[0][2:12] == expected
    assert list(run_trials("mine", wanted, tmp_path, ["--data_dir", "images"])) == wanted and len(made) == 2
    run_trials("mine", wanted, tmp_path, ["--data_dir", "others"])  # the same folders, other words
    assert len(made) == 4 and made[3][2:4] == ["--data_dir", "others"]


def test_what_would_not_end_in_time_is_left_out_and_what_has_not_is_stopped(tmp_path, made):
    said = []
    runs = [Trial("quick", 0, {}, cost=1), Trial("quick", 1, {"fail": 1}), Trial("long", 0, {}, cost=1e6)]
    found = run_trials("mine", runs, tmp_path, deadline=time.monotonic() + 60, say=said.append)
    assert list(found) == runs[:1]
    assert "failed, see" in said[1] and "would not finish in time" in said[2]
    slow = [Trial("slow", 0, {"sleep": 60})]
    assert run_trials("mine", slow, tmp_path, deadline=time.monotonic() + 1, say=said.append) == {}
    assert "stopped" in said[3]


def test_where_the_first_runs_fail_the_others_are_left_out(tmp_path, made):
    said = []
    runs = [Trial("broken", seed, {"fail": 1}) for seed in range(6)]
    assert run_trials("mine", runs, tmp_path, say=said.append) == {} and len(made) == 3
    assert said[-1] == "The first 3 runs failed; the others are skipped."


def test_interval_is_that_of_students_t():
    values = [0.31, 0.35, 0.30, 0.38, 0.33]
    low, high = stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
    mean, width = interval(values)
    assert (mean - width, mean + width) == pytest.approx((low, high), rel=1e-12)
    assert interval([0.5]) == (0.5, math.inf)


def test_seeds_are_paired():
    ours, theirs = {0: 0.30, 1: 0.50, 2: 0.40, 9: 1.0}, {2: 0.37, 1: 0.48, 0: 0.29, 5: 0.0}
    expected = stats.ttest_rel([0.30, 0.50, 0.40], [0.29, 0.48, 0.37]).confidence_interval(0.95)
    mean, width = paired(ours, theirs)
    assert (mean - width, mean + width) == pytest.approx((expected.low, expected.high), rel=1e-12)


def entry(weights, split, value):
    return {"weights": weights, "split": split, "student": {"mean_iou": value / 2}, "teacher": {"mean_iou": value}}


def test_scores_of_a_run_are_those_of_its_teacher_or_of_a_student_without_one():
    metrics = [
        entry("start", "val", 0.1),
        entry("last", "val", 0.4),
        entry("best", "val", 0.5),
        entry("best", "test", 0.3),
    ]
    assert scores_of({"rule": "fst_d", "metrics": metrics}) == {"last": 0.4, "best": 0.5, "test": 0.3}
    assert scores_of({"rule": "supervised", "metrics": metrics[:2]}) == {"last": 0.2, "best": 0.2, "test": None}
    log = [{"step": 1, "eval_student_mean_iou": 0.1, "eval_teacher_mean_iou": 0.2}, {"step": 1, "loss": 1}]
    assert curve_of({"rule": "fst_d", "log_history": log}) == [(1, 0.2)]
    assert curve_of({"rule": "supervised", "log_history": log}) == [(1, 0.1)]
    assert curve_of({"rule": "fst_d", "log_history": [{"step": 3, "eval_label_free": 0.7}, *log[1:]]}) == [(3, 0.7)]


COSTS = {"supervised": 0.5, "mean_teacher": 1.0, "fst_d": 4.0}


def test_the_cheaper_of_two_that_cannot_be_told_apart_is_taken():
    scores = {
        "supervised": {0: 0.20, 1: 0.21, 2: 0.22},
        "mean_teacher": {0: 0.30, 1: 0.36, 2: 0.33},
        "fst_d": {0: 0.34, 1: 0.33, 2: 0.35},
    }
    best, sentence = verdict(scores, COSTS)
    assert best == "mean_teacher" and "is not significant" in sentence
    scores["fst_d"] = {0: 0.35, 1: 0.42, 2: 0.38}
    best, sentence = verdict(scores, COSTS)
    assert best == "fst_d" and sentence.startswith("Take fst_d: it scored 5.3 ± 1.4 points more than mean_teacher")
    text = table(scores, COSTS, dict.fromkeys(COSTS, 100))
    assert "+5.3 ± 1.4" in text and "4.00" in text


def test_one_seed_never_buys_a_dearer_rule():
    best, sentence = verdict({"mean_teacher": {0: 0.3}, "fst_d": {0: 0.5}}, COSTS)
    assert best == "mean_teacher" and "20.0 points more (one seed, without an interval), which is not" in sentence
    best, sentence = verdict({"mean_teacher": {0: 0.5}, "fst_d": {0: 0.3}}, COSTS)
    assert best == "mean_teacher" and sentence.endswith("(one seed gives no interval: more seeds may reverse it).")


def test_options_that_only_another_rule_has_are_taken_out():
    recipe = {"lookahead_every": 12, "lookahead_state": "carry", "max_steps": 5}
    assert options_for("fst_d", recipe) == {"rule": "fst_d"}
    assert options_for("mean_teacher", recipe) == {"rule": "mean_teacher", "lookahead_every": None}
    assert json.dumps(options_for("supervised", {})) == '{"rule": "supervised", "objective": "supervised"}'
