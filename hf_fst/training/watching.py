"""Callbacks that work on an `FSTTrainer`, and those that look at its steps."""

from __future__ import annotations

from torch import nn
from transformers import TrainerCallback

from hf_fst.method.teacher import EMATeacher


class OfTrainer(TrainerCallback):
    """A callback that works on an `FSTTrainer`."""

    def __init__(self, trainer):
        self.trainer = trainer


class Watcher(OfTrainer):
    """A callback that looks at some steps, at the first micro-batch of their groups.

    Nothing it does may change the run. `before` is called with the teacher as the step begins and where it follows the
    present, so that the last call before a virtual step sees φ'.
    """

    def watch(self, batch: dict) -> bool:
        """Whether it looks at the step that begins with `batch`; the same answer on all processes."""
        raise NotImplementedError

    def before(self, teacher: EMATeacher) -> None:
        """Look at the teacher before it looks ahead."""
        raise NotImplementedError

    def after(self, student: nn.Module, batch: dict) -> None:
        """Look at the student and at the micro-batch as the objective prepared it with φ_{t+1}."""
        raise NotImplementedError
