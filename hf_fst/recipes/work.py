"""A run that passed all checks, and what it writes when it begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback

from hf_fst.drawing.plots import sampling_bars
from hf_fst.drawing.tables import columns_of_terminal, percent, text_table
from hf_fst.recipes.data import RunData
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.load import as_dict, as_text
from hf_fst.recipes.output import CLASS_SAMPLING, LOCAL_FILE, RECIPE_FILE, local_keys, remove_run, shareable
from hf_fst.recipes.progress import Stopwatch
from hf_fst.training.trainer import FSTTrainer


class Records(TrainerCallback):
    """Writes the recipe into the output directory, and with `overwrite` removes the run that was there before.

    Training has begun: model, data, options and checkpoint have passed, so that the directory describes one run at any
    time. It must be the first callback, since others write there too.
    """

    def __init__(self, recipe: Recipe, data: RunData, overwrite: bool):
        self.recipe, self.data, self.overwrite = recipe, data, overwrite

    def on_train_begin(self, args, state, control, **kwargs):
        """After all checks have passed."""
        if state.is_world_process_zero:
            output_dir, values = Path(args.output_dir), as_dict(self.recipe)
            if self.overwrite:
                remove_run(output_dir)
            for name, content in ((RECIPE_FILE, shareable(values)), (LOCAL_FILE, local_keys(values))):
                (output_dir / name).write_text(as_text(content), encoding="utf-8")
            if self.data.rare is not None:
                _show_sampling(self.data.rare.table(), output_dir / CLASS_SAMPLING)
        PartialState().wait_for_everyone()


@dataclass
class Work:
    """A run that passed all checks: its trainer, its data, and further facts for its card."""

    recipe: Recipe
    trainer: FSTTrainer
    data: RunData
    stopwatch: Stopwatch
    card: dict[str, object]
    notes: list[str]


def _show_sampling(rows: list[dict], path: Path) -> None:
    """Prints how often each class occurs and is drawn, and writes it as a picture."""
    cells = [
        [row["class"], f"{row['pixels']:,}", percent(row["share"]), f"{row['images']:,}", percent(row["probability"])]
        for row in rows
    ]
    print("\n" + text_table(["class", "pixels", "% of pixels", "images", "% of draws"], cells, columns_of_terminal()))
    shares, draws = ([row[key] for row in rows] for key in ("share", "probability"))
    sampling_bars(shares, draws, [row["class"] for row in rows], path)
