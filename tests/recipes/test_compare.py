"""Where a comparison may write, what its short runs keep, and what it says where its first steps fail."""

from __future__ import annotations

import pytest

from hf_fst import cli
from hf_fst.recipes.compare import EVERY, _options, _scaled, _words
from hf_fst.recipes.load import make_recipe, to_config
from tests.recipes import tiny


@pytest.fixture
def says(tmp_path, capsys):
    """What a comparison prints as its last line."""
    recipe = tiny.write(tmp_path / "mine.yaml", tiny.STREET)

    def last(*words):
        code = cli.main(["compare", recipe, "--rules", "mean_teacher", "fst_d", "--seeds", "1", *words])
        assert code != 0
        return capsys.readouterr().err.strip().splitlines()[-1]

    return last


def test_a_folder_with_something_else_in_it_is_not_written_to(says, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear reader")
    assert "is not empty and holds no comparison" in says("-o", str(folder))
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]


def test_first_steps_that_fail_say_why(says, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_fst.recipes.trials.sys.executable", "false")  # a program that ends with an error
    assert "is: empty" in says("-o", str(tmp_path / "out"), "--budget", "30s")


def test_short_runs_keep_the_shares_of_warm_up_and_memory():
    recipe = make_recipe({"max_steps": 4000, "warmup_steps": 200, "teacher_memory": 1000, "output_dir": "out"})
    assert _scaled(to_config(recipe), "mean_teacher", 40) == {"warmup_steps": 2, "teacher_memory": 10}
    assert _scaled(to_config(recipe), "supervised", 40) == {"warmup_steps": 2}
    by_momentum = make_recipe({"max_steps": 4000, "warmup_steps": 0.05, "teacher_momentum": 0.99, "output_dir": "out"})
    assert _scaled(to_config(by_momentum), "fst_d", 40) == {}


def test_rules_look_ahead_now_and_then_unless_the_recipe_says_when():
    plain = {"max_steps": 9, "teacher_memory": 5}
    assert _options("fst_d", plain) == {"rule": "fst_d", "lookahead_every": EVERY}
    assert _options("mean_teacher", plain) == {"rule": "mean_teacher"}
    assert _options("naive_fst", plain) == {"rule": "naive_fst"}  # which has no such option
    for said in ({"lookahead_every": 1}, {"preset": "official"}):
        assert _options("fst_d", plain | said) == {"rule": "fst_d"}


def test_the_command_of_the_long_run_holds_what_the_rule_needs_and_no_more():
    words = ["--data_dir", "labeled", "--lookahead_every", "4"]
    taken_out = _options("mean_teacher", {"lookahead_every": 4, "lookahead_state": "carry"})
    assert _words(words, taken_out) == ["--data_dir", "labeled", "--rule", "mean_teacher"]
    assert _words(words[:2], _options("fst_d", {})) == [*words[:2], "--rule", "fst_d", "--lookahead_every", str(EVERY)]
