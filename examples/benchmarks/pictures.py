"""Draw the pictures of README and docs that show what a run on `street` learned.

    hf-fst train street-da-lite --rule supervised --objective supervised --max_steps 250 --seed 1 -o START
    hf-fst train street-da-lite --model START --model_config null --pretrained_backbone null --lookahead_every 12 \\
        --max_steps 240 --save_steps 60 --save_total_limit 9 --eval_steps 60 --picture_steps 60 --seed 1 -o RUN
    python examples/benchmarks/pictures.py START RUN

The scenes are the first of the test split, whatever they show.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from hf_fst.data import load
from hf_fst.drawing.overlays import MARGIN, TITLE, grid
from hf_fst.drawing.plots import curves
from hf_fst.prediction.segmenter import Segmenter

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
SIZE = (144, 240)
STEPS = (60, 120)


def labeled_by(networks: list[Segmenter], scenes: list[tuple[np.ndarray, np.ndarray]]) -> list[list[np.ndarray]]:
    """For each scene its image, what each network says of it, and the truth."""
    rows = []
    for image, truth in scenes:
        rows.append([image, *(network.classes([network.look(image)])[0] for network in networks), truth])
    return rows


def main(start: Path, run: Path) -> None:
    street = load("street", look="real", size=SIZE, num_train=1, num_validation=1)["test"]
    scenes = [(np.asarray(row["image"]), np.asarray(row["label"])) for row in street.select(range(3))]
    before, after = Segmenter(start), Segmenter(run)
    look = after.names, after.palette
    titles = ("new look, no labels", "before", "after", "truth")
    drawn = grid(labeled_by([before, after], scenes), *look, titles)
    Image.fromarray(drawn).save(IMAGES / "before_after.png")

    teachers = [before, *(Segmenter(run / f"checkpoint-{step}" / "teacher") for step in STEPS), after]
    titles = ("image", "step 0", *(f"step {step}" for step in STEPS), "the end", "truth")
    drawn = grid(labeled_by(teachers, scenes[:2]), *look, titles)
    Image.fromarray(drawn).save(IMAGES / "pseudo_labels.png")

    log = json.loads((run / "history.json").read_text(encoding="utf-8"))
    curves(log, IMAGES / "curves.png", names=[name.replace(" ", "_") for name in after.names], palette=after.palette)

    sheet = Image.open(run / "pictures" / "step-1.png")  # of those drawn, the one that looks ahead
    sheet.quantize(255).save(IMAGES / "step.png", optimize=True)
    width, height = 320, 2 * 96 + MARGIN + TITLE  # a crop of 96x160, twice as large, below its title
    row = sheet.crop((0, MARGIN + 3 * height, MARGIN + 4 * (width + MARGIN), MARGIN + 4 * height))
    row.quantize(255).save(IMAGES / "look_ahead.png", optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", type=Path, help="a run on labels alone")
    parser.add_argument("run", type=Path, help="one that went on from it and kept its checkpoints")
    args = parser.parse_args()
    main(args.start, args.run)
