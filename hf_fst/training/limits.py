"""Numbers and names in `TrainingArguments` with which no run could go on, though torch would say so much later."""

from __future__ import annotations

from accelerate.utils import DynamoBackend
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from hf_fst.errors import UserError, did_you_mean
from hf_fst.method.options import Option

MOST = 1000  # virtual steps in a step, or unlabeled images for a labeled one
# trackers of which transformers can tell whether they are installed
CHECKED = (
    *("comet_ml", "mlflow", "neptune", "tensorboard", "trackio", "wandb"),
    *("codecarbon", "clearml", "dagshub", "swanlab"),
)
# of `TrainingArguments`: least and most of what would be an error of torch's, or of numpy's, much later
LIMITS = {
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32 - 1)),
    **dict.fromkeys(("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm"), (0, None)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (0, 1)),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (1, 65536)),
    **{"gradient_accumulation_steps": (1, 65536), "dataloader_num_workers": (0, 1024)},
}


def refuse_impossible(args: TrainingArguments, hints: dict[str, object]) -> None:
    """Refuse numbers out of range and names of nothing.

    Args:
        args: an `FSTConfig`.
        hints: the type of each of its fields.

    Raises:
        UserError: one sentence with the name, the value and what is accepted.
    """
    for name, (low, high) in LIMITS.items():
        Option(name, low=low, high=high).check(name, getattr(args, name), hints[name])
    for name in ("lookahead_steps", "lookahead_students", "unlabeled_per_labeled"):
        if (getattr(args, name) or 0) > MOST:
            raise UserError(f"{name} is {getattr(args, name)}; use {MOST} at most, or a step would never end.")
    if args.remove_unused_columns:
        raise UserError("remove_unused_columns is true, which removes the unlabeled images too; leave it at false.")
    given = args.report_to or []
    known = (*INTEGRATION_TO_CALLBACK, "all", "none")
    for name in [given] if isinstance(given, str) else given:
        if name not in known:
            hint = did_you_mean(str(name), known) or f"use one of {', '.join(known)}."
            raise UserError(f"report_to is {name!r}; {hint}")
        if name in CHECKED and name not in get_available_reporting_integrations():
            raise UserError(f"report_to is {name!r}, which is not installed; install it or leave it out.")
    _refuse_compilers(args)


def _refuse_compilers(args: TrainingArguments) -> None:
    backends = [backend.lower() for backend in DynamoBackend.__members__]
    if args.torch_compile_backend is not None and args.torch_compile_backend.lower() not in backends:
        raise UserError(f"torch_compile_backend is {args.torch_compile_backend!r}; use one of {', '.join(backends)}.")
    if args.torch_compile_mode is not None:
        from torch._inductor import list_mode_options  # takes long to import

        modes = ["default", *(mode for mode in list_mode_options() if mode != "default")]
        if args.torch_compile_mode not in modes:
            raise UserError(f"torch_compile_mode is {args.torch_compile_mode!r}; use one of {', '.join(modes)}.")
