"""Tables for people: Markdown and plain text, from a run's scores and from committed result files.

A result file `docs/results/NAME.json` holds one measured table:

    {
      "title":    "Domain adaptation on street",
      "command":  "hf-fst train street-da --rule fst_d --seed 0",
      "device":   "2 CPU cores",
      "versions": {"torch": "2.15.0", "transformers": "5.23.0"},
      "date":     "2026-01-31",
      "columns":  [{"key": "teacher", "title": "teacher mIoU (%)", "format": "percent"},
                   {"key": "cost",    "title": "seconds per step", "format": "seconds"}],
      "rows":     [{"name": "fst_d, K = 3", "seeds": {"0": {"teacher": 0.351, "cost": 0.42}, "1": {...}}}],
      "note":     "optional sentence",
      "spread":   "interval"
    }

A value is a number, or null where the column does not apply to the row (then for every seed of it). Formats: `percent`
(a fraction, shown times 100 with one decimal), `points` (the same with its sign, for differences), `seconds` and `number`
(three significant digits), `integer`. Behind ± stands the sample standard deviation over the seeds, with `spread`
`interval` half the width of the 95 % interval of the mean by Student's t.
`render_results` turns it into Markdown; `update_tables` writes that between `<!-- table: NAME -->` and
`<!-- /table -->` of a document. `<!-- table: NAME only KEY KEY -->` asks for these columns and one line about them.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from hf_fst.errors import printable

ABSENT = "–"
RESULT_KEYS = ("title", "command", "device", "versions", "date", "columns", "rows")
FORMATS = ("percent", "points", "seconds", "number", "integer")
SPREADS = {"deviation": "sample standard deviation", "interval": "half the 95 % interval (Student's t)"}
LOCAL_PATH = re.compile(r"(?:^|[\s=\"'])(?:~?/\w|[A-Za-z]:\\)")
REGION = re.compile(
    r"<!-- table: (?P<name>[\w.-]+)(?: only (?P<only>[\w ]+))? -->\n(?P<body>.*?)<!-- /table -->", re.DOTALL
)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in 0..1 as percent without the sign, `–` for None and nan."""
    return ABSENT if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A GitHub-style table of strings: the first `left` columns left, the others right aligned."""
    _check_widths(columns, rows)
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (columns, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(columns))]
    lines = ["| " + " | ".join(_aligned(row, widths, left)) + " |" for row in cells]
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines) + "\n"


def columns_of_terminal() -> int | None:
    """The width of the terminal, or what COLUMNS says; None for files and pipes, whose lines may have any length."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return shutil.get_terminal_size().columns if known else None


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """The same table for a terminal: aligned columns under a line.

    Args:
        columns: titles.
        rows: cells, as many in each.
        width: of the lines. In a table that is too wide the words of a title stand one below the other; where that is
            not enough, each row is a list of lines `title: cell`. None for any.
    """
    _check_widths(columns, rows)
    rows = [[printable(cell) for cell in row] for row in rows]
    for heads in ([[column] for column in columns], [column.split() for column in columns]):
        height = max(map(len, heads), default=1)
        titles = [*zip(*([""] * (height - len(head)) + head for head in heads), strict=True)]
        widths = [max(len(row[i]) for row in (*titles, *rows)) for i in range(len(columns))]
        if width is None or sum(widths) + 2 * (len(widths) - 1) <= width:
            lines = ["  ".join(_aligned(row, widths)).rstrip() for row in (*titles, *rows)]
            lines.insert(height, "  ".join("-" * w for w in widths))
            return "\n".join(lines) + "\n"
    blocks = ("\n".join(f"{c}: {cell}" if c else cell for c, cell in zip(columns, row, strict=True)) for row in rows)
    return "\n\n".join(blocks) + "\n"


def in_a_picture(name: str) -> str:
    """A class name as matplotlib draws it: one line, and no formula between dollar signs."""
    return " ".join(printable(name).split()).replace("$", r"\$")


def _aligned(row: Sequence[str], widths: Sequence[int], left: int = 1) -> list[str]:
    cells = enumerate(zip(row, widths, strict=True))
    return [cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in cells]


def _check_widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"A row has {len(row)} cells but the table has {len(columns)} columns: {list(row)}.")


def class_rows(
    names: Sequence[str],
    student: Sequence[float | None],
    teacher: Sequence[float | None],
    scored: Sequence[int] | None = None,
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of per-class IoU, student against teacher, in percent, with the mean over the classes present.

    Args:
        names: Class names, (C,).
        student: IoU of the student in 0..1, None or nan where the class is absent, (C,).
        teacher: The same of the teacher.
        scored: Ids of the classes the mean is over, the others stand in brackets; None for all.
    """
    if not len(names) == len(student) == len(teacher):
        raise ValueError(f"Got {len(names)} class names, {len(student)} student and {len(teacher)} teacher values.")
    scored = range(len(names)) if scored is None else scored
    rows = [
        [name, percent(s), percent(t), difference(s, t)]
        for name, s, t in zip(in_brackets(names, scored), student, teacher, strict=True)
    ]
    means = [_mean_present([values[index] for index in scored]) for values in (student, teacher)]
    rows.append(["mean", percent(means[0]), percent(means[1]), difference(*means)])
    return ["class", "student IoU (%)", "teacher IoU (%)", "teacher - student"], rows


def in_brackets(names: Sequence[str], scored: Sequence[int] | None) -> list[str]:
    """The names, those of classes that no mean is over in brackets."""
    return [name if scored is None or index in scored else f"({name})" for index, name in enumerate(names)]


def difference(student: float | None, teacher: float | None) -> str:
    """teacher - student in percentage points with its sign, `–` if either is missing."""
    if percent(student) == ABSENT or percent(teacher) == ABSENT:
        return ABSENT
    return f"{100 * (teacher - student):+.1f}"


def _mean_present(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None and not math.isnan(value)]
    return sum(present) / len(present) if present else None


def check_results(results: dict) -> None:
    """Check a result file's content against the schema in the module docstring.

    Raises:
        ValueError: Saying which key, row, seed or column is wrong.
    """
    title = results.get("title", "?")
    if missing := [key for key in RESULT_KEYS if key not in results]:
        raise ValueError(f"The results {title!r} lack {missing}; needed are {list(RESULT_KEYS)}.")
    if LOCAL_PATH.search(results["command"]):
        raise ValueError(f"The command of the results {title!r} names a local path: {results['command']!r}.")
    for column in results["columns"]:
        if column.get("format") not in FORMATS or not {"key", "title"} <= column.keys():
            raise ValueError(f"A column of {title!r} needs key, title and a format of {list(FORMATS)}, got {column}.")
    for row in results["rows"]:
        if not row.get("seeds"):
            raise ValueError(f"The row {row.get('name')!r} of {title!r} has no seeds.")
        for column in results["columns"]:
            values = []
            for seed, cells in row["seeds"].items():
                if column["key"] not in cells:
                    raise ValueError(f"Seed {seed} of row {row['name']!r} of {title!r} has no {column['key']!r}.")
                values.append(cells[column["key"]])
            if any(value is None for value in values) and any(value is not None for value in values):
                raise ValueError(f"Row {row['name']!r} of {title!r} has {column['key']!r} for only some seeds.")


def render_results(results: dict, link: str | None = None, only: Sequence[str] = ()) -> str:
    """A result file's content as Markdown: mean ± sample standard deviation over the seeds, and where it was measured.

    Args:
        results: The schema of the module docstring.
        link: Address of the JSON file as seen from the document, for the values of every seed.
        only: Keys of the columns to show, all by default; then machine, versions and command are left to the JSON file.

    Raises:
        ValueError: If the results do not follow the schema, or have no such column.
    """
    check_results(results)
    shown = {column["key"]: column for column in results["columns"]}
    if unknown := set(only) - set(shown):
        raise ValueError(f"The results {results['title']!r} have no columns {sorted(unknown)}, but {list(shown)}.")
    shown = [shown[key] for key in only or shown]
    spread = results.get("spread", "deviation")
    seeds = [sorted(row["seeds"], key=int) for row in results["rows"]]
    same_seeds = all(row == seeds[0] for row in seeds)
    columns = ["", *(column["title"] for column in shown)] + ([] if same_seeds else ["seeds"])
    rows = []
    for row, row_seeds in zip(results["rows"], seeds, strict=True):
        cells = [
            mean_std([row["seeds"][seed][column["key"]] for seed in row_seeds], column["format"], spread)
            for column in shown
        ]
        rows.append([row["name"], *cells] + ([] if same_seeds else [", ".join(row_seeds)]))
    about = [
        _about_seeds(seeds[0] if same_seeds and seeds else None, max(map(len, seeds), default=1), SPREADS[spread])
    ]
    if not only:
        versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        about.append(f"Measured {results['date']} on {results['device']} with {versions}: `{results['command']}`.")
        about.append(results.get("note"))
    if link:
        about.append(f"Values of every seed: [{Path(link).name}]({link}).")
    return f"**{results['title']}**\n\n{markdown_table(columns, rows)}\n{' '.join(filter(None, about))}\n"


def _about_seeds(seeds: list[str] | None, most: int, spread: str) -> str:
    if seeds is None:
        return f"Mean ± {spread} over the seeds named in the row." if most > 1 else ""
    if most > 1:
        return f"Mean ± {spread} over {len(seeds)} seeds ({', '.join(seeds)})."
    return f"One seed ({seeds[0]})."


def mean_std(values: Sequence[float | None], format: str, spread: str = "deviation") -> str:
    """`mean ± spread`, one of `SPREADS`, in one of the `FORMATS`; one value stands alone, None gives `–`.

    Both numbers have the decimals of the mean, which keeps three significant digits under `seconds` and `number`.
    """
    if any(value is None for value in values):
        return ABSENT
    scale = 100.0 if format in ("percent", "points") else 1.0
    mean = scale * statistics.fmean(values)
    if format in ("percent", "points", "integer"):
        decimals = 0 if format == "integer" else 1
    else:
        decimals = max(0, 2 - math.floor(math.log10(abs(mean)))) if mean else 2
    sign = "+" if format == "points" else ""
    if len(values) == 1:
        return f"{mean:{sign}.{decimals}f}"
    width = interval(values)[1] if spread == "interval" else statistics.stdev(values)
    return f"{mean:{sign}.{decimals}f} ± {scale * width:.{decimals}f}"


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean of a sample and half the width of its interval by Student's t; infinite for a single value.

    Args:
        values: one a seed, or their differences from those of a control with the same seed.
        level: of confidence, in 0..1.
    """
    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return mean, math.inf
    return mean, float(stats.t.ppf(0.5 + level / 2, count - 1)) * statistics.stdev(values) / math.sqrt(count)


def update_tables(document: Path, results_dir: Path, check: bool = False) -> bool:
    """Write the tables of `results_dir/NAME.json` into the marked regions of a Markdown document.

    Args:
        document: A Markdown file; regions start with `<!-- table: NAME -->` and end with `<!-- /table -->`.
        results_dir: Folder of the result files.
        check: Only compare, write nothing.

    Returns:
        Whether the document was (with `check`: is) out of date.

    Raises:
        FileNotFoundError: If a region names a result file that is not there.
        ValueError: If a region is not closed, or a result file does not follow the schema.
    """
    document, results_dir = Path(document), Path(results_dir)
    text = document.read_text(encoding="utf-8")
    if len(REGION.findall(text)) != text.count("<!-- table: "):
        raise ValueError(f"{document.name} has a '<!-- table: NAME -->' line without its '<!-- /table -->' line.")

    def table(match: re.Match) -> str:
        path = results_dir / f"{match['name']}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{document.name} has a table {match['name']!r} but there is no {path.name}.")
        link = os.path.relpath(path, document.parent).replace(os.sep, "/")
        body = render_results(json.loads(path.read_text(encoding="utf-8")), link, (match["only"] or "").split())
        return "\n".join([match[0].splitlines()[0], f"{body}<!-- /table -->"])

    updated = REGION.sub(table, text)
    if updated != text and not check:
        document.write_text(updated, encoding="utf-8")
    return updated != text
