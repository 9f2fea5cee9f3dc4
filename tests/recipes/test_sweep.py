"""`--sweep all`: every point, a table, and a way on where it stopped."""

from __future__ import annotations

import json

import pytest

from hf_fst import cli
from hf_fst.recipes import sweep
from tests.recipes import tiny


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe of three points, trained in this process."""
    monkeypatch.setattr(sweep, "_in_a_process", lambda words: started.append(words) or cli.main(words))
    started: list[list[str]] = []
    points = {"plain": {"rule": "supervised", "objective": "supervised"}, "mean": {"rule": "mean_teacher"}}
    points["ahead"] = {"rule": "fst_d", "lookahead_steps": 1}
    keys = tiny.folders(tmp_path) | {"eval_split": "validation", "eval_strategy": "steps", "max_steps": 1}
    keys["dataset_options"] = {"validation_share": 0.25}
    return tiny.write(tmp_path / "three.yaml", keys, sweep={"rule": points}), started


def test_every_point_is_trained_and_a_table_compares_them(recipe, tmp_path, capsys, says):
    path, started = recipe
    argv = ["train", path, "--sweep", "all", "-o", str(tmp_path / "out")]
    assert cli.main(argv) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    networks = [("plain", "student"), *((name, who) for name in ("mean", "ahead") for who in ("student", "teacher"))]
    for name, network in networks:
        results = json.loads((tmp_path / "out" / name / "results.json").read_text())
        score = f"{100 * results['metrics'][0][network]['mean_iou']:.1f}"
        assert [name, network, "1", "–", score, score, "–"] in rows
    assert "is not empty" in says(argv, 1) and len(started) == 3


def test_it_goes_on_where_it_stopped(recipe, tmp_path, monkeypatch, capsys):
    path, started = recipe
    argv = ["train", path, "--sweep", "all", "-o", str(tmp_path / "out")]
    trained = sweep._in_a_process

    def stopping(words):
        if "mean" in words:
            (tmp_path / "out/mean").mkdir()
            (tmp_path / "out/mean/recipe.yaml").write_text("rule: mean_teacher")  # begun, without a checkpoint
            raise KeyboardInterrupt
        return trained(words)

    monkeypatch.setattr(sweep, "_in_a_process", stopping)
    assert cli.main(argv) == 130
    told = capsys.readouterr().err.splitlines()[-1]
    assert (
        told == f"hf-fst: Stopped. To continue: hf-fst train {path} --output_dir={tmp_path}/out --sweep all --resume"
    )
    written = (tmp_path / "out/ahead/results.json").stat().st_mtime_ns
    monkeypatch.setattr(sweep, "_in_a_process", trained)
    assert cli.main(["train", *told.partition("hf-fst train")[2].split()]) == 0
    assert [words[3] for words in started] == ["ahead", "ahead", "mean", "plain"]
    assert (tmp_path / "out/ahead/results.json").stat().st_mtime_ns == written


def test_a_point_that_fails_is_named_and_nothing_is_trained_where_one_is_wrong(recipe, says, monkeypatch, tmp_path):
    path, started = recipe
    argv = ["train", path, "--sweep", "all", "-o", str(tmp_path / "out")]
    assert "use a number from 0 to 1" in says([*argv, "--teacher_momentum", "7"], 2) and not started
    monkeypatch.setattr(sweep, "_in_a_process", lambda words: 1)
    assert says(argv, 1) == "The point ahead of the sweep failed (code 1; finished: none); --resume continues."
    assert "choose one with --sweep: ahead, mean, plain; or all with --sweep all." in says(["train", path], 2)


def test_a_dry_run_of_all_points_shows_each_and_trains_none(recipe, capsys):
    path, started = recipe
    assert cli.main(["train", path, "--sweep", "all", "--dry_run", "--data_dir", "null"]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("three-")]
    assert sorted(shown) == ["three-ahead:", "three-mean:", "three-plain:"] and not started
