"""What a terminal shows: tables as wide as it is, and no color where NO_COLOR is set."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_fst.evaluation.results import table as scores
from hf_fst.recipes.compare import table as comparison
from hf_fst.recipes.names import described_recipes, recipe_names
from tests.commands.test_evaluate import STREET, street_run  # noqa: F401  the fixture

WIDTHS = [60, 100]
COLOR = re.compile(r"\x1b\[[\d;]*m")


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_of_eval_and_compare_keep_to_the_width(width):
    result = {
        "labeled": True,
        "images": 120,
        "images_per_second": 3.2,
        "classes": ["road", "vegetation and terrain", "traffic sign"],
        "scored_classes": [0, 1],
        **{f"per_category_{name}": [0.5, None, 0.25] for name in ("iou", "accuracy", "boundary_iou")},
        **{f"mean_{name}": 0.5 for name in ("iou", "accuracy", "boundary_iou")},
        "overall_accuracy": 0.9,
        "frequency_weighted_iou": 0.8,
    }
    seeds = {0: 0.40, 1: 0.43, 2: 0.51}
    found = dict.fromkeys(("supervised", "mean_teacher", "improved_fst"), seeds)
    compared = found, dict.fromkeys(found, 2.0), dict.fromkeys(found, 12000)
    for text in (scores(result, width), comparison(*compared, "label-free score", width)):
        assert widest(text) <= width
        assert "50.0" in text or "± " in text
    assert "label-free score (%)  over mean_teacher" in comparison(*compared, "label-free score", 100)
    assert widest(comparison(*compared, "label-free score")) > 60  # a file may have lines of any length


@pytest.mark.parametrize("width", WIDTHS)
def test_recipes_are_listed_within_the_width_each_name_at_the_start_of_a_line(width):
    text = described_recipes(width)
    assert widest(text) <= width
    assert [line.split()[0] for line in text.splitlines() if not line.startswith(" ")] == recipe_names()


def in_a_terminal(words: list[str], **environment: str) -> str:
    """What a command shows on a terminal of 60 columns."""
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "60", **environment}
    command = [sys.executable, "-m", "hf_fst", *words]
    done = subprocess.Popen(command, stdout=slave, stderr=slave, stdin=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not part:
            break
        shown += part
    done.wait()
    os.close(master)
    return shown.decode()


def without_color(*words: object) -> bool:
    text = in_a_terminal([*map(str, words)], NO_COLOR="1", TERM="xterm-256color", FORCE_COLOR="", CLICOLOR="1")
    return bool(text) and not COLOR.search(text)


@pytest.mark.parametrize("words", [["--help"], ["train", "--list"], ["trian"]])
def test_no_color_means_none(words):
    assert without_color(*words)


@pytest.mark.slow
def test_no_color_means_none_in_an_evaluation(street_run, tmp_path):  # noqa: F811
    assert without_color("eval", street_run, *STREET, "-o", tmp_path / "out")
