"""Parameter groups and learning-rate schedule of the paper's recipes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hf_fst.errors import UserError


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    head_lr_multiplier: float = 10.0,
    no_decay: Sequence[str] = ("norm",),
    heads: Sequence[str] = ("head",),
) -> list[dict]:
    """Groups for an optimizer: backbone, backbone without decay, and heads at `head_lr_multiplier` times the rate.

    A parameter belongs to the heads if its name contains one of `heads`; these decay, norms and biases included. Of the
    others, those whose name contains one of `no_decay` do not decay. Frozen parameters are in no group, and a group
    without parameters is left out. Each group has `name`, `params`, `lr` and `weight_decay`.

    The paper's domain adaptation recipes: AdamW, lr 6e-5, weight decay 0.01 and the defaults here, but `no_decay=()` for
    BEiT, whose layer norms decay in the authors' runs. Its semi-supervised recipes: SGD, `no_decay=()`.
    """
    groups = {
        "backbone": {"lr": lr, "weight_decay": weight_decay},
        "backbone_no_decay": {"lr": lr, "weight_decay": 0.0},
        "head": {"lr": lr * head_lr_multiplier, "weight_decay": weight_decay},
    }
    members: dict[str, list] = {name: [] for name in groups}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if any(part in name for part in heads):
            members["head"].append(parameter)
        elif any(part in name for part in no_decay):
            members["backbone_no_decay"].append(parameter)
        else:
            members["backbone"].append(parameter)
    return [{"name": name, "params": members[name], **options} for name, options in groups.items() if members[name]]


def poly_factor(
    step: int, num_training_steps: int, power: float = 1.0, warmup_steps: int = 0, warmup_ratio: float = 1e-6
) -> float:
    """Factor of the base rate at `step`, counted from 0.

    (1 - i/T)^power, times 1 - (1 - i/W)(1 - warmup_ratio) while i < W. The decay runs from step 0, through the warm-up;
    transformers' own schedules begin to decay after it.
    """
    factor = max(0.0, 1 - step / num_training_steps) ** power
    if step < warmup_steps:
        factor *= 1 - (1 - step / warmup_steps) * (1 - warmup_ratio)
    return factor


def poly_schedule(
    optimizer: Optimizer, num_training_steps: int, power: float = 1.0, warmup_steps: int = 0
) -> LambdaLR:
    """`poly_factor` as a scheduler; every group keeps its own base rate.

    The paper's domain adaptation recipes: 40000 steps, power 1, 1500 warm-up steps. Its semi-supervised ones: power 0.9,
    no warm-up.
    """
    if num_training_steps < 1:
        raise UserError(f"num_training_steps is {num_training_steps}: a schedule needs at least one step.")
    return LambdaLR(optimizer, lambda step: poly_factor(step, num_training_steps, power, warmup_steps))
