"""The teacher: an exponential moving average of the network it follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_fst.errors import UserError
from hf_fst.method.tensors import Tensors

BUFFER_POLICIES = ("copy", "ema", "batch")


def momentum_at(update: int, momentum: float, warmup: bool) -> float:
    """Momentum of the `update`-th step (from 0): `momentum`, or with warm-up min(1 - 1/(update + 1), `momentum`).

    The warm-up makes the teacher the student at the first step and the mean of all students so far until the
    constant is reached (Tarvainen and Valpola, 2017; used by the authors' code, not printed in the paper).
    """
    return min(1 - 1 / (update + 1), momentum) if warmup else momentum


class EMATeacher:
    """A frozen copy φ of a student, moved by φ ← μ φ + (1 - μ) θ.

    Args:
        student: the model to copy; not yet wrapped or sharded.
        buffers: what becomes of the teacher's buffers (BatchNorm statistics) when it follows weights:
            `"copy"` takes those of the followed model, `"ema"` averages the floating-point ones like parameters,
            `"batch"` never touches them and labels with the statistics of the batch at hand, as the authors' code does.
        share_frozen: take the student's frozen parameters as they are, without a copy (the base under adapters); they
            must stay frozen. Without it they are copied like all others.

    A half-precision student has a full-precision teacher: an average that moves by a thousandth a step would be lost
    in rounding.

    Raises:
        UserError: `buffers` is not one of the three.
    """

    def __init__(self, student: nn.Module, buffers: str = "copy", share_frozen: bool = False):
        if buffers not in BUFFER_POLICIES:
            raise UserError(f"teacher_buffers is {buffers!r}; use one of {', '.join(BUFFER_POLICIES)}.")
        self.buffers = buffers
        frozen = [p for p in student.parameters() if not p.requires_grad] if share_frozen else []
        self.model = deepcopy(student, {id(p): p for p in frozen}).requires_grad_(False)
        for tensor in {*self.model.parameters(), *self.model.buffers()}.difference(frozen):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()
        self.tensors = Tensors(self.model)
        #: does what the network does, faster: compiled, or replayed (`hf_fst.method.capture`)
        self.faster: Callable | None = None
        # places in `parameters()` of what moves
        own = {id(p) for p in self.model.parameters()}.difference(map(id, frozen))
        self.moving = [i for i, p in enumerate(self.model.parameters()) if id(p) in own]
        self.label_mode()

    def label_mode(self) -> None:
        """Put the teacher in the mode in which it labels: no dropout, no stochastic depth."""
        self.model.eval()
        if self.buffers == "batch":
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.train()

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor, **kwargs):
        """Output of the teacher for `pixel_values` (B,3,H,W), without gradient."""
        network = self.model if self.faster is None else self.faster
        return network(pixel_values=pixel_values, **kwargs)

    @torch.no_grad()
    def follow(self, parameters: Sequence[torch.Tensor], buffers: Sequence[torch.Tensor], momentum: float) -> None:
        """φ ← μ φ + (1 - μ) θ.

        Args:
            parameters: θ, in the order of the student's `parameters()`.
            buffers: the student's buffers in the order of `buffers()`, treated as the policy says.
            momentum: μ in [0, 1].
        """
        own = self.tensors.parameters
        own, parameters = [own[i] for i in self.moving], [parameters[i] for i in self.moving]
        torch._foreach_lerp_(own, _like(parameters, own), 1 - momentum)
        if self.buffers == "batch":
            return
        pairs = list(zip(self.tensors.buffers, buffers, strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        if floats:
            mine, theirs = zip(*floats, strict=True)
            # copying is following with momentum 0
            torch._foreach_lerp_(mine, _like(theirs, mine), 1 - momentum if self.buffers == "ema" else 1.0)
        if counters:
            torch._foreach_copy_(*map(list, zip(*counters, strict=True)))


def _like(tensors: Sequence[torch.Tensor], references) -> list[torch.Tensor]:
    """`tensors` in the precision of `references`: a half-precision student has a full-precision teacher."""
    return [t if t.dtype == r.dtype else t.to(r.dtype) for t, r in zip(tensors, references, strict=True)]
