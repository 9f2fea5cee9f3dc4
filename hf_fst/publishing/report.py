"""The report of a run: pictures, model card and facts, written into its output directory in one go."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hf_fst.drawing.overlays import TITLES, default_palette, grid
from hf_fst.errors import UserError, refuse_unwritable
from hf_fst.models.loading import STUDENT_DIR, refuse_broken_files
from hf_fst.publishing.card import as_comparison, write_card
from hf_fst.publishing.facts import RunFacts

HISTORY_FILE = "history.json"


def write_report(
    output_dir: str | Path,
    facts: RunFacts,
    log_history: Sequence[Mapping],
    samples: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = (),
) -> Path:
    """Writes curves.png, class_iou.png, samples.png, fst_run.json and README.md, whose path it returns.

    A picture without data is not written; one from an earlier report is removed.

    Args:
        output_dir: the directory of the weights; created if missing.
        facts: what the card states.
        log_history: the trainer's log (see `plots.curves`).
        samples: image uint8 (H, W, 3), label, student and teacher (H, W) of some images.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    _plots(output_dir, facts, log_history)
    (output_dir / "samples.png").unlink(missing_ok=True)
    if samples:
        titles = ("image", "label", "model") if facts.rule == "supervised" else TITLES  # one network, one column
        picture = grid([sample[: len(titles)] for sample in samples], facts.classes, _palette(facts), titles)
        Image.fromarray(picture).save(output_dir / "samples.png")
    facts.save(output_dir)
    return write_card(output_dir, facts)


def rewrite_report(directory: str | Path, compared: Sequence[str | Path] = (), **changes) -> Path:
    """Regenerates README.md, whose path it returns, from fst_run.json and, if there is one, history.json of a run.

    The sample pictures stay; curves and bars are redrawn if there is a history. Manual edits of the card are lost.

    Args:
        directory: the output directory of a run.
        compared: directories of other runs on the same data, for a table beside this one.
        changes: fields of `RunFacts` to set, such as `license` or `hub_id`; they are kept in fst_run.json.

    Raises:
        UserError: a directory has no such files, weights are not finite, or a card may not hold a change.
    """
    directory = Path(directory)
    facts = RunFacts.load(directory)
    refuse_unwritable(directory)
    for folder in (directory, directory / STUDENT_DIR):
        refuse_broken_files(folder)
    if compared:
        changes["compared"] = [as_comparison(RunFacts.load(other)) for other in compared]
    facts = dataclasses.replace(facts, **changes)
    history = directory / HISTORY_FILE
    if history.is_file():
        _plots(directory, facts, _history(history))
    facts.save(directory)
    return write_card(directory, facts)


def _history(path: Path) -> list[dict]:
    """A training log. Raises `UserError` for any other file."""
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        log = None
    if not isinstance(log, list) or not all(isinstance(entry, dict) for entry in log):
        raise UserError(f"{path} is not a training log; restore it, or delete it for a card without curves.")
    return log


def _plots(output_dir: Path, facts: RunFacts, log_history: Sequence[Mapping]) -> None:
    """Curves of the training and bars of the classes, if there is data for them, in place of earlier ones."""
    from hf_fst.drawing.plots import class_bars, curves  # matplotlib: importing the trainer need not wait for it

    for name in ("curves.png", "class_iou.png"):
        (output_dir / name).unlink(missing_ok=True)
    best_step = facts.kept[0].step if facts.kept and facts.saved == "best" else None
    curves(log_history, output_dir / "curves.png", best_step, facts.classes, _palette(facts))
    for evaluation in [each for each in facts.kept[-1:] if each.teacher.per_category_iou]:
        class_bars(
            evaluation.student.per_category_iou or None,
            evaluation.teacher.per_category_iou if facts.rule != "supervised" else None,
            facts.classes,
            output_dir / "class_iou.png",
            title=f"IoU per class, {evaluation.dataset.title}, {evaluation.dataset.split}",
            scored=facts.settings.get("eval_classes"),
        )


def _palette(facts: RunFacts) -> Sequence[Sequence[int]]:
    return default_palette(len(facts.classes)) if facts.palette is None else facts.palette
