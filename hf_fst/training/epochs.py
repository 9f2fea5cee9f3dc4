"""Which epoch the draws belong to."""

from __future__ import annotations

import math

from transformers import TrainerCallback


class EpochOfDraws(TrainerCallback):
    """Tells the sampler of an `FSTTrainer` which epoch its draws belong to.

    Trainer and accelerate reach the sampler themselves but in one case: where several processes resume inside an epoch,
    the batches to skip are wrapped once more than they look into, and the epoch would start again from its first draws
    of epoch 0.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Before the first batch of an epoch."""
        self.trainer.draws.set_epoch(math.floor(state.epoch or 0))
