"""How long counting takes: our confusion matrix and metric against the usual ways, in one run, and their memory.

    python examples/benchmarks/miou.py --output docs/results/miou_benchmark.json    # and miou_benchmark_memory.json

Each way counts the same maps of 1024 x 2048 pixels and 19 classes, about a tenth of them ignored, and must give the
same mIoU. A time is processor time, the least of several rounds, one thread each. The well-known `mean_iou` lies on
the Hub; what is timed through `evaluate` is `usual_mean_iou/`, which follows its published algorithm. The official
Cityscapes counter reads files, so it gets uncompressed images in memory; reading them is timed on its own too.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from datetime import date
from pathlib import Path

import evaluate
import numpy as np
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from PIL import Image

from hf_fst.data.cityscapes import RAW_IDS
from hf_fst.evaluation import MEAN_IOU, ConfusionMatrix
from hf_fst.evaluation.machine import hardware, versions

sys.path.insert(0, str(Path(__file__).parent / "usual_mean_iou"))
import usual_mean_iou

CLASSES, HEIGHT, WIDTH = 19, 1024, 2048
USUAL = str(Path(__file__).parent / "usual_mean_iou")
MEMORY_MAPS = (5, 40)


def draw(seed: int, index: int, dtype: type = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """A label of 32-pixel squares, a tenth of them ignored, and a prediction that errs in a fifth of the pixels."""
    random = np.random.default_rng((seed, index))
    squares = random.integers(0, CLASSES, (HEIGHT // 32, WIDTH // 32), dtype=np.uint8)
    prediction = np.kron(squares, np.ones((32, 32), dtype=np.uint8))
    squares[random.random(squares.shape) < 0.1] = 255
    label = np.kron(squares, np.ones((32, 32), dtype=np.uint8))
    wrong = random.random(prediction.shape) < 0.2
    prediction[wrong] = random.integers(0, CLASSES, int(wrong.sum()), dtype=np.uint8)
    return prediction.astype(dtype), label.astype(dtype)


def with_confusion_matrix(pairs) -> float:
    matrix = ConfusionMatrix(CLASSES)
    for prediction, label in pairs:
        matrix.update(prediction[None], label[None])
    return matrix.compute()["mean_iou"]


def through_evaluate(path: str, pairs) -> float:
    with tempfile.TemporaryDirectory() as cache:
        metric = evaluate.load(path, cache_dir=cache)
        for prediction, label in pairs:
            metric.add_batch(predictions=prediction[None], references=label[None])
        return float(metric.compute(num_labels=CLASSES, ignore_index=255)["mean_iou"])


def with_histograms(pairs) -> float:
    total = sum(usual_mean_iou.areas(prediction, label, CLASSES, 255) for prediction, label in pairs)
    return float(np.mean(total[0] / (total[1] + total[2] - total[0])))


def as_files(pairs) -> list[tuple[bytes, bytes]]:
    """The maps with Cityscapes' raw ids, 255 as its id 0, as uncompressed images."""
    ids = np.array(RAW_IDS + [0] * (256 - CLASSES), dtype=np.uint8)
    files = []
    for pair in pairs:
        buffers = [io.BytesIO(), io.BytesIO()]
        for buffer, values in zip(buffers, pair, strict=True):
            Image.fromarray(ids[values]).save(buffer, "PPM")
        files.append((buffers[0].getvalue(), buffers[1].getvalue()))
    return files


def with_cityscapes(files) -> float:
    changes = {"evalInstLevelScore": False, "evalPixelAccuracy": False, "JSONOutput": False, "quiet": True}
    settings = Namespace(**{**vars(official.args), **changes})
    matrix = official.generateMatrix(settings)
    for prediction, label in files:
        official.evaluatePair(io.BytesIO(prediction), io.BytesIO(label), matrix, {}, {}, settings)
    return float(np.mean([official.getIouScoreForLabel(index, matrix, settings) for index in RAW_IDS]))


def read_only(files) -> None:
    for pair in files:
        for content in pair:
            np.array(Image.open(io.BytesIO(content)))


def read_once(pairs) -> None:
    """Looks at every byte and does next to nothing with it: what any way of counting takes at the least."""
    for pair in pairs:
        for values in pair:
            np.bitwise_or.reduce(values, axis=None)


def least(work: Callable[[], float | None], rounds: int) -> tuple[float, float | None]:
    """Processor seconds of the fastest round (other work on the machine counts little), and what the work gave."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        value = work()
        seconds.append(time.process_time() - start)
    return min(seconds), value


def measure(seed: int, maps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds per map of each way, and how many times those of our confusion matrix they are."""
    found = {}
    for kind, dtype in (("8-bit", np.uint8), ("64-bit", np.int64)):
        pairs = [draw(seed, index, dtype) for index in range(maps)]
        ways = {
            "hf_fst confusion matrix": lambda pairs=pairs: with_confusion_matrix(pairs),
            "hf_fst metric through evaluate": lambda pairs=pairs: through_evaluate(MEAN_IOU, pairs),
            "numpy histograms per image": lambda pairs=pairs: with_histograms(pairs),
            "usual mean_iou through evaluate": lambda pairs=pairs: through_evaluate(USUAL, pairs),
            "reading the maps once": lambda pairs=pairs: read_once(pairs),
        }
        if kind == "8-bit":
            files = as_files(pairs)
            counter = "compiled" if official.CSUPPORT else "Python"
            ways[f"cityscapesscripts, {counter} counter, reading included"] = lambda files=files: with_cityscapes(
                files
            )
            ways["reading for cityscapesscripts"] = lambda files=files: read_only(files)
        values, ours = set(), None
        for name, way in ways.items():
            # the slowest needs no more than one round: it takes as long as hundreds of ours
            seconds, value = least(way, 1 if name.startswith("usual") else rounds)
            if value is not None:
                values.add(round(value, 12))
            ours = seconds if ours is None else ours
            found[f"{name}, {kind} maps"] = {
                "milliseconds": 1000 * seconds / maps,
                "ratio": seconds / ours,
            }
            print(f"seed {seed} {name}, {kind} maps: {1000 * seconds / maps:.2f} ms a map, {seconds / ours:.1f} times")
        for name in ways:
            row = found[f"{name}, {kind} maps"]
            row["ratio_metric"] = (
                row["milliseconds"] / found[f"hf_fst metric through evaluate, {kind} maps"]["milliseconds"]
            )
        if len(values) != 1:
            raise RuntimeError(f"The ways disagree on the mIoU of the {kind} maps: {values}.")
    return found


def peak_memory(way: str, seed: int, maps: int) -> None:
    """Counts maps that are drawn one after the other, and prints the process's peak memory in MiB (Linux)."""
    pairs = (draw(seed, index) for index in range(maps))
    if way == "hf_fst confusion matrix":
        with_confusion_matrix(pairs)
    else:
        through_evaluate(MEAN_IOU if way == "hf_fst metric through evaluate" else USUAL, pairs)
    # getrusage would give the peak of the process that started this one, if that is larger
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


def memory(way: str, seed: int) -> dict[str, float]:
    """Peak memory of fresh processes that count few and many maps, in MiB."""
    found = {}
    for maps in MEMORY_MAPS:
        command = [sys.executable, __file__, "--peak", way, "--maps", str(maps), "--seeds", str(seed)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[f"mib_{maps}"] = float(done.stdout.split()[-1])
        print(f"seed {seed} {way}, {maps} maps: {found[f'mib_{maps}']:.0f} MiB at the most")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="JSON file for the times; the memory goes to one beside it")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        peak_memory(args.peak, args.seeds[0], args.maps)
        return

    times: dict[str, dict[str, dict[str, float | None]]] = {}
    for seed in args.seeds:
        for name, cells in measure(seed, args.maps, args.rounds).items():
            times.setdefault(name, {})[str(seed)] = cells
    ways = ("hf_fst confusion matrix", "hf_fst metric through evaluate", "usual mean_iou through evaluate")
    peaks = {way: {str(args.seeds[0]): memory(way, args.seeds[0])} for way in ways}
    if args.output is None:
        return
    about = {
        "command": " ".join(["python", "examples/benchmarks/miou.py", *sys.argv[1:]]),
        "device": hardware("cpu"),
        "versions": {**versions(), "evaluate": evaluate.__version__, "numpy": np.__version__},
        "date": date.today().isoformat(),
    }
    usual = "The usual mean_iou is a local module that follows its published algorithm, run through evaluate."
    compiled = "was" if official.CSUPPORT else "was not"
    time_columns = [
        {"key": "milliseconds", "title": "ms per map", "format": "number"},
        {"key": "ratio", "title": "times our confusion matrix", "format": "number"},
        {"key": "ratio_metric", "title": "times our metric", "format": "number"},
    ]
    time_results = {
        "title": f"Counting {args.maps} maps of {HEIGHT} x {WIDTH} pixels and {CLASSES} classes",
        **about,
        "columns": time_columns,
        "rows": [{"name": name, "seeds": seeds} for name, seeds in times.items()],
        "note": f"{usual} The compiled extension of cityscapesscripts {compiled} installed. Times are processor time "
        f"of one thread, the least of {args.rounds} rounds (one for the usual metric).",
    }
    peak_results = {
        "title": f"Peak memory of counting few and many maps of {HEIGHT} x {WIDTH} pixels",
        **about,
        "columns": [{"key": f"mib_{n}", "title": f"MiB, {n} maps", "format": "integer"} for n in MEMORY_MAPS],
        "rows": [{"name": way, "seeds": seeds} for way, seeds in peaks.items()],
        "note": f"{usual} Each is the peak of a fresh process, imports included.",
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    memory_output = args.output.with_name(args.output.stem + "_memory.json")
    for path, results in ((args.output, time_results), (memory_output, peak_results)):
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
