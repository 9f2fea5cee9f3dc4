"""The report of a run: pictures, model card and facts, written into its output directory in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hf_fst.reporting.card import FIGURES, write_card
from hf_fst.reporting.facts import RunFacts
from hf_fst.reporting.overlays import default_palette, grid
from hf_fst.reporting.plots import class_bars, curves


def write_report(
    output_dir: str | Path,
    facts: RunFacts,
    log_history: Sequence[Mapping],
    samples: Sequence[tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]] = (),
) -> Path:
    """Write curves.png, class_iou.png, samples.png, fst_run.json and README.md.

    A picture without data is not written, and one that an earlier report left there is removed.

    Args:
        output_dir: The directory of the weights; made if missing.
        facts: What the card tells.
        log_history: The trainer's log (see `plots.curves`).
        samples: Image uint8 (H, W, 3), label or None, student and teacher (H, W) of some images.

    Returns:
        The path of README.md.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    for name in FIGURES:
        (output_dir / name).unlink(missing_ok=True)
    saved = [evaluation for evaluation in facts.evaluations if evaluation.weights == facts.saved]
    palette = default_palette(len(facts.classes)) if facts.palette is None else facts.palette
    best_step = saved[0].step if saved and facts.saved == "best" else None
    curves(log_history, output_dir / "curves.png", best_step, facts.classes, palette)
    if saved and saved[-1].teacher.per_category_iou:
        evaluation = saved[-1]
        class_bars(
            evaluation.student.per_category_iou or None,
            evaluation.teacher.per_category_iou if facts.rule != "supervised" else None,
            facts.classes,
            output_dir / "class_iou.png",
            title=f"IoU per class, {evaluation.dataset.title}, {evaluation.dataset.split}",
            scored=facts.settings.get("eval_classes"),
        )
    if samples and facts.rule == "supervised":  # one network, one column
        grid([s[:3] for s in samples], facts.classes, palette, output_dir / "samples.png", ("image", "label", "model"))
    elif samples:
        grid(samples, facts.classes, palette, output_dir / "samples.png")
    facts.save(output_dir)
    return write_card(output_dir, facts)
