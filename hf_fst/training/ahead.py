"""What the steps of a run share, such as batches for virtual steps on other images than those of the real step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers.utils import logging

from hf_fst.data.pairing import AheadSampler, Pairs
from hf_fst.errors import RunError, UserError
from hf_fst.method.capture import Capture
from hf_fst.method.lookahead import Context, backward
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.training.batches import look_at_first
from hf_fst.training.settings import look_ahead_of

logger = logging.get_logger(__name__)


class AheadBatches:
    """Groups of micro-batches drawn by (seed, step, k, position), never from the epoch's iterator.

    Separate workers load them ahead of time; a resumed run continues with the right ones.

    Args:
        pairs: what is drawn from.
        draws: the arguments of `AheadSampler`, except for step and count.
        loading: those of `DataLoader`.
    """

    def __init__(self, pairs: Pairs, draws: dict[str, int], **loading):
        self.pairs, self.draws, self.loading = pairs, draws, loading
        self._next: tuple[int, int] | None = None
        self._batches: Iterator[dict] = iter(())

    def groups(self, step: int, count: int, size: int) -> Iterator[list[dict]]:
        """`count` groups of `size` micro-batches for an optimizer step; `size` is smaller for a short last group."""
        if count == 0:  # an endless sampler of nothing would keep its workers waiting
            return
        if self._next != (step, count):
            sampler = AheadSampler(step, count, **self.draws)
            # starting workers draws a seed, which must not come from the run's own noise
            generator = torch.Generator().manual_seed(0)
            loader = DataLoader(self.pairs, batch_sampler=sampler, generator=generator, **self.loading)
            self._batches = iter(loader)
        self._next = None
        for _ in range(count):
            yield [next(self._batches) for _ in range(self.draws["micro_batches"])][:size]
        self._next = (step + self.draws["every"], count)


def pairs_of(trainer) -> Pairs:
    """The pairs of labeled and unlabeled images that a trainer draws."""
    args, objective = trainer.args, trainer.learning_objective
    return Pairs(
        trainer.train_dataset,
        trainer.unlabeled_dataset if objective.needs_unlabeled else None,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        unlabeled_per_labeled=trainer.settings.unlabeled_per_labeled,
        # whole groups: no process gets fewer images than another
        multiple_of=trainer.get_total_train_batch_size(args),
        num_labels=trainer._num_labels(),
        partner=objective.needs_partner,
        on_bad_image=trainer.settings.on_bad_image,
    )


def ahead_of(trainer) -> AheadBatches:
    """The batches for virtual steps of a trainer whose pairs are made."""
    args = trainer.args
    draws = {
        "micro_batches": args.gradient_accumulation_steps,
        "batch_size": trainer._train_batch_size,
        "process_index": args.process_index,
        "num_processes": args.world_size,
        "every": trainer.settings.lookahead_every or 1,
    }
    return AheadBatches(
        trainer.pairs,
        draws,
        collate_fn=trainer.data_collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
    )


def context_of(trainer) -> Context:
    """What all steps of a run share, with an objective that has seen the images it begins with."""
    begin(trainer)
    context = Context(
        trainer.teacher,
        trainer.learning_objective,
        trainer.optimizer,
        trainer.accelerator,
        look_ahead_of(trainer.settings, trainer.args.max_grad_norm),
        trainer.journal,
        lambda count, size: trainer.lookahead_groups(count, size),
        trainer.state.max_steps,
    )
    if trainer.settings.capture:
        # a user's own objective may behave differently at later steps
        known = context.objective.replayable and type(context.objective) in OBJECTIVES.values()
        if not known:
            name = type(context.objective).__name__
            logger.warning(f"capture: {name} is not replayed as a CUDA graph; only the passes of the teacher are.")
        student = partial(backward, context, trainer.model_wrapped) if known else None
        context.capture = Capture(trainer.teacher, student)
    return context


def begin(trainer) -> None:
    """Show the objective unlabeled images before the first step of a run, where it asks for them.

    They are drawn as for virtual steps after the last one, so the draws of the run do not change.
    """
    objective, args = trainer.learning_objective, trainer.args
    if not objective.begin_passes or objective.memory:
        return
    micro_batches = args.gradient_accumulation_steps
    images = trainer.get_total_train_batch_size(args) * trainer.settings.unlabeled_per_labeled
    count = math.ceil(objective.begin_passes * len(trainer.unlabeled_dataset) / images)
    groups = trainer.ahead.groups(trainer.state.max_steps, count, micro_batches)

    def batches() -> Iterator[dict]:
        for group in groups:
            trainer.journal.note_skipped_images(group)
            yield from map(trainer._prepare_inputs, group)

    with trainer.accelerator.autocast():
        objective.begin(batches(), trainer.accelerator)


def received(trainer, group: list[dict]) -> list[dict]:
    """The micro-batches of a group; what was skipped is noted, and the first group of a training is looked at closely.

    Raises:
        UserError: images of several sizes in a batch, or what `look_at_first` refuses.
    """
    trainer.journal.note_skipped_images(group)
    for batch in group:
        for key, values in batch.items():
            if isinstance(values, list):
                sizes = " and ".join(dict.fromkeys(str(tuple(value.shape)) for value in values))
                raise UserError(
                    f"The {key} of a batch have the shapes {sizes}, but one size is needed; crop and pad all images to "
                    "it, as hf_fst.data.transforms.training(crop) does."
                )
    if trainer.context is None and group:  # no step was made yet
        look_at_first(group[0], trainer.model.config)
    return group


def in_precision_of(model: nn.Module, data):
    """Double precision rounded to single, but for a model that has it; anything else as it is."""
    if isinstance(data, torch.Tensor) and data.dtype == torch.float64:
        return data if next(model.parameters()).dtype == torch.float64 else data.float()
    return data


@contextmanager
def dead_workers(place: Callable[[], str]) -> Iterator[None]:
    """A loader's worker that dies inside ends the block with one sentence.

    Args:
        place: says where the run is.

    Raises:
        RunError: a worker was killed, usually because memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        reason = str(error).split(". ")[0].strip().rstrip(".")
        raise RunError(
            f"A process that loads images died after {place()} ({reason}); lower dataloader_num_workers or free memory, "
            "then resume."
        ) from error
