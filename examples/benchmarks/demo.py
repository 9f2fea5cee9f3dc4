"""Write what `make demo` measured, runs/demo/results.json, as docs/results/demo.json.

    make demo && python examples/benchmarks/demo.py

`make tables` renders the file.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(run: Path = ROOT / "runs" / "demo") -> int:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    rows = []
    for entry in results["metrics"]:
        name = f"{entry['weights']}, step {entry['step']}, {entry['images']} {entry['split']} images"
        values = {network: entry[network]["mean_iou"] for network in ("student", "teacher")}
        values["accuracy"] = entry["teacher"]["overall_accuracy"]
        rows.append({"name": name, "seeds": {str(results["seeds"]["seed"]): values}})
    content = {
        "title": "make demo",
        "command": "make demo",
        "device": results["device"],
        "versions": results["versions"],
        "date": datetime.date.today().isoformat(),
        "columns": [
            {"key": "student", "title": "student mIoU (%)", "format": "percent"},
            {"key": "teacher", "title": "teacher mIoU (%)", "format": "percent"},
            {"key": "accuracy", "title": "teacher accuracy (%)", "format": "percent"},
        ],
        "rows": rows,
        "note": "`start` is the source-only network.",
    }
    target = ROOT / "docs" / "results" / "demo.json"
    target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{target.relative_to(ROOT)} written; now make tables")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
