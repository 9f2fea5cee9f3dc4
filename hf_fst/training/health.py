"""Health of the pseudo-labels on the step's own unlabeled images; true labels are used if there are any."""

from __future__ import annotations

import torch
from transformers.utils import logging

from hf_fst.errors import UserError
from hf_fst.evaluation.confusion import confusion_matrix, scores
from hf_fst.evaluation.inference import evaluation_mode
from hf_fst.method.lookahead import sum_over_processes
from hf_fst.method.losses import IGNORE_INDEX, ignore_as_255, pseudo_labels
from hf_fst.training.watching import Watcher

logger = logging.get_logger(__name__)
PATIENCE = 200  # steps without a confident pseudo-label before a warning


@torch.no_grad()
def teacher_labels(teacher, images: torch.Tensor, align_corners: bool = False) -> torch.Tensor:
    """The teacher's current labels (B,H,W) of `images` (B,3,H,W); buffers that this changes are restored."""
    kept = [buffer.clone() for buffer in teacher.model.buffers()] if teacher.buffers == "batch" else []
    labels, _ = pseudo_labels(teacher(images).logits, images.shape[-2:], align_corners)
    if kept:
        torch._foreach_copy_(list(teacher.model.buffers()), kept)
    return labels


@torch.no_grad()
def student_labels(student, images: torch.Tensor, align_corners: bool = False) -> torch.Tensor:
    """Labels (B,H,W) of a student in evaluation mode; the mode of every module is restored."""
    with evaluation_mode(student):
        return pseudo_labels(student(pixel_values=images).logits, images.shape[-2:], align_corners)[0]


class Health(Watcher):
    """Puts statistics of the pseudo-labels of logged steps into the trainer's journal.

    Nothing here changes the run: networks label in evaluation mode, and buffers that this changes are restored.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        """None of the pseudo-labels that were looked at was above the threshold."""
        self.none_yet = True

    def watch(self, batch: dict) -> bool:
        """Whether the step is logged and learns from pseudo-labels."""
        trainer, self.images = self.trainer, batch.get("unlabeled_pixel_values")
        by_steps = trainer.args.logging_strategy == "steps"
        due = by_steps and (trainer.state.global_step + 1) % trainer.state.logging_steps == 0
        return due and trainer.has_teacher and trainer.learning_objective.needs_unlabeled

    def before(self, teacher) -> None:
        """Keep the labels that the teacher gives now; the last call before a virtual step counts (φ')."""
        self.labels_before = teacher_labels(teacher, self.images, self.trainer.learning_objective.align_corners)

    def after(self, student, batch: dict) -> None:
        """Over all processes."""
        sums = sum_over_processes(self.trainer.accelerator, [self.sums(student, batch)])
        self.trainer.journal.health = logs = self.logs(sums)
        state, threshold = self.trainer.state, self.trainer.learning_objective.confidence_threshold
        step = state.global_step + 1
        self.none_yet = self.none_yet and not logs["pseudo_above_threshold"]
        if self.none_yet and step >= PATIENCE and step - state.logging_steps < PATIENCE:
            logger.warning(
                f"After {step} steps no sampled pseudo-label is above the confidence threshold "
                f"({threshold:g}; the mean is {logs['pseudo_confidence']:.2f}), so little or nothing is "
                "learned from the unlabeled images. Train longer, from pretrained weights or with a higher "
                "learning_rate, or lower confidence_threshold."
            )

    @torch.no_grad()
    def sums(self, student, batch: dict) -> dict[str, torch.Tensor]:
        """Sums over pixels, ready to be added over processes.

        Args:
            student: the unwrapped student.
            batch: the prepared micro-batch, with `pseudo_labels` and `pseudo_confidence` of φ_{t+1}.

        Raises:
            UserError: a user's own objective does not provide these.
        """
        if missing := {"pseudo_labels", "pseudo_confidence"} - set(batch):
            raise UserError(
                f"prepare() of the objective gives no {' and no '.join(sorted(missing))}, which are logged; give both, "
                "(B,H,W) each, or remove the callback hf_fst.training.health.Health."
            )
        objective, classes = self.trainer.learning_objective, len(self.trainer.class_names)
        labels, confidence = batch["pseudo_labels"], batch["pseudo_confidence"]
        own = student_labels(student, self.images, objective.align_corners)
        valid = labels != IGNORE_INDEX  # no padding
        sums = {
            "pixels": valid.sum(),
            "confidence": confidence.double().sum(),
            "above_threshold": (valid & (confidence >= objective.confidence_threshold)).sum(),
            "disagreement": (valid & (own != labels)).sum(),
            "changed": (valid & (self.labels_before != labels)).sum(),
            "histogram": torch.bincount(labels[valid], minlength=classes),
        }
        if "unlabeled_labels" in batch:
            truth = ignore_as_255(batch["unlabeled_labels"]).masked_fill(~valid, IGNORE_INDEX)
            sums["confusion"] = confusion_matrix(labels, truth, classes).sum(dim=0)
        return sums

    def logs(self, sums: dict[str, torch.Tensor]) -> dict[str, float]:
        """Shares in 0..1 from the summed counts, under their log keys; true labels count over `eval_classes`."""
        pixels = max(1, sums["pixels"].item())
        logs = {
            f"pseudo_{key}": sums[key].item() / pixels
            for key in ("confidence", "above_threshold", "disagreement", "changed")
        }
        for name, count in zip(self.trainer.class_names, sums["histogram"].tolist(), strict=True):
            logs[f"pseudo_share_{name}"] = count / pixels
        if "confusion" in sums:
            result = scores(sums["confusion"], self.trainer.settings.eval_classes)
            logs["pseudo_accuracy"], logs["pseudo_mean_iou"] = result["overall_accuracy"], result["mean_iou"]
        return logs
