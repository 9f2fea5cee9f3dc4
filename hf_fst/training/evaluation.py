"""How a trainer evaluates: our scores and the choice of the best weights, or logits as `Trainer` returns them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PredictionOutput, SchedulerType

from hf_fst.errors import UserError
from hf_fst.evaluation.counting import StreamingScores
from hf_fst.training.sharding import gathered


def choose_best(args, has_teacher: bool, own_scores: bool) -> None:
    """Chooses the best weights by mIoU by default; by the loss, as `TrainingArguments` does, with the user's own metrics.

    Args:
        args: the trainer's own copy, which is changed.
        has_teacher: whether the teacher is what is saved.
        own_scores: whether evaluations give the scores of this package, for all of which higher is better.

    Raises:
        UserError: the options ask for the worst weights.
    """
    name = args.metric_for_best_model or ""
    if own_scores and args.greater_is_better is False and not name.endswith("loss"):  # which is refused as a name
        raise UserError(
            "greater_is_better is False, but higher is better for every score of an evaluation; leave it out."
        )
    plateau = args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
    if not name and (args.load_best_model_at_end or args.save_strategy == "best" or plateau):
        network = "teacher" if has_teacher else "student"
        args.metric_for_best_model = f"{network}_mean_iou" if own_scores else "loss"
        args.greater_is_better = own_scores if args.greater_is_better is None else args.greater_is_better


def scores_of(trainer, best: str | None) -> StreamingScores:
    """The scores of a trainer's networks, the best of which are chosen by the metric `best`."""
    return StreamingScores(
        lambda: (list(trainer.networks()), trainer.class_names), trainer.settings.eval_classes, best
    )


@contextmanager
def evaluating(trainer) -> Iterator[None]:
    """Inside, sharded networks are whole.

    With `fp16_full_eval` or `bf16_full_eval` weights have that precision, except during training, as in `Trainer`.
    """
    args, networks = trainer.args, list(trainer.networks().values())
    dtype = torch.float16 if args.fp16_full_eval else torch.bfloat16 if args.bf16_full_eval else None
    with gathered(trainer.accelerator, networks):
        if dtype is None or trainer.is_in_train:
            yield
            return
        weights = [(weight, weight.data) for network in networks for weight in network.parameters()]
        modules = {module for network in networks for module in network.modules()}
        buffers = [(module, name, buffer) for module in modules for name, buffer in module._buffers.items()]
        try:
            for network in networks:
                network.to(dtype)
            yield
        finally:
            for weight, kept in weights:
                weight.data = kept
            for module, name, buffer in buffers:
                module._buffers[name] = buffer


def of_any_size(step: Callable[[nn.Module, dict], tuple], network: nn.Module, inputs: dict) -> tuple:
    """Loss, logits and labels of a batch, in the precision of the network; in lists where the sizes of images differ.

    Args:
        step: takes the network and images of one size, and returns the three.
        network: the network.
        inputs: `pixel_values` (B,3,H,W), or a list of (3,H,W); other entries likewise.
    """
    inputs = {key: value for key, value in inputs.items() if key != "valid"}  # which networks do not take
    pixels, dtype = inputs["pixel_values"], next(network.parameters()).dtype
    if isinstance(pixels, torch.Tensor):
        return step(network, inputs | {"pixel_values": pixels.to(dtype)})
    singles = [{key: value[i][None] for key, value in inputs.items()} for i in range(len(pixels))]
    results = [of_any_size(step, network, single) for single in singles]
    losses, logits, labels = zip(*results, strict=True)
    loss = None if losses[0] is None else torch.stack(losses).mean()
    return loss, _in_lists(logits), _in_lists(labels)


def _in_lists(images: tuple) -> list | tuple | dict | None:
    """The results of several images: a list, or a list for each output if there are several (a tuple)."""
    if images[0] is None:
        return None
    if isinstance(images[0], tuple):
        return tuple(_in_lists(output) for output in zip(*images, strict=True))
    if isinstance(images[0], Mapping):
        return {key: _in_lists(tuple(image[key] for image in images)) for key in images[0]}
    return list(images)


@contextmanager
def unscored(trainer: Trainer) -> Iterator[Callable[[PredictionOutput], PredictionOutput]]:
    """Inside, a trainer returns logits instead of scores, batch by batch; yields a function that joins them if wanted."""
    kept = trainer.compute_metrics, trainer.args.eval_do_concat_batches
    trainer.compute_metrics, trainer.args.eval_do_concat_batches = None, False
    try:
        yield lambda found: PredictionOutput(*map(together, found[:2]), found.metrics) if kept[1] else found
    finally:
        trainer.compute_metrics, trainer.args.eval_do_concat_batches = kept


def together(batches: list | None) -> np.ndarray | tuple | dict | None:
    """Results of batches as one array (N,...); an array (N,) of arrays where the sizes of images differ."""
    if batches is None:
        return None
    if isinstance(batches[0], tuple):
        return tuple(together(output) for output in zip(*batches, strict=True))
    if isinstance(batches[0], Mapping):
        return {key: together([batch[key] for batch in batches]) for key in batches[0]}
    arrays = [array for batch in batches for array in (batch if isinstance(batch, list) else [batch])]
    if len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    images = [image for array in arrays for image in array]
    found = np.empty(len(images), dtype=object)
    for i, image in enumerate(images):
        found[i] = image
    return found
