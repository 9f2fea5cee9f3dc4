"""Rewrite the tables of README.md and docs/ from the committed results in docs/results/.

    python examples/benchmarks/tables.py            # write them
    python examples/benchmarks/tables.py --check    # exit with 1 if a table is out of date

A table stands between `<!-- table: NAME -->` and `<!-- /table -->` and comes from docs/results/NAME.json, whose form
`hf_fst.drawing.tables` describes. Curves that such a file holds are drawn as docs/images/NAME.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hf_fst.drawing.plots import curves_over_time
from hf_fst.drawing.tables import update_tables


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
