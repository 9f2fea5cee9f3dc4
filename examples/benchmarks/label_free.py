"""How well scores that need no labels rank networks by the mIoU that they cannot see.

    python examples/benchmarks/label_free.py street runs/study/street_study/*-[0-4] --images 32

Student and teacher of each run, and of those of its checkpoints that are kept, look at validation images of the run. The
table has the rank correlation (Spearman's) of each score with mIoU over all these networks. Writes
docs/results/label_free.json, in which each task is a column; other tasks stay.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import nn

from hf_fst.data import View
from hf_fst.data.transforms import Evaluation
from hf_fst.evaluation.confusion import confusion_matrix, scores
from hf_fst.evaluation.inference import segment
from hf_fst.evaluation.machine import hardware, versions
from hf_fst.method.augmentation import StrongAugmentation
from hf_fst.models.loading import load_network, processor_of
from hf_fst.recipes.evaluation import images_of, recipe_of

TARGET = Path(__file__).resolve().parents[2] / "docs" / "results" / "label_free.json"
PAIR = "student's classes against the teacher's, mIoU"
MIRRORED = "classes against those of the mirrored image, mIoU"
JITTERED = "classes against those in other colors, mIoU"
SCORES = (PAIR, MIRRORED, JITTERED, "mean confidence", "mean entropy, negative", "mutual information")


def agreement(first: torch.Tensor, second: torch.Tensor, classes: int) -> float:
    """mIoU of maps (B,H,W) against others."""
    return scores(confusion_matrix(first, second, classes).sum(0))["mean_iou"]


@torch.no_grad()
def looked_at(
    networks: dict[str | None, nn.Module], images: torch.Tensor, jittered: torch.Tensor, labels
) -> list[dict]:
    """Scores and mIoU of each network over all images (B,3,H,W), labels (B,H,W)."""
    found, maps = [], []
    for network in networks.values():
        classes = network.config.num_labels

        def logits(pixels: torch.Tensor, network=network) -> torch.Tensor:
            return torch.cat([segment(network, part, labels.shape[-2:]) for part in pixels.split(8)])

        log_p = logits(images).log_softmax(1)
        p, own = log_p.exp(), log_p.argmax(1)
        entropy, mean = -(p * log_p).sum(1).mean(), p.mean(dim=(0, 2, 3))
        maps.append(own)
        found.append(
            {
                "mIoU": agreement(own, labels, classes),
                MIRRORED: agreement(logits(images.flip(-1)).flip(-1).argmax(1), own, classes),
                JITTERED: agreement(logits(jittered).argmax(1), own, classes),
                "mean confidence": p.amax(1).mean().item(),
                "mean entropy, negative": -entropy.item(),
                "mutual information": (-torch.special.xlogy(mean, mean).sum() - entropy).item(),
            }
        )
    if len(maps) == 2:
        for entry in found:
            entry[PAIR] = agreement(*maps, classes)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="a column of the table")
    parser.add_argument("runs", nargs="+", type=Path, help="output directories")
    parser.add_argument("--images", type=int, default=32, help="of the validation split, evenly spaced")
    args = parser.parse_args(arguments)
    recipe = recipe_of(args.runs[0])
    evaluated = images_of(recipe).evaluated[recipe.eval_split]
    chosen = range(0, len(evaluated), max(1, len(evaluated) // args.images))[: args.images]
    processor = processor_of(args.runs[0])
    scale = recipe.eval_resize or recipe.unlabeled_resize or recipe.resize
    view = View(evaluated.select(chosen), Evaluation(scale, processor))
    images, labels = (torch.stack([view[i][key] for i in range(len(view))]) for key in ("pixel_values", "labels"))
    # at the size that the network sees: photographs are many times as large, and so would be what is kept of them
    labels = nn.functional.interpolate(labels.unsqueeze(1).double(), images.shape[-2:]).squeeze(1).long()
    torch.manual_seed(0)
    jitter = StrongAugmentation(1.0, 0.2, 0.0, mean=processor.image_mean, std=processor.image_std)
    jittered = jitter(images)
    entries = []
    for run in args.runs:
        names = (None,) if recipe_of(run).options["rule"] == "supervised" else ("student", "teacher")
        for place in (run, *sorted(run.glob("checkpoint-*[0-9]"))):
            networks = {name: load_network(place, name).eval() for name in names}
            found = looked_at(networks, images, jittered, labels)
            entries += [
                entry for entry in found if entry not in entries
            ]  # the last checkpoint may be what the run kept
            print(run.name, place.name, *(f"{entry['mIoU']:.3f}" for entry in found), flush=True)

    content = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.is_file() else {"columns": [], "rows": []}
    columns = [column for column in content["columns"] if column["key"] != args.task]
    kept = {row["name"]: row["seeds"]["0"] for row in content["rows"]}
    rows = []
    for score in SCORES:
        pairs = [(entry[score], entry["mIoU"]) for entry in entries if score in entry]
        values = kept.get(score, {}) | {args.task: float(spearmanr(*zip(*pairs, strict=True)).statistic)}
        rows.append({"name": score, "seeds": {"0": values}})
    title = f"{args.task}, {len(entries)} networks"
    content = {
        "title": "Rank correlation with the mIoU of the same network",
        "command": "python examples/benchmarks/label_free.py TASK RUNS",
        "device": hardware("cpu"),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "columns": [*columns, {"key": args.task, "title": title, "format": "number"}],
        "rows": rows,
        "note": f"Spearman's, over students and teachers, at the size that networks see. {len(view)} validation "
        "images of each task.",
    }
    TARGET.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(*(f"{row['name']}: {row['seeds']['0'][args.task]:.2f}" for row in rows), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
