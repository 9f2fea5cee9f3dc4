"""What an `FSTTrainer` does at certain points of a run, each a callback that can be removed."""

from __future__ import annotations

import math

from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.utils import PushToHubMixin, logging

from hf_fst.training.health import Health
from hf_fst.training.hub_strategy import push_checkpoint, tell_failures
from hf_fst.training.journal import summed
from hf_fst.training.pictures import Pictures
from hf_fst.training.settings import longer_than_run
from hf_fst.training.watching import OfTrainer, Watcher

logger = logging.get_logger(__name__)


class EpochOfDraws(OfTrainer):
    """Tells the sampler which epoch its draws belong to.

    Trainer and accelerate reach the sampler themselves but in one case: where several processes resume inside an epoch,
    the batches to skip are wrapped once more than they look into, and the epoch would start again from its first draws
    of epoch 0.
    """

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Before the first batch of an epoch."""
        self.trainer.draws.set_epoch(math.floor(state.epoch or 0))


class TeacherAfterStep(OfTrainer):
    """Lets the teacher follow the student after its real step if `teacher_follows` says so."""

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Before the schedule advances and the step is counted."""
        vars(self.trainer.step.optimizer).pop("found_inf", None)  # of a step that the device may have left out
        if self.trainer.has_teacher:
            self.trainer.step.teacher_follows_outcome()


class Skipped(OfTrainer):
    """Counts the steps that were skipped, and names the images that could not be read if `on_bad_image` skips them."""

    def on_train_end(self, args, state, control, **kwargs):
        """Of all processes."""
        journal = self.trainer.journal
        steps = [f"{count} {kind}" for kind, count in journal.skipped.items() if count]
        if steps and state.is_world_process_zero:
            logger.warning(
                f"Skipped steps: {' and '.join(steps)} (of {state.global_step} in all), since their loss or gradient was "
                "not finite; look at their images, or lower the learning rate."
            )
        journal.skipped_images = summed(gather_object([journal.skipped_images]))
        if journal.skipped_images and state.is_world_process_zero:
            times = sorted(journal.skipped_images.items(), key=lambda item: -item[1])
            lines = [f"{count} x {sentence}" for sentence, count in times]
            total = sum(journal.skipped_images.values())
            logger.warning("\n  ".join([f"Images that could not be read were replaced, {total} in all:", *lines]))


class Weights(OfTrainer):
    """Writes teacher and student into the output directory after training."""

    def on_train_end(self, args, state, control, **kwargs):
        """The best weights if they were loaded. A network that transformers cannot save is only in checkpoints."""
        if isinstance(self.trainer.networks()["student"], PushToHubMixin):  # of transformers or peft
            self.trainer.save_model(_internal_call=True)


class Report(OfTrainer):
    """Writes card and pictures beside the weights after training (`report`)."""

    def on_train_end(self, args, state, control, **kwargs):
        """Of the best weights if they were loaded."""
        self.trainer.create_model_card()


class Pushes(OfTrainer):
    """Publishes checkpoints in the background as `hub_strategy` says."""

    def on_save(self, args, state, control, **kwargs):
        """When the checkpoint is complete."""
        push_checkpoint(self.trainer, self.trainer._get_output_dir(trial=self.trainer._trial))

    def on_train_end(self, args, state, control, **kwargs):
        """Wait for the last one."""
        self.trainer._finish_current_push()
        tell_failures(self.trainer)


class ShortRun(OfTrainer):
    """Warns of what is longer than the run."""

    def on_train_begin(self, args, state, control, **kwargs):
        """When the number of steps is known."""
        if state.is_world_process_zero:
            for fault, option, value in longer_than_run(args, self.trainer.settings, state.max_steps):
                logger.warning(f"T{fault[1:]}; give {option}={value}.")


class PaddingNotice(OfTrainer):
    """Says once how much of the unlabeled crops is padding, which is neither labeled nor learned from."""

    def on_step_end(self, args, state, control, **kwargs):
        """After the first step."""
        valid = self.trainer.group[0].get("unlabeled_valid") if state.global_step == 1 else None
        if valid is not None and state.is_world_process_zero and not valid.all():
            logger.warning(
                f"{1 - valid.float().mean().item():.0%} of the pixels of the first unlabeled crops are padding: the "
                "images are smaller than the crop. Padding is ignored, but still costs time; use a smaller crop_size."
            )


def callbacks_of(trainer) -> list[TrainerCallback]:
    """What an `FSTTrainer` starts with."""
    kinds = [EpochOfDraws, TeacherAfterStep, Health, ShortRun, PaddingNotice, Skipped, Pushes, Weights]
    kinds += [Report] * trainer.settings.report + [Pictures]
    return [kind(trainer) for kind in kinds]


def watchers_of(trainer, batch: dict) -> list[Watcher]:
    """The callbacks that look at the step that begins with `batch`, removed ones not among them."""
    return [c for c in trainer.callback_handler.callbacks if isinstance(c, Watcher) and c.watch(batch)]
