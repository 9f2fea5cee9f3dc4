"""The teacher made of a student, both made ready for training and evaluation, and the image processor that is saved with
them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import logging

from hf_fst.data.agreement import stated, views_of, words_of
from hf_fst.data.transforms import Normalization
from hf_fst.errors import UserError
from hf_fst.method.objectives import OBJECTIVES, Objective
from hf_fst.method.teacher import EMATeacher
from hf_fst.models.auxiliary import allow_single_values, freeze_unused, return_auxiliary_logits
from hf_fst.models.features import return_features
from hf_fst.models.loading import default_processor, load, saved_processor
from hf_fst.publishing.facts import hub_id
from hf_fst.training.adapters import is_adapted, keep_base_statistics
from hf_fst.training.refusals import look_at_first_output
from hf_fst.training.sharding import sharding_alike, synchronize_batchnorm

logger = logging.get_logger(__name__)

HALF = (torch.float16, torch.bfloat16)


def processor_for(model: nn.Module | None, processor: Any, train_dataset: Any) -> tuple[Any, Normalization]:
    """The image processor of a run, and what it does to colors.

    Where none is given it has the numbers that the transforms of the training images were given; else it is the one
    saved where the model was loaded from; else one with the numbers of the backbone (`default_processor`), which images
    of one's own dataset need not be normalized with: a warning.

    Raises:
        UserError: the saved one cannot be fetched or read, or cannot be followed (`Normalization.of`).
    """
    if processor is not None:
        return processor, Normalization.of(processor)
    config = model.config if isinstance(getattr(model, "config", None), PreTrainedConfig) else None
    numbers = next(iter(stated(train_dataset)), None)
    if numbers is not None:
        processor = default_processor()
        processor.image_mean, processor.image_std = numbers.mean, numbers.std
    elif config is not None:
        source = config.name_or_path
        # a name need not be an id on the Hub; if a network was loaded from it, it is in the cache
        known = hub_id(source) and isinstance(try_to_load_from_cache(source, "config.json"), str)
        processor = saved_processor(source) if known or (source and Path(source).is_dir()) else None
    if processor is None:
        processor = default_processor(config)
        if train_dataset is not None and not any(views_of(train_dataset)):
            logger.warning(
                f"The model is saved with an image processor of {words_of(Normalization.of(processor))}, since none is "
                "given and your dataset normalizes by itself; if by other numbers, give processing_class with these."
            )
    return processor, Normalization.of(processor)


def student_of(
    model: nn.Module | str | None, processor: Any, id2label: dict[int, str] | None, train_dataset: Any, args
) -> tuple[nn.Module | None, Any, Normalization]:
    """The network that a trainer was given, loaded if by name and with float32 weights; its processor; see there.

    Raises:
        UserError: there is no such network (`load`), it is a class, or as `processor_for`.
    """
    if isinstance(model, type):
        raise UserError(
            f"model is the class {model.__name__}; give a model of it, as {model.__name__}.from_pretrained(...)."
        )
    if isinstance(model, str):
        model, processor = load(model, processor=processor, id2label=id2label)
    return master_weights(model, args), *processor_for(model, processor, train_dataset)


def master_weights(model: nn.Module | None, args) -> nn.Module | None:
    """Makes half-precision weights float32, in place: what a step adds to them would be lost in their rounding.

    The frozen base under adapters stays as it is where mixed precision computes with it.
    """
    frozen_may_stay = model is not None and is_adapted(model) and (args.bf16 or args.fp16)
    tensors = [] if model is None else [*model.parameters(), *([] if frozen_may_stay else model.buffers())]
    halves = [t for t in tensors if t.dtype in HALF and (t.requires_grad or not frozen_may_stay)]
    if halves:
        logger.warning_once(
            f"The weights of the model are {str(halves[0].dtype).removeprefix('torch.')}; they are trained and saved in "
            "float32. Set bf16 to compute in half precision."
        )
    for tensor in halves:
        tensor.data = tensor.data.float()
    return model


def teacher_of(student: nn.Module, settings, args, objective: Objective) -> EMATeacher:
    """A copy of a student that is not yet wrapped or sharded: afterwards none could be made.

    Args:
        student: the network; with `sync_batchnorm` its BatchNorm layers are replaced, and from now on it returns the
            logits of its auxiliary heads, and its features where the objective needs them.
        settings: those in force.
        args: the `FSTConfig`, for device and processes.
        objective: what it will learn.
    """
    if args.fp16_full_eval or args.bf16_full_eval:
        student.to(args.device)  # which `Trainer` leaves to the evaluation
    synchronize_batchnorm(student, args)
    allow_single_values(student)
    return_auxiliary_logits(student)
    if objective.needs_features:
        return_features(student)
    teacher = EMATeacher(student, settings.teacher_buffers, share_frozen=is_adapted(student))
    if settings.objective in OBJECTIVES:  # one of the user's own may learn from other outputs
        look_at_first_output([student, teacher.model])
    return teacher


def counted_once(operations: Callable[[object, dict], int]) -> Callable[[object, dict], int]:
    """`Trainer.floating_point_ops`, which walks through the whole network at every batch, once a size of batch."""
    counted: WeakKeyDictionary = WeakKeyDictionary()

    def floating_point_ops(trainer, inputs: dict) -> int:
        sizes = counted.setdefault(trainer.model, {})
        size = inputs["pixel_values"].numel()
        if size not in sizes:
            sizes[size] = operations(trainer, inputs)
        return sizes[size]

    return floating_point_ops


def training_mode(model: nn.Module, student: nn.Module) -> None:
    """Put the student, which the training loop holds as `model` (wrapped), in training mode, but not a frozen base."""
    model.train()
    keep_base_statistics(student)


@contextmanager
def wrapped_alike(
    accelerator: Accelerator, student: nn.Module, teacher: EMATeacher, pairs: Sequence[dict], objective: Objective
) -> Iterator[None]:
    """Inside, accelerate wraps the student: what DDP would wait for is frozen, FSDP2 shards the teacher as well. Where it
    compiles the student, the teacher's passes are compiled alike.

    Args:
        accelerator: of the run.
        student: not yet wrapped.
        teacher: its teacher.
        pairs: items with `pixel_values` (3,H,W); the first shows which weights the outputs depend on.
        objective: says what else the student is given besides images.
    """
    if (ddp := accelerator.ddp_handler) is not None and not ddp.find_unused_parameters:
        freeze_unused(student, pairs[0]["pixel_values"], **objective.forward_options)
    with sharding_alike(accelerator, student, teacher.model):
        yield
    if (compiler := accelerator.state.dynamo_plugin).backend != DynamoBackend.NO:
        teacher.faster = torch.compile(teacher.model, **compiler.to_kwargs())
