"""Tables: numbers worked by hand, regions rewritten in place, stale documents found."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.benchmarks.tables import mean_std, render_results, update_tables
from hf_fst.drawing import tables

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "tables.py"
RESULTS = {
    "title": "Two rules",
    "command": "hf-fst train recipe.yaml --rule fst_d",
    "device": "2 CPU cores",
    "versions": {"torch": "2.15.0", "transformers": "5.23.0"},
    "date": "2026-01-31",
    "columns": [
        {"key": "miou", "title": "mIoU (%)", "format": "percent"},
        {"key": "cost", "title": "s / step", "format": "seconds"},
        {"key": "steps", "title": "steps", "format": "integer"},
    ],
    "rows": [
        {
            "name": "supervised",
            "seeds": {
                "0": {"miou": 0.30, "cost": 0.1230, "steps": 800},
                "1": {"miou": 0.32, "cost": 0.1250, "steps": 800},
                "2": {"miou": 0.34, "cost": 0.1270, "steps": 800},
            },
        },
        {
            "name": "fst_d",
            "seeds": {
                "0": {"miou": 0.40, "cost": None, "steps": 800},
                "1": {"miou": 0.40, "cost": None, "steps": 800},
                "2": {"miou": 0.40, "cost": None, "steps": 800},
            },
        },
    ],
    "note": "A note.",
}


def without_spaces(text):
    return [line.replace(" ", "") for line in text.splitlines()]


def test_markdown_has_mean_and_sample_deviation_over_the_seeds():
    # .30 .32 .34: mean .32, deviations ∓.02, sample variance .0008 / 2 = .0004, deviation .02
    # .123 .125 .127: mean .125, deviation .002
    lines = without_spaces(render_results(RESULTS, "results/two.json"))
    assert lines[0] == "**Tworules**"
    assert lines[2] == "||mIoU(%)|s/step|steps|"
    assert lines[4] == "|supervised|32.0±2.0|0.125±0.002|800±0|"
    assert lines[5] == "|fst_d|40.0±0.0|–|800±0|"
    text = render_results(RESULTS, "results/two.json")
    assert "over 3 seeds (0, 1, 2)" in text
    assert (
        "Measured 2026-01-31 on 2 CPU cores with torch 2.15.0, transformers 5.23.0: "
        "`hf-fst train recipe.yaml --rule fst_d`." in text
    )
    assert "A note." in text
    assert "[two.json](results/two.json)" in text


@pytest.mark.parametrize(
    ("values", "format", "expected"),
    [
        ([0.3456], "percent", "34.6"),
        ([1.2345], "seconds", "1.23"),
        ([12.345], "seconds", "12.3"),
        ([123.45], "seconds", "123"),
        ([0.012345], "number", "0.0123"),
        ([0.0], "number", "0.00"),
        ([1.0, 3.0], "number", "2.00 ± 1.41"),
        ([None], "percent", "–"),
    ],
)
def test_numbers_keep_one_decimal_or_three_significant_digits(values, format, expected):
    assert mean_std(values, format) == expected


def test_the_spread_is_that_of_the_mean_and_differences_have_a_sign():
    # Student's t at 0.975 with one degree of freedom is 12.706; the deviation is √2/100
    assert mean_std([0.31, 0.33], "percent", "interval") == "32.0 ± 12.7"
    assert mean_std([0.01, 0.03], "points") == "+2.0 ± 1.4"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(41.6, "42 s"), (60, "1 min 0 s"), (330, "5 min 30 s"), (3600 * 3 + 60 * 7 + 20, "3 h 7 min")],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert tables.duration(seconds) == text


def test_rows_with_different_seeds_name_them():
    results = copy.deepcopy(RESULTS)
    del results["rows"][1]["seeds"]["2"]
    text = render_results(results)
    lines = without_spaces(text)
    assert lines[4].endswith("|0,1,2|")
    assert lines[5].endswith("|0,1|")
    assert "seeds named in the row" in text


def test_columns_line_up_in_source():
    text = tables.markdown_table(["name", "value"], [["a", "1"], ["longer name", "100.0"]])
    assert text == (
        "| name        | value |\n| ----------- | ----: |\n| a           |     1 |\n| longer name | 100.0 |\n"
    )
    assert tables.text_table(["name", "value"], [["a", "1"]]) == "name  value\n----  -----\na         1\n"


def test_classes_that_do_not_count_stand_in_brackets():
    _, rows = tables.class_rows(["road", "car", "sky"], [0.5, 0.1, None], [0.6, 0.9, None], scored=[0, 2])
    assert [row[0] for row in rows] == ["road", "(car)", "sky", "mean"]
    assert rows[-1][1:] == ["50.0", "60.0", "+10.0"]


def test_class_rows_leave_absent_classes_out_of_the_mean():
    columns, rows = tables.class_rows(["road", "car", "sky"], [0.5, float("nan"), 0.7], [0.6, None, 0.9])
    assert columns[1:3] == ["student IoU (%)", "teacher IoU (%)"]
    assert rows == [
        ["road", "50.0", "60.0", "+10.0"],
        ["car", "–", "–", "–"],
        ["sky", "70.0", "90.0", "+20.0"],
        ["mean", "60.0", "75.0", "+15.0"],
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("device"), r"lack \['device'\]"),
        (lambda r: r["columns"][0].update(format="per mille"), "needs key, title and a format"),
        (lambda r: r["rows"][0]["seeds"]["1"].pop("miou"), "Seed 1 of row 'supervised' of 'Two rules' has no 'miou'"),
        (lambda r: r["rows"][0]["seeds"]["1"].update(miou=None), "'miou' for only some seeds"),
        (lambda r: r["rows"][0].update(seeds={}), "has no seeds"),
        (lambda r: r.update(command="hf-fst train --data_dir /mnt/data"), "names a local path"),
        (lambda r: r.update(command="hf-fst train --data_dir=~/data"), "names a local path"),
    ],
)
def test_broken_results_are_refused(change, message):
    results = copy.deepcopy(RESULTS)
    change(results)
    with pytest.raises(ValueError, match=message):
        render_results(results)


def test_a_table_of_few_columns_has_one_line_below_it():
    lines = without_spaces(render_results(RESULTS, "results/two.json", only=["steps", "miou"]))
    assert lines[:3] == ["**Tworules**", "", "||steps|mIoU(%)|"] and lines[4] == "|supervised|800±0|32.0±2.0|"
    assert lines[7].startswith("Mean±") and lines[7].endswith("[two.json](results/two.json).")
    assert "Measured" not in lines[7] and "Anote" not in lines[7] and len(lines) == 8
    with pytest.raises(ValueError, match=r"have no columns \['other'\], but \['miou'"):
        render_results(RESULTS, only=["other"])


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "two.json").write_text(json.dumps(RESULTS))
    (tmp_path / "README.md").write_text("before\n<!-- table: two -->\nold\n<!-- /table -->\nafter\n")
    (tmp_path / "docs" / "page.md").write_text("<!-- table: two -->\n<!-- /table -->\n")
    return tmp_path


def run_script(root, *arguments):
    command = [sys.executable, SCRIPT, "--root", root, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_script_finds_stale_tables_then_writes_them_and_keeps_the_text_around(repository):
    check = run_script(repository, "--check")
    assert check.returncode == 1
    assert check.stdout == "README.md: out of date\ndocs/page.md: out of date\n"
    assert "old" in (repository / "README.md").read_text()

    assert run_script(repository).returncode == 0
    readme = (repository / "README.md").read_text()
    assert readme.startswith("before\n<!-- table: two -->\n**Two rules**\n")
    assert readme.endswith("<!-- /table -->\nafter\n")
    assert "old" not in readme
    assert "(docs/results/two.json)" in readme
    assert "(results/two.json)" in (repository / "docs" / "page.md").read_text()

    check = run_script(repository, "--check")
    assert (check.returncode, check.stdout) == (0, "")


def test_a_table_without_results_or_without_its_end_is_an_error(repository):
    page = repository / "docs" / "page.md"
    page.write_text("<!-- table: three -->\n<!-- /table -->\n")
    with pytest.raises(FileNotFoundError, match="a table 'three' but there is no three.json"):
        update_tables(page, repository / "docs" / "results")
    page.write_text("<!-- table: two -->\n")
    with pytest.raises(ValueError, match="without its"):
        update_tables(page, repository / "docs" / "results")
