"""The report of a run: pictures, model card and facts, written into its output directory in one go."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hf_fst.drawing.overlays import TITLES, default_palette, grid
from hf_fst.errors import UserError
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
    """Write curves.png, class_iou.png, samples.png, fst_run.json and README.md.

    A picture without data is not written, and one that an earlier report left there is removed.

    Args:
        output_dir: The directory of the weights; made if missing.
        facts: What the card tells.
        log_history: The trainer's log (see `plots.curves`).
        samples: Image uint8 (H, W, 3), label, student and teacher (H, W) of some images.

    Returns:
        The path of README.md.
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
    """Regenerate the card of a run from the files it left, without training: fst_run.json and, where it is, history.json.

    The sample pictures stay; curves and bars are drawn again where there is a history. What an editor wrote into the
    card is lost.

    Args:
        directory: The output directory of a run.
        compared: Directories of other runs on the same data, for a table beside this one.
        changes: Fields of `RunFacts` to set, such as `license` or `hub_id`; they are kept in fst_run.json.

    Returns:
        The path of README.md.

    Raises:
        FileNotFoundError: If a directory has no fst_run.json.
        ValueError: If one is not such a file, the weights are not finite, or a change is not something a card may tell.
    """
    directory = Path(directory)
    facts = RunFacts.load(directory)
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
    """The log of a training. Raises `UserError` for any other file."""
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        log = None
    if not isinstance(log, list) or not all(isinstance(entry, dict) for entry in log):
        raise UserError(f"{path} is no log of a training; restore it, or remove it for a card without curves.")
    return log


def _plots(output_dir: Path, facts: RunFacts, log_history: Sequence[Mapping]) -> None:
    """Curves of the training and bars of the classes, if there is data for them, in place of earlier ones."""
    from hf_fst.drawing.plots import class_bars, curves  # matplotlib: importing the trainer need not wait for it

    for name in ("curves.png", "class_iou.png"):
        (output_dir / name).unlink(missing_ok=True)
    saved = [evaluation for evaluation in facts.evaluations if evaluation.weights == facts.saved]
    best_step = saved[0].step if saved and facts.saved == "best" else None
    curves(log_history, output_dir / "curves.png", best_step, facts.classes, _palette(facts))
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


def _palette(facts: RunFacts) -> Sequence[Sequence[int]]:
    return default_palette(len(facts.classes)) if facts.palette is None else facts.palette
