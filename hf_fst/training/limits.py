"""Refuses values of `TrainingArguments` on which torch would only fail much later."""

from __future__ import annotations

import copy
import dataclasses
from enum import Enum

import torch
from accelerate.utils import DynamoBackend
from transformers import TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.trainer_pt_utils import AcceleratorConfig

from hf_fst.errors import UserError, did_you_mean, in_a_line
from hf_fst.kinds import KINDS, alternatives, plain_kinds
from hf_fst.method.options import Option

# trackers that transformers can find out whether they are installed
CHECKED = (
    *("comet_ml", "mlflow", "neptune", "tensorboard", "trackio", "wandb"),
    *("codecarbon", "clearml", "dagshub", "swanlab"),
)
# bounds of `TrainingArguments` that torch or numpy would only report much later
LIMITS = {
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32 - 1)),
    **dict.fromkeys(("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm"), (0, None)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (0, 1)),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (1, 65536)),
    **{"gradient_accumulation_steps": (1, 65536), "dataloader_num_workers": (0, 1024)},
    **dict.fromkeys(("eval_accumulation_steps", "dataloader_prefetch_factor"), (1, None)),
    **dict.fromkeys(("torch_empty_cache_steps", "ddp_bucket_cap_mb"), (1, None)),
    **dict.fromkeys(("eval_delay", "save_total_limit", "warmup_steps"), (0, None)),  # save_total_limit 0: keep all
    "ddp_timeout": (1, 10**9),
}
# accepted types besides those in the annotations of `TrainingArguments`
ALSO = {
    "accelerator_config": (AcceleratorConfig,),
    "fsdp": (bool, list),
}
CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop")


def refuse_impossible(args: TrainingArguments, hints: dict[str, object]) -> None:
    """Raises `UserError` for numbers out of range and unknown names in an `FSTConfig`, whose fields have the types
    `hints`."""
    for field in dataclasses.fields(TrainingArguments):
        choices, value = field.metadata.get("choices"), getattr(args, field.name)
        _refuse_kind(field.name, value, hints[field.name])
        if choices is not None and value is not None and value not in choices:
            raise UserError(f"{field.name} is {value!r}; use one of {', '.join(choices)}.")
    for name, (low, high) in LIMITS.items():
        Option(name, low=low, high=high).check(name, getattr(args, name), hints[name])
    for name in _intervals(args):
        value = getattr(args, name)
        Option(name, above=0).check(name, value, hints[name])
        if name != "num_train_epochs" and value is not None and value > 1 and value != int(value):
            raise UserError(f"{name} is {value}; give a whole number of steps, or a share of all of them below 1.")
    Option("max_steps").check("max_steps", args.max_steps, hints["max_steps"])
    if args.max_steps != -1 and args.max_steps < 1:
        raise UserError(f"max_steps is {args.max_steps}; use 1 or more, or leave it out for num_train_epochs.")
    for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
        if getattr(args, name) and not args.dataloader_num_workers:
            raise UserError(
                f"{name} is {getattr(args, name)}, but no process beside the run reads images; set "
                "dataloader_num_workers too, or leave it out."
            )
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        for key in getattr(args, name) if isinstance(getattr(args, name), dict) else ():
            if key not in CHECKPOINTING:
                raise UserError(f"{name} has {key!r}; it takes {', '.join(CHECKPOINTING)}.")
    if args.output_dir == "":
        raise UserError("output_dir is empty; name a directory.")
    if args.remove_unused_columns:
        raise UserError("remove_unused_columns is true, which removes the unlabeled images too; leave it at false.")
    given = args.report_to or []
    known = (*INTEGRATION_TO_CALLBACK, "all", "none")
    for name in [given] if isinstance(given, str) else given:
        if name not in known:
            raise UserError(f"report_to is {name!r}; {did_you_mean(str(name), known)}")
        if name in CHECKED and name not in get_available_reporting_integrations():
            raise UserError(f"report_to is {name!r}, which is not installed; install it or leave it out.")
    _refuse_compilers(args)


def _refuse_kind(name: str, value: object, annotation: object) -> None:
    """Refuse a value of the wrong type. Raises `UserError`."""
    kinds, plain = alternatives(annotation), plain_kinds(annotation)
    words = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)), None)
    if words is not None:
        known = [member.value for member in words]
        if not isinstance(value, str) or value not in known:
            raise UserError(f"{name} is {value!r}; {did_you_mean(str(value), known)}")
    elif value is not None and not {*plain} & {*KINDS} and not isinstance(value, tuple(plain)):
        raise UserError(f"{name} is {value!r}; give {' or '.join(kind.__name__ for kind in plain)}.")
    if dict in plain and name.endswith("kwargs") and isinstance(value, str) and not value.startswith("{"):
        raise UserError(f"{name} is {value!r}; give a mapping of names and values.")
    is_number = isinstance(value, int) and value in (0, 1) and bool in kinds  # as `bf16=1`
    if {*plain} <= {*KINDS} and not (is_number or isinstance(value, ALSO.get(name, ()))):
        Option(name).check(name, value, annotation)


def _intervals(args: TrainingArguments) -> list[str]:
    """The numbers of steps and epochs that are in force."""
    strategies = {"logging": args.logging_strategy, "save": args.save_strategy, "eval": args.eval_strategy}
    names = [f"{name}_steps" for name, strategy in strategies.items() if strategy == "steps"]
    return names if args.max_steps > 0 else [*names, "num_train_epochs"]


def refuse_optimizer(args: TrainingArguments) -> None:
    """Raises `UserError` for an optimizer or a schedule that cannot be made, by making both for one number. An
    optimizer that is not installed is reported where it is used."""
    from transformers import Trainer  # takes long to import

    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    given = f"optim is {str(args.optim.value)!r}" + (f" and optim_args {args.optim_args!r}" if args.optim_args else "")
    if args.optim_target_modules is None:
        try:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
            optimizer = kind([weight], **options)
            pairs = args.optim_args.split(",") if args.optim_args else []
            for i, pair in enumerate(pairs):
                fewer = copy.copy(args)
                fewer.optim_args = ",".join(pairs[:i] + pairs[i + 1 :])
                if Trainer.get_optimizer_cls_and_kwargs(fewer)[1] == options:
                    raise UserError(f"{given}, of which {pair.strip()!r} changes nothing; leave it out.")
        except UserError:
            raise
        except ImportError:
            pass
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{given}, which cannot be made ({in_a_line(error)}); correct it.") from error
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 0, 100, args.lr_scheduler_kwargs)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"lr_scheduler_type is {str(args.lr_scheduler_type.value)!r} and lr_scheduler_kwargs "
            f"{args.lr_scheduler_kwargs!r}, with which no schedule can be made ({in_a_line(error)}); correct either."
        ) from error


def _refuse_compilers(args: TrainingArguments) -> None:
    backends = [backend.lower() for backend in DynamoBackend.__members__]
    if args.torch_compile_backend is not None and args.torch_compile_backend.lower() not in backends:
        raise UserError(f"torch_compile_backend is {args.torch_compile_backend!r}; use one of {', '.join(backends)}.")
    if args.torch_compile_mode is not None:
        from torch._inductor import list_mode_options  # takes long to import

        modes = ["default", *(mode for mode in list_mode_options() if mode != "default")]
        if args.torch_compile_mode not in modes:
            raise UserError(f"torch_compile_mode is {args.torch_compile_mode!r}; use one of {', '.join(modes)}.")
