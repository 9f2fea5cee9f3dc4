"""Parameters of every named network, counted without memory for weights.

    python examples/benchmarks/models.py

Writes docs/results/models.json.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

import torch

from hf_fst.evaluation.machine import versions
from hf_fst.models import BUILDS, build

ROOT = Path(__file__).resolve().parents[2]


def count(module: torch.nn.Module | None) -> int:
    """Parameters of a module, 0 of None."""
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


def row(name: str) -> dict:
    """The counts of a network with the classes of the paper's experiments."""
    with torch.device("meta"):
        network = build(name)
    cells = {
        "classes": BUILDS[name].num_labels,
        "parameters": count(network),
        "backbone": count(network.backbone) / 1e6,
        "head": count(network.decode_head) / 1e6,
        "auxiliary": count(network.auxiliary_head) / 1e6 if network.auxiliary_head is not None else None,
    }
    return {"name": f"`{name}` ({BUILDS[name].pretrained_backbone})", "seeds": {"0": cells}}


def main() -> int:
    content = {
        "title": "Named networks",
        "command": "python examples/benchmarks/models.py",
        "device": "the meta device, which holds no weights",
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "columns": [
            {"key": "classes", "title": "classes", "format": "integer"},
            {"key": "parameters", "title": "parameters", "format": "integer"},
            {"key": "backbone", "title": "backbone (M)", "format": "number"},
            {"key": "head", "title": "head (M)", "format": "number"},
            {"key": "auxiliary", "title": "auxiliary head (M)", "format": "number"},
        ],
        "rows": [row(name) for name in BUILDS],
        "note": "In brackets, the source of the weights that `pretrained_backbone=True` loads. Classes are those of the "
        "published experiments; M are millions of parameters.",
    }
    target = ROOT / "docs" / "results" / "models.json"
    target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{target.relative_to(ROOT)} written; now make tables")
    return 0


if __name__ == "__main__":
    sys.exit(main())
