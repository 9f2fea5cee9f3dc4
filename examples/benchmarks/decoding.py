"""Processor time of decoding JPEG photographs with Pillow and with torchvision, and of a whole training item.

    python examples/benchmarks/decoding.py --images DIR

Reads the first images of DIR as they are, and enlarged fourfold, with each decoder in turn, on one thread. Writes
docs/results/decoding.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torchvision.transforms.v2.functional as F
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_jpeg

from hf_fst.data.images import decode_pixels
from hf_fst.data.transforms import training
from hf_fst.evaluation.machine import hardware, versions

ROOT = Path(__file__).resolve().parents[2]


def pillow(content: bytes) -> torch.Tensor:
    return F.pil_to_tensor(PIL.Image.open(BytesIO(content)))


def torchvision(content: bytes) -> torch.Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)


def hf_fst(content: bytes) -> torch.Tensor:
    return decode_pixels({"path": None, "bytes": content})[0]


def item(content: bytes) -> torch.Tensor:
    return CROPS(tv_tensors.Image(hf_fst(content)), None)[0]


CROPS = training(512, random_scale=(0.5, 2.0))
READERS: dict[str, Callable] = {
    "Pillow": pillow,
    "torchvision": torchvision,
    "hf_fst: checks, then torchvision": hf_fst,
    "hf_fst: a training crop of 512 x 512": item,
}


def enlarged(content: bytes, factor: int) -> bytes:
    image, file = PIL.Image.open(BytesIO(content)), BytesIO()
    image.resize([factor * side for side in image.size]).save(file, "JPEG", quality=90)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = [path.read_bytes() for path in sorted(args.images.glob("*.jpg"))[: args.count]]
    rows = []
    for factor in (1, 4):
        contents = [enlarged(content, factor) for content in files] if factor > 1 else files
        assert all(torch.equal(pillow(content), torchvision(content)) for content in contents)
        seconds: dict[str, list[float]] = {name: [] for name in READERS}
        for _ in range(args.rounds):
            for name, read in READERS.items():
                start = time.process_time()
                for content in contents:
                    read(content)
                seconds[name].append((time.process_time() - start) / len(contents))
        width, height = PIL.Image.open(BytesIO(contents[0])).size
        for name, taken in seconds.items():
            ratios = np.divide(taken, seconds["Pillow"])
            cells = {"ms": 1e3 * statistics.median(taken), "ratio": float(np.median(ratios))}
            rows.append({"name": f"{width} x {height}, {name}", "seeds": {"0": cells}})
    result = {
        "title": "Decoding a photograph (JPEG)",
        "command": "python examples/benchmarks/decoding.py --images DATA_DIR",
        "device": hardware("cpu"),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "columns": [
            {"key": "ms", "title": "processor ms", "format": "number"},
            {"key": "ratio", "title": "to Pillow", "format": "number"},
        ],
        "rows": rows,
        "note": f"Median of {args.rounds} rounds of {len(files)} images; both decoders gave the same pixels.",
    }
    target = ROOT / "docs" / "results" / "decoding.json"
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{target.name} written; now make tables")


if __name__ == "__main__":
    main()
