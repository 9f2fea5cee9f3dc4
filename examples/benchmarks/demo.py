"""Write what `make demo` measured in its three runs as docs/results/demo.json.

    make demo && python examples/benchmarks/demo.py

`make tables` renders the file.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

from hf_fst.recipes.load import sweep_points

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = [
    {"key": "student", "title": "student mIoU (%)", "format": "percent"},
    {"key": "teacher", "title": "teacher mIoU (%)", "format": "percent"},
    {"key": "steps", "title": "steps", "format": "integer"},
    {"key": "minutes", "title": "minutes of steps", "format": "number"},
]


def main(runs: Path = ROOT / "runs") -> int:
    rows, results = [], {}
    for point in sweep_points("demo"):
        results = json.loads((runs / f"demo-{point}" / "results.json").read_text(encoding="utf-8"))
        tested, teaches = results["metrics"][-1], results["rule"] != "supervised"
        values = {
            "student": tested["student"]["mean_iou"],
            "teacher": tested["teacher"]["mean_iou"] if teaches else None,
            "steps": results["steps"],
            "minutes": results["steps"] * results["seconds_per_step"] / 60,
        }
        rows.append({"name": point, "seeds": {str(results["seeds"]["seed"]): values}})
    content = {
        "title": "make demo",
        "command": "make demo",
        "device": results["device"],
        "versions": results["versions"],
        "date": datetime.date.today().isoformat(),
        "columns": COLUMNS,
        "rows": rows,
        "note": f"mIoU on {tested['images']} test images of the real look; the later two start from the first.",
    }
    target = ROOT / "docs" / "results" / "demo.json"
    target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
