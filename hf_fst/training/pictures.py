"""Pictures of what training sees at some steps, on disk and in the trackers that the run reports to: crops, labels, mixed
images, and the labels that a look-ahead changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from hf_fst.drawing.overlays import colorize, default_palette, labels_in, legend, tiled
from hf_fst.method.losses import IGNORE_INDEX
from hf_fst.training.health import student_labels, teacher_labels
from hf_fst.training.watching import Watcher

FOLDER, KEY = "pictures", "pictures"
SAMPLES = 2  # images of a micro-batch that are shown, at most
FADED = 0.2


class Pictures(Watcher):
    """Draws what some steps see (`picture_steps`), on the first process only.

    A picture is written to `output_dir/pictures/step-N.png` and sent to TensorBoard, trackio and W&B, if
    `report_to` names them. Nothing here changes the run: networks label in evaluation mode, and buffers that this
    changes are restored.

    Args:
        trainer: an `FSTTrainer`.
        palette: colors of the classes, (C, 3); `overlays.default_palette` if not given.
    """

    def __init__(self, trainer, palette: Sequence[Sequence[int]] | None = None):
        super().__init__(trainer)
        self.palette, self.batch = palette, None

    def watch(self, batch: dict) -> bool:
        """Whether the step gets a picture."""
        every, step = self.trainer.settings.picture_steps, self.trainer.state.global_step + 1
        due = bool(every) and (step == 1 or step % every == 0)
        self.batch, self.images = batch if due else None, batch.get("unlabeled_pixel_values")
        self.align_corners = self.trainer.learning_objective.align_corners
        self.labels_before = self.labels_student = self.labels_mixed = None
        return due

    def before(self, teacher) -> None:
        """Keep the labels that the teacher gives now; the last call before a virtual step counts (φ')."""
        if self.images is not None:
            self.labels_before = teacher_labels(teacher, self.images, self.align_corners)

    def after(self, student, batch: dict) -> None:
        """Keep the student's labels, and the micro-batch as the objective prepared it with φ_{t+1}."""
        images = batch["pixel_values"] if self.images is None else self.images
        self.labels_student, self.batch = student_labels(student, images, self.align_corners), batch
        if "mixed_pixel_values" in batch:
            self.labels_mixed = student_labels(student, batch["mixed_pixel_values"], self.align_corners)

    def on_step_end(self, args, state, control, **kwargs):
        """Draw, write, send."""
        if self.batch is not None and state.is_world_process_zero:
            names = self.trainer.class_names
            picture = self.picture(names, default_palette(len(names)) if self.palette is None else self.palette)
            folder = Path(args.output_dir, FOLDER)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"step-{state.global_step}.png")
            self._send(picture, state.global_step)
        self.batch = None

    def rows(self, palette: Sequence[Sequence[int]]) -> list[list[tuple[str, np.ndarray]]]:
        """Titles and pictures, uint8 (H,W,3), with colors (C,3) of the classes: one row an image without unlabeled
        images, else two."""
        batch, colors = self.batch, self.trainer.normalization.colors
        count = min(SAMPLES, len(batch["labels"] if self.images is None else self.images))
        rows = []
        for i in range(count):
            j = i % len(batch["labels"])  # with several unlabeled images for each labeled one
            labeled = [
                ("labeled crop", colors(batch["pixel_values"][j])),
                (_labels_title("its labels", batch["labels"][j]), colorize(_array(batch["labels"][j]), palette)),
            ]
            if self.images is None:
                rows.append([*labeled, ("student on it", colorize(_array(self.labels_student[i]), palette))])
                continue
            if "mixed_pixel_values" in batch:
                labels, counts = batch["mixed_labels"][i], batch["mixed_weight"][i] > 0
                title = "mixed labels" if counts.all() else "mixed labels (faded: weight 0)"
                labeled += [
                    ("mixed image", colors(batch["mixed_pixel_values"][i])),
                    (title, marked(_array(labels), _array(counts), palette)),
                    ("student on it", colorize(_array(self.labels_mixed[i]), palette)),
                ]
            after, confidence = batch["pseudo_labels"][i], batch["pseudo_confidence"][i]
            valid = after != IGNORE_INDEX  # no padding
            changed = valid & (after != self.labels_before[i])
            pixels = valid.sum().clamp(min=1)
            share, mean = 100 * (changed.sum() / pixels).item(), (confidence.float().sum() / pixels).item()
            unlabeled = [
                ("unlabeled crop", colors(self.images[i])),
                ("teacher before look-ahead", colorize(_array(self.labels_before[i]), palette)),
                (f"teacher after it: {share:.1f} % changed", marked(_array(after), _array(changed), palette)),
                (f"its confidence, mean {mean:.2f}", shades(_array(confidence.float()))),
                ("student on it", colorize(_array(self.labels_student[i]), palette)),
            ]
            rows += [labeled, unlabeled]
        return rows

    def picture(self, names: Sequence[str], palette: Sequence[Sequence[int]]) -> np.ndarray:
        """The rows as one picture with a legend of the classes that occur: uint8 (H,W,3)."""
        prepared = [self.batch.get(key) for key in ("labels", "pseudo_labels", "mixed_labels")]
        maps = [*prepared, self.labels_before, self.labels_student, self.labels_mixed]
        shown = labels_in(*(_array(labels[:SAMPLES]) for labels in maps if labels is not None))
        picture = tiled(self.rows(palette))
        return np.concatenate([picture, legend(names, palette, shown, picture.shape[1])])

    def _send(self, picture: np.ndarray, step: int) -> None:
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_image(KEY, picture, step, dataformats="HWC")
            elif isinstance(callback, TrackioCallback):
                import trackio

                trackio.log({KEY: trackio.Image(picture, caption=f"step {step}"), "train/global_step": step})
            elif isinstance(callback, WandbCallback):
                import wandb

                wandb.log({KEY: wandb.Image(picture, caption=f"step {step}"), "train/global_step": step})


def marked(labels: np.ndarray, changed: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Labels (H,W) in color where `changed` (H,W) is True, faded towards white elsewhere: uint8 (H,W,3)."""
    colors = colorize(labels, palette)
    faded = np.rint(FADED * colors + (1 - FADED) * 255).astype(np.uint8)
    return np.where(changed[..., None], colors, faded)


def shades(values: np.ndarray) -> np.ndarray:
    """Values (H,W) from 0, dark, to 1, bright: uint8 (H,W,3)."""
    from matplotlib import colormaps

    return colormaps["viridis"](values, bytes=True)[..., :3]


def _labels_title(title: str, labels: torch.Tensor) -> str:
    return f"{title} (hatched: ignored)" if (labels == IGNORE_INDEX).any() else title


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
