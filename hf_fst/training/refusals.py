"""Refuses what cannot be trained, in one sentence and before anything starts."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator, Sequence

import datasets
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import Trainer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_utils import IntervalStrategy
from transformers.training_args import ParallelMode
from transformers.utils import ModelOutput

from hf_fst.data.items import tidy
from hf_fst.data.labels import IGNORED
from hf_fst.data.pairing import seeded
from hf_fst.errors import UserError, did_you_mean
from hf_fst.evaluation.counting import LABEL_FREE, SCORES, StreamingScores, refuse_no_labels
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.publishing.facts import hub_id
from hf_fst.training.adapters import is_adapted
from hf_fst.training.config import NO_DEEPSPEED
from hf_fst.training.settings import Settings
from hf_fst.training.sharding import refuse_sharding

SEGMENTATION = "give a model for semantic segmentation, such as one of AutoModelForSemanticSegmentation"
OPTIMIZERS = "use 'adamw_torch', 'sgd' or another optimizer that updates weights only in step()"
STOCK_LOSS = Trainer.compute_loss  # kept in case it is patched
# arguments of `Trainer` that are checked here
JUDGED = (
    *("optimizers", "optimizer_cls_and_kwargs", "compute_loss_func"),
    *("compute_metrics", "preprocess_logits_for_metrics"),
)


def refuse_settings(
    args,
    optimizers=(None, None),
    optimizer_cls_and_kwargs=None,
    compute_loss_func=None,
    compute_metrics=None,
    preprocess_logits_for_metrics=None,
) -> None:
    """Refuse options under which a run would be silently wrong.

    Raises:
        UserError: an optimizer that a look-ahead cannot undo, or an option that an `FSTTrainer` would ignore.
    """
    given = optimizers[0] if optimizer_cls_and_kwargs is None else optimizer_cls_and_kwargs[0]
    kind = given if isinstance(given, type) else type(given)
    name = f"the optimizer is {kind.__name__}" if given is not None else f"optim is {str(args.optim.value)!r}"
    optim = "" if given is not None else str(args.optim.value)
    # by the same signs `Trainer` switches them between training and evaluation weights
    if optim.startswith("schedule_free") or callable(getattr(kind, "train", None)):
        raise UserError(
            f"{name}, which is schedule-free: the weights it trains are not those that are evaluated, so a teacher "
            f"cannot follow them; {OPTIMIZERS}."
        )
    if optim in ("lomo", "adalomo") or optim.endswith("_layerwise") or callable(getattr(kind, "fused_backward", None)):
        raise UserError(
            f"{name}, which updates weights during the backward pass, before the gradient of the group is complete; "
            f"{OPTIMIZERS}."
        )
    if args.label_smoothing_factor:
        raise UserError(
            f"label_smoothing_factor is {args.label_smoothing_factor}, but no objective smooths labels; leave it at 0."
        )
    if args.train_sampling_strategy != "random":
        raise UserError(
            f"train_sampling_strategy is {args.train_sampling_strategy!r}, but pairs are always drawn at random; leave "
            "it at 'random'."
        )
    for option in ("neftune_noise_alpha", "use_liger_kernel"):
        if getattr(args, option):
            raise UserError(f"{option} is {getattr(args, option)}, but it is for language models; leave it out.")
    if args.fsdp and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise UserError(
            "fsdp is given, but there is only one process, so there is nothing to shard over; use `accelerate launch`, "
            "or leave it out."
        )
    if compute_loss_func is not None:
        raise UserError("compute_loss_func is given, but an objective computes the loss; give objective instead.")
    if compute_metrics is None and preprocess_logits_for_metrics is not None:
        raise UserError(
            "preprocess_logits_for_metrics is given without compute_metrics, but the scores of student and teacher do "
            "not use it; give both, or leave it out."
        )
    if compute_metrics is not None and args.batch_eval_metrics:
        if "compute_result" not in inspect.signature(compute_metrics).parameters:
            raise UserError(
                "compute_metrics takes no compute_result, but it is called after every batch, since all label maps may "
                "not fit into memory; give it that argument, true after the last batch, or set batch_eval_metrics=False."
            )


def refuse_own_loss(trainer: Trainer) -> None:
    """Refuse a custom `compute_loss`, in a subclass or set on the trainer, which would never be called.

    Raises:
        UserError: with what to write instead.
    """
    if getattr(trainer.compute_loss, "__func__", None) is not STOCK_LOSS:
        raise UserError(
            f"{type(trainer).__name__} overrides compute_loss, but an objective computes the loss; write a subclass of "
            "hf_fst.objectives.Objective and give it as objective."
        )


def refuse_evaluation(trainer: Trainer) -> None:
    """Refuse evaluations during training that could give no score.

    Raises:
        UserError: no pixel of the evaluated images has a class.
    """
    if _scores_while_training(trainer) and not trainer.compute_metrics.label_free:
        for dataset in _evaluated(trainer).values():
            refuse_blank_labels(dataset, "evaluated", trainer.settings.eval_classes)


def refuse_best_metric(trainer: Trainer) -> None:
    """Refuse to choose the best model by a score that no evaluation computes.

    Raises:
        UserError: `metric_for_best_model` is not a score.
    """
    name = trainer.args.metric_for_best_model
    if name is None or not _scores_while_training(trainer):
        return
    parts, networks = _evaluated(trainer), ["teacher", "student"] if trainer.has_teacher else ["student"]
    scores = [*SCORES, *(f"iou_{name}" for name in trainer.class_names)]
    known = [f"{part}{network}_{score}" for part in parts for network in networks for score in scores]
    known += [f"{part}{LABEL_FREE}" for part in parts]
    if name.removeprefix("eval_") not in known:
        shown = ", ".join(metric for metric in known if metric.endswith(SCORES))
        hint = did_you_mean(name, known, f"use one of {shown}, or the IoU of a class, as {known[len(SCORES)]}.")
        raise UserError(f"metric_for_best_model is {name!r}; {hint}")


def _scores_while_training(trainer: Trainer) -> bool:
    """Whether evaluations during training give our scores; in a search there is no model yet."""
    own_scores = isinstance(trainer.compute_metrics, StreamingScores)
    return trainer.args.eval_strategy != "no" and own_scores and trainer.model is not None


def _evaluated(trainer: Trainer) -> dict[str, Dataset]:
    """The evaluated datasets, by the prefix of the names of their scores."""
    if isinstance(trainer.eval_dataset, dict):
        return {f"{name}_": part for name, part in trainer.eval_dataset.items()}
    return {"": trainer.eval_dataset}


def refuse_blank_labels(dataset: Dataset, what: str, scored: Sequence[int] | None = None) -> None:
    """Refuse images whose labels hold nothing to score. Reads them until it finds a pixel to score.

    Args:
        dataset: items with `labels` (H,W); streams are skipped.
        what: what to call the images in the sentence.
        scored: ids of the classes that the scores are over; None for all.

    Raises:
        UserError: no pixel has one of these classes, or there are no labels.
    """
    if isinstance(dataset, IterableDataset):
        return
    for index in range(len(dataset)):
        with seeded(0):  # a transform may use random numbers, which must not change those of training
            item = tidy(dataset[index], f"item {index} of the {what} images")
        refuse_no_labels(item)
        labels = item["labels"]
        valid = (labels != IGNORED) & (labels != -100) if scored is None else torch.isin(labels, torch.tensor(scored))
        if valid.any():
            return
    wanted, cure = "a class", "is the id map right?"
    if scored is not None:
        wanted, cure = f"one of the classes {', '.join(map(str, scored))}", "give other eval_classes or other images."
    raise UserError(f"No pixel of the {len(dataset)} {what} images has {wanted}, so there is nothing to score; {cure}")


def refuse_datasets(train_dataset, unlabeled_dataset, eval_dataset, eval_strategy: str = "no") -> None:
    """Refuse training datasets without a length, dictionaries of splits, datasets that are not model inputs, and
    evaluations without images.

    Raises:
        UserError: with the name of the dataset and what to do.
    """
    for name, dataset in (("train_dataset", train_dataset), ("unlabeled_dataset", unlabeled_dataset)):
        if isinstance(dataset, IterableDataset | datasets.IterableDataset | Iterator):
            raise UserError(f"{name} is a stream, which cannot be indexed; give a dataset with a length.")
        if isinstance(dataset, dict):
            raise UserError(f"{name} is a dictionary of {', '.join(map(str, dataset))}; give one of these.")
        _refuse_raw(name, dataset)
    if eval_dataset is None and eval_strategy != "no":
        raise UserError(
            f"eval_strategy is {IntervalStrategy(eval_strategy).value!r}, but eval_dataset is missing; give it, or leave "
            "eval_strategy out."
        )
    for dataset in eval_dataset.values() if isinstance(eval_dataset, dict) else (eval_dataset,):
        _refuse_raw("eval_dataset", dataset)


def _refuse_raw(name: str, dataset) -> None:
    is_plain = isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"
    if is_plain and "pixel_values" not in dataset.column_names:
        make = "Evaluation()" if name == "eval_dataset" else "training(512)"
        raise UserError(
            f"{name} is a datasets.Dataset with the columns {', '.join(dataset.column_names)}, but pixel_values are "
            f"expected; wrap it: hf_fst.data.View(dataset, hf_fst.data.transforms.{make})."
        )


def refuse_launch(trainer: Trainer) -> None:
    """Refuse ways to launch a training that would be silently wrong.

    Raises:
        UserError: several GPUs in one process, DeepSpeed, FSDP that `hf_fst.training.sharding` does not support,
            adapters whose base is not on the Hub but that are to be pushed, or as `refuse_own_loss`.
    """
    refuse_own_loss(trainer)
    refuse_best_metric(trainer)
    if trainer.args.gradient_checkpointing and not _can_checkpoint(trainer.model):
        raise UserError(
            f"gradient_checkpointing is true, but {type(trainer.model).__name__} does not support it; leave it out, and "
            "to save memory use smaller crops or batches (with more gradient_accumulation_steps)."
        )
    if trainer.args.n_gpu > 1:
        raise UserError(
            f"This process sees {trainer.args.n_gpu} GPUs; start one process for each with `accelerate launch`, or "
            "select one with CUDA_VISIBLE_DEVICES=0."
        )
    if trainer.is_deepspeed_enabled:
        raise UserError(NO_DEEPSPEED)
    if trainer.args.push_to_hub and is_adapted(trainer.model):
        base = trainer.model.active_peft_config.base_model_name_or_path
        if hub_id(base) is None:
            raise UserError(
                f"push_to_hub publishes the adapter, which needs its base network, but {base!r} is not on the Hub; "
                "publish that first and load it by its Hub id, or leave push_to_hub out."
            )
    refuse_sharding(trainer.accelerator, trainer.model)
    if trainer.settings.capture:
        refuse_capture(trainer.args)


def refuse_capture(args) -> None:
    """Refuse to capture CUDA graphs where that is impossible or untested.

    Raises:
        UserError: with what to leave out.
    """
    reasons = {
        f"the device is {args.device.type!r}": args.device.type != "cuda",
        f"there are {args.world_size} processes": args.world_size > 1,
        "fp16 is true, with a loss scale that changes from step to step": args.fp16,
        "gradient_checkpointing is true": args.gradient_checkpointing,
        "torch_compile is true": args.torch_compile,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(
                f"capture replays CUDA graphs in one process, in float32 or bf16, but {reason}; leave one of them out."
            )


def _can_checkpoint(model: nn.Module) -> bool:
    layers = any(
        isinstance(m, GradientCheckpointingLayer) or "gradient_checkpointing" in vars(m) for m in model.modules()
    )
    return layers and bool(getattr(model, "supports_gradient_checkpointing", False))


def refuse_objective(
    objective, name: str, network: nn.Module, unlabeled_is_missing: bool, compiled: bool = False
) -> None:
    """Refuse an objective that cannot train the network, or that needs unlabeled images if there are none.

    Raises:
        UserError: with what to do.
    """
    objective.fits(network)
    if objective.perturbs_features and compiled:
        raise UserError(
            f"objective {name!r} perturbs features inside the network, which a compiled network would bypass; leave out "
            "torch_compile."
        )
    if objective.needs_unlabeled and unlabeled_is_missing:
        raise UserError(
            f"objective {name!r} learns from unlabeled images but unlabeled_dataset is missing; give it, "
            "or use rule 'supervised'."
        )


def refuse_model(model: nn.Module, settings: Settings) -> None:
    """Refuse a model that declares no per-pixel classes; one that declares nothing is checked at its first use.

    Args:
        model: the student, unwrapped.
        settings: those in force.

    Raises:
        UserError: no `config.num_labels`, only one class, a class of `eval_classes` that it does not have, an ignored
            label other than ours, or a declared output without `logits`.
    """
    name = type(model).__name__
    if getattr(getattr(model, "config", None), "num_labels", None) is None:
        raise UserError(f"The model is a {name} without config.num_labels; {SEGMENTATION}.")
    if model.config.num_labels < 2 and settings.objective in OBJECTIVES:  # one of the user's own may learn from one
        raise UserError(
            f"The {name} has only one class, so there is nothing to learn; give it two, as num_labels=2 with "
            "id2label={0: 'background', 1: ...}."
        )
    if settings.eval_classes is not None and max(settings.eval_classes) >= model.config.num_labels:
        raise UserError(
            f"eval_classes is {settings.eval_classes}, but the model has the classes 0 to {model.config.num_labels - 1}."
        )
    own = vars(model.config)
    for key in ("semantic_loss_ignore_index", "loss_ignore_index"):
        if own.get(key, IGNORED) not in (IGNORED, -100):
            raise UserError(
                f"{key} of the {name} is {own[key]}, but hf_fst ignores labels of {IGNORED} and -100; set it to "
                f"{IGNORED}, and map the ids to ignore, as LabelMap(id_map=...) does."
            )
    try:
        declared = typing.get_type_hints(type(model).forward).get("return")
    except NameError:  # the annotation is for type checkers only
        return
    outputs = [kind for kind in (*typing.get_args(declared), declared) if _is_output(kind)]
    if outputs and not any("logits" in {field.name for field in dataclasses.fields(kind)} for kind in outputs):
        fields = {field.name for field in dataclasses.fields(outputs[0])}
        wrapped = "wrap it: hf_fst.models.UniversalSegmenter.wrap(model)"
        cure = wrapped if {"class_queries_logits", "masks_queries_logits"} <= fields else SEGMENTATION
        raise UserError(f"The output of {name} is a {outputs[0].__name__}, which has no logits; {cure}.")


def _is_output(kind) -> bool:
    return isinstance(kind, type) and issubclass(kind, ModelOutput) and dataclasses.is_dataclass(kind)


def look_at_first_output(networks: list[nn.Module]) -> None:
    """Check, when one of `networks` is used for the first time, that it returns per-pixel class `logits`.

    Raises (then):
        UserError: it does not.
    """
    handles = []

    def look(network, inputs, output) -> None:
        name, classes = type(network).__name__, network.config.num_labels
        logits = getattr(output, "logits", None)
        if logits is None:
            raise UserError(f"The output of {name} is a {type(output).__name__} without logits; {SEGMENTATION}.")
        if logits.ndim != 4 or logits.shape[1] != classes:
            raise UserError(
                f"The logits of {name} have shape {tuple(logits.shape)}, but (images, {classes}, height, width) is "
                f"needed; {SEGMENTATION}."
            )
        for handle in handles:
            handle.remove()

    handles += [network.register_forward_hook(look) for network in networks]
