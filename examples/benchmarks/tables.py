"""Rewrite the tables of README.md and docs/ from the committed results in docs/results/.

    python examples/benchmarks/tables.py            # write them
    python examples/benchmarks/tables.py --check    # exit with 1 if a table is out of date

A table stands between `<!-- table: NAME -->` and `<!-- /table -->` and comes from docs/results/NAME.json;
`<!-- table: NAME only KEY KEY -->` asks for these columns and one line about them. Curves in such a file are drawn as
docs/images/NAME.png.

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
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_fst.drawing.plots import curves_over_time
from hf_fst.drawing.tables import ABSENT, interval, markdown_table

RESULT_KEYS = ("title", "command", "device", "versions", "date", "columns", "rows")
FORMATS = ("percent", "points", "seconds", "number", "integer")
SPREADS = {"deviation": "sample standard deviation", "interval": "half the 95 % interval (Student's t)"}
LOCAL_PATH = re.compile(r"(?:^|[\s=\"'])(?:~?/\w|[A-Za-z]:\\)")
REGION = re.compile(
    r"<!-- table: (?P<name>[\w.-]+)(?: only (?P<only>[\w ]+))? -->\n(?P<body>.*?)<!-- /table -->", re.DOTALL
)


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is out of date")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parents[2], help="the repository (default: this one)"
    )
    args = parser.parse_args(arguments)
    documents = [
        path for path in [args.root / "README.md", *sorted((args.root / "docs").rglob("*.md"))] if path.exists()
    ]
    try:
        stale = [path for path in documents if update_tables(path, args.root / "docs" / "results", args.check)]
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for result in [] if args.check else sorted((args.root / "docs" / "results").glob("*.json")):
        if curves := json.loads(result.read_text(encoding="utf-8")).get("curves"):
            curves_over_time(curves, args.root / "docs" / "images" / f"{result.stem}.png")
    for path in stale:
        print(f"{path.relative_to(args.root)}: {'out of date' if args.check else 'updated'}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
