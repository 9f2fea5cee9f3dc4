"""Tables for people: Markdown and plain text, and the numbers in them."""

from __future__ import annotations

import math
import os
import shutil
import statistics
import sys
import textwrap
from collections.abc import Sequence

from hf_fst.errors import printable

ABSENT = "–"


def percent(value: float | None) -> str:
    """A fraction in 0..1 as percent with one decimal, without the sign; `–` for None and nan."""
    return ABSENT if value is None or math.isnan(value) else f"{100 * value:.1f}"


def duration(seconds: float) -> str:
    """Seconds as people say them: `42 s`, `5 min 30 s`, `3 h 7 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A GitHub-style table of strings: the first `left` columns left, the others right aligned."""
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
        width: of the lines. In a table that is too wide a title takes several lines, as narrow as its cells and words
            allow; where that is not enough, each row is a list of lines `title: cell`. None for any.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    narrow = [max(1, *map(len, (*column.split(), *cells))) for column, *cells in zip(columns, *rows, strict=True)]
    folded = [textwrap.wrap(column, least) for column, least in zip(columns, narrow, strict=True)]
    for heads in ([[column] for column in columns], folded):
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


def class_rows(
    names: Sequence[str],
    student: Sequence[float | None],
    teacher: Sequence[float | None],
    scored: Sequence[int] | None = None,
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of per-class IoU, student against teacher, in percent, with the mean over the classes present.

    Args:
        names: class names, (C,).
        student: IoU of the student in 0..1, None or nan where the class is absent, (C,).
        teacher: the same of the teacher.
        scored: ids of the classes the mean is over, the others stand in brackets; None for all.
    """
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


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of a sample and half the width of its 95 % interval by Student's t; infinite for a single value.

    Args:
        values: one a seed, or their differences from those of a control with the same seed.
    """
    from scipy import stats  # which a list of recipes need not wait for

    mean, count = statistics.fmean(values), len(values)
    if count < 2:
        return mean, math.inf
    return mean, float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)
