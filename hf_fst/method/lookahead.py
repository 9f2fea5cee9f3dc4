"""The verbs in which the rules are written: one optimizer step, and the look-ahead before it.

`Step` is one optimizer step over its whole accumulation group. Virtual steps are taken with the student itself (no copy
of it is made) and undone in place (`hf_fst.method.present`), so they work alike on plain, DDP-wrapped and sharded
parameters.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from hf_fst.method.capture import Capture
from hf_fst.method.objectives import Objective
from hf_fst.method.present import Present, Statistics, copy_all, local, skipped, skips_on_device
from hf_fst.method.rules import MeanTeacher
from hf_fst.method.teacher import EMATeacher, momentum_at
from hf_fst.method.tensors import Tensors

STATES = ("restore", "carry")
FOLLOWS = ("before", "after", "both", "live", "never")
#: of these, the teachers that do not remember: the student of the step itself, and the network of the start
NO_MEMORY = ("live", "never")
WARMUP_COUNTS = ("steps", "forwards")


@dataclass(frozen=True)
class LookAhead:
    """How the teacher follows the student, and what comes back after virtual steps.

    Args:
        mu: μ in [0, 1], with which the teacher follows the present student (`teacher_momentum`).
        mu_ahead: μ' in [0, 1], with which it follows a future (`lookahead_momentum`).
        memory: optimizer steps that the teacher remembers (`teacher_memory`); replaces both if given.
        followings: how often the teacher moves in a step that looks ahead.
        every: M, at every M-th step there is a look-ahead (`lookahead_every`).
        warmup: whether both are min(1 - 1/(t+1), μ) at step t (`momentum_warmup`).
        warmup_counts: what t counts, `"steps"` or `"forwards"`.
        follows: when it follows the present student, `"before"` the real step, `"after"` it, or `"both"`; `"live"` is
            before with μ = 0, `"never"` keeps the network of the start.
        state: what comes back, `"restore"` or `"carry"`.
        start: the first step, from 0, that looks ahead.
        virtual_steps: optimizer steps that the rule takes and undoes in a step.
        max_grad_norm: gradients of virtual steps are clipped to this norm, as those of real steps; 0 for no clipping.
    """

    mu: float = 0.999
    mu_ahead: float = 0.999
    memory: float | None = None
    followings: int = 1
    every: int = 1
    warmup: bool = True
    warmup_counts: str = "steps"
    follows: str = "before"
    state: str = "restore"
    start: int = 0
    virtual_steps: int = 0
    max_grad_norm: float = 1.0


@dataclass
class Context:
    """What every optimizer step of a run needs, made once.

    Args:
        teacher: φ.
        objective: what the student learns.
        optimizer: the run's own, which also takes the virtual steps.
        accelerator: of the run.
        settings: how to look ahead.
        journal: counts steps that are skipped, and stops a run with too many (`hf_fst.training.journal.Journal`).
        fresh_groups: draws `count` groups of `size` micro-batches for virtual steps on other images.
        total_steps: of the run, for what ramps; 0 if unknown.
    """

    teacher: EMATeacher
    objective: Objective
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    settings: LookAhead
    journal: object
    fresh_groups: Callable[[int, int], Iterator[list[dict]]]
    total_steps: int = 0
    #: the memory for the student's present, allocated at the first look-ahead
    present: Present | None = None
    #: the memory for the buffers before a pass, allocated at the first one
    statistics: Statistics | None = None
    #: those of the student, found at the first step
    tensors: Tensors | None = None
    #: passes that are replayed, None for none
    capture: Capture | None = None


def sum_over_processes(accelerator, counts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Counts of micro-batches, summed over them and over the processes."""
    sums = {key: sum(count[key] for count in counts) for key in counts[0]}
    if accelerator.num_processes > 1:
        flat = torch.cat([value.double().flatten() for value in sums.values()])
        parts = accelerator.reduce(flat, "sum").split([value.numel() for value in sums.values()])
        sums = {k: part.view_as(v).to(v.dtype) for (k, v), part in zip(sums.items(), parts, strict=True)}
    return sums


@contextmanager
def same_noise_after(device: torch.device):
    """Put Python's, numpy's and torch's random number generators back on exit."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    random.setstate(python)
    np.random.set_state(numpy_state)


class Step:
    """One optimizer step: the group of micro-batches it learns from, and the verbs of the rules.

    Args:
        context: what all steps of the run share.
        model: the student as the training loop holds it (wrapped).
        group: the micro-batches of this step.
        number: of the step, from 0.
        watchers: objects whose `before(teacher)` is called with the teacher as it is and where it follows the present,
            not a future: they keep the pseudo-labels before the look-ahead, for the log and for pictures.
    """

    def __init__(self, context: Context, model: nn.Module, group: list[dict], number: int, watchers: Sequence = ()):
        self.context, self.model, self.group, self.number = context, model, group, number
        self.settings, self.teacher, self.accelerator = context.settings, context.teacher, context.accelerator
        self.student = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        self.watchers = watchers
        self.futures: list[torch.Tensor] | None = None  # their mean, as far as they are remembered
        self.gradients = 0  # taken in this step so far
        #: share of the run's steps before this one, in virtual steps too
        self.progress = number / context.total_steps if context.total_steps else 0.0
        if context.tensors is None:
            context.tensors = Tensors(self.student)
        self.tensors = context.tensors
        self.optimizer = context.optimizer  # accelerate's, without its wrapper
        while isinstance(self.optimizer, AcceleratedOptimizer):
            self.optimizer = self.optimizer.optimizer
        #: whether the last virtual gradient was not finite, where the host need not know
        self.bad: torch.Tensor | None = None
        #: before `start`: no look-ahead, and the teacher follows the student after its step as well
        self.plain = number < self.settings.start and self.settings.virtual_steps > 0
        # passes that are replayed leave the device nothing to do while the host waits; a memory waits for the check
        self._runs_ahead = context.capture is not None and type(context.objective).advance is Objective.advance
        #: steps since `start`: at those that `every` divides there is a look-ahead
        self.since = max(0, number - self.settings.start)
        self._keep_labels()

    def look_ahead(self, rule) -> None:
        """What the rule does at every M-th step from `start` on, what a mean teacher does at all others."""
        (MeanTeacher() if self.plain or self.since % self.settings.every else rule).look_ahead(self)

    # what the teacher does

    def teacher_follows_present(self) -> None:
        """φ ← μφ + (1-μ)θ_t (not again where it followed θ_t after the last step)."""
        if self.settings.follows != "after":
            self._follow_student(self._momentum(self.settings.mu))
            self._keep_labels()

    def teacher_follows_future(self, momentum: float | None = None) -> None:
        """φ ← μ'φ + (1-μ')θ̃, with `momentum` instead of μ' if given; μ'^M where M steps share a look-ahead."""
        mu = self.settings.mu_ahead if momentum is None else momentum
        self._follow_student(self._momentum(mu, self.settings.every))

    def teacher_follows_mean_future(self) -> None:
        """φ ← μ'φ + (1-μ')·(mean of the remembered θ̃); μ'^M where M steps share a look-ahead."""
        count = len(self.tensors.parameters)
        momentum = self._momentum(self.settings.mu_ahead, self.settings.every)
        self._follow(self.futures[:count], self.futures[count:], momentum)

    def teacher_follows_outcome(self) -> None:
        """φ ← μφ + (1-μ)θ_{t+1} after the real step, where `follows` says so."""
        if self.plain or self.settings.follows in ("after", "both"):
            self._follow_student(self._momentum(self.settings.mu))
        if self.settings.follows == "live":  # what is evaluated and saved is the student, statistics included
            tensors = ([*network.parameters(), *network.buffers()] for network in (self.teacher.model, self.student))
            with torch.no_grad():
                copy_all(*map(local, tensors))

    def _follow_student(self, momentum: float) -> None:
        self._follow(self.tensors.parameters, self.tensors.buffers, momentum)

    def _momentum(self, mu: float, steps: int = 1) -> float:
        """The momentum of one following, which stands for those of `steps` steps from this one on.

        μ_t^(1/F) with F followings a step where a memory is given, such that the factors of M steps multiply to
        (1 - 1/memory)^M, or while warming up to those of a mean teacher of this memory; μ_t itself otherwise.
        """
        settings, count = self.settings, self.number
        if settings.warmup_counts == "forwards":  # virtual ones too, those of earlier steps and of this one
            count += settings.virtual_steps * math.ceil(self.since / settings.every) + self.gradients
        if settings.memory is not None:
            mu = 1 - 1 / settings.memory
        factor = math.prod(momentum_at(count + i, mu, settings.warmup) for i in range(steps))
        if settings.memory is None:
            return factor
        # before `start` the teacher follows the student before its step (but with "after") and after it
        return factor ** (1 / ((1 if settings.follows == "after" else 2) if self.plain else settings.followings))

    def _follow(self, parameters, buffers, momentum: float) -> None:
        if self.settings.follows == "never":
            return
        self.teacher.follow(parameters, buffers, momentum)
        if self.teacher.buffers != "batch":
            self.share_buffers(self.teacher.model)

    @torch.no_grad()
    def share_buffers(self, network: nn.Module) -> None:
        """All processes take the buffers of the first one, since BatchNorm statistics differ between processes."""
        if self.accelerator.num_processes == 1:
            return
        buffers = [b for b in local(network.buffers()) if b.is_floating_point()]
        if buffers:
            flat = torch.cat([buffer.double().flatten() for buffer in buffers])
            torch.distributed.broadcast(flat, src=0)
            for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))

    def _keep_labels(self) -> None:
        if self.watchers:
            with self.accelerator.autocast():  # as when it labels for a step
                for watcher in self.watchers:
                    watcher.before(self.teacher)

    # what the student imagines

    @contextmanager
    def imagine(self) -> Iterator[None]:
        """Virtual steps happen inside; on exit the student is what it was (`state`)."""
        context, restores = self.context, self.settings.state == "restore"
        if context.present is None:
            context.present = Present(self.student, context.optimizer, self.settings.state)
        context.present.take()
        try:
            with same_noise_after(self.accelerator.device) if restores else nullcontext():
                yield
        finally:  # also where a run is interrupted in the middle: what is saved then is a present student
            context.present.restore()

    def return_to_present(self) -> None:
        """θ̃ ← θ_t."""
        self.context.present.restore()

    def groups(self, count: int, batches: str) -> Iterator[list[dict]]:
        """`count` groups of micro-batches: this step's own (`"same"`) or fresh ones (`"different"`)."""
        if batches == "different":
            yield from self.context.fresh_groups(count, len(self.group))
            return
        for _ in range(count):
            yield self.group

    def descend(self, group: list[dict]) -> None:
        """θ̃ ← θ̃ - γ∇L(θ̃ | φ): one step of the run's own optimizer with its clipping; no schedule advances."""
        loss, _ = self.gradient(group, virtual=True)
        if loss is not None:
            if self.settings.max_grad_norm > 0:
                self.accelerator.clip_grad_norm_(self.tensors.parameters, self.settings.max_grad_norm)
            with nullcontext() if self.bad is None else skipped(self.optimizer, self.bad):
                self.context.optimizer.step()
        self.forget_gradient()

    def forget_gradient(self) -> None:
        """Sets `.grad` of all parameters to None."""
        for parameter in self.tensors.parameters:
            parameter.grad = None

    @torch.no_grad()
    def remember_future(self, weight: float) -> None:
        """Add `weight` θ̃ to the remembered mean (floating-point buffers alike, counters as they are)."""
        parameters, buffers = self.tensors.parameters, self.tensors.buffers
        future = [*parameters, *buffers]
        # frozen parameters do not move: they are not copied, and not rounded
        moving = [p.requires_grad for p in parameters] + [b.is_floating_point() for b in buffers]
        if self.futures is None:
            kept = [p.detach() for p in parameters] + [b.clone() for b in buffers]
            self.futures = [t * weight if moves else k for t, k, moves in zip(future, kept, moving, strict=True)]
            return
        averaged = [i for i, moves in enumerate(moving) if moves]
        torch._foreach_add_([self.futures[i] for i in averaged], [future[i] for i in averaged], alpha=weight)

    # the gradient, virtual or real

    def gradient(self, group: list[dict], virtual: bool = False) -> tuple[torch.Tensor | None, list[dict]]:
        """∇L(θ | φ) of a whole group, accumulated into `.grad`; one path for virtual and real steps.

        The teacher labels all micro-batches first, so that what normalizes a loss is counted over the group and over
        the processes; then each term is backpropagated as it comes. All but the last backward run without gradient
        synchronization.

        Returns:
            the loss of the group, (), such that its mean over processes is the loss of the whole, or None (and no
            gradient) if it is not finite on some process; and the prepared micro-batches. Where a virtual step can be
            left out on the device, the host does not wait to know: then the loss is given and `bad` says whether. Nor
            does it for a real step where passes are captured: there the loss is zero then.
        """
        context, objective, accelerator = self.context, self.context.objective, self.accelerator
        buffers = local([*self.tensors.buffers, *self.teacher.tensors.buffers])
        if context.statistics is None or list(map(id, context.statistics.live)) != list(map(id, buffers)):
            context.statistics = Statistics(buffers)
        context.statistics.take()
        with torch.no_grad(), accelerator.autocast():
            group = [objective.prepare(self.teacher, {**batch, "progress": self.progress}) for batch in group]
        totals = sum_over_processes(accelerator, [objective.counts(batch) for batch in group])

        if context.capture is not None:
            context.capture.begin(self.tensors.parameters)
        losses: dict[str, torch.Tensor] = {}
        for i, batch in enumerate(group):
            take = partial(backward, context, self.model, last=i == len(group) - 1)
            shares = take(batch, totals) if context.capture is None else context.capture(take, batch, totals)
            for name, share in shares.items():
                losses[name] = losses.get(name, 0) + share
        if context.capture is not None:
            context.capture.end(self.tensors.parameters)
        self.gradients += 1

        checked = dict(losses)
        if accelerator.scaler is None:  # a scaler looks at the gradients itself
            gradients = local(p.grad for p in self.tensors.parameters if p.grad is not None)
            checked["gradient"] = torch.stack(torch._foreach_norm(gradients)).double().sum()
        if accelerator.scaler is None and (virtual or self._runs_ahead) and skips_on_device(self.optimizer):
            self.bad = ~context.journal.is_finite_later(checked, accelerator, None if virtual else self.number + 1)
            context.statistics.restore(where=self.bad)
            if not virtual:
                losses = {name: loss.masked_fill(self.bad, 0) for name, loss in losses.items()}
                context.journal.add(losses)
                self.optimizer.found_inf = self.bad.float()  # until the step is taken
            return sum(losses.values()), group
        if context.journal.is_finite(checked, accelerator, virtual):
            if not virtual:
                context.journal.add(losses)
                objective.advance(group, accelerator, context.optimizer.param_groups[0]["lr"])
            return sum(losses.values()), group
        context.statistics.restore()  # statistics of a batch that is not finite would outlive the step
        if accelerator.scaler is None:  # a scaler sees the overflow itself, skips the step and lowers the scale
            self.forget_gradient()
        context.journal.stop_after_too_many(checked, self.number + 1)
        return None, group


def backward(
    context: Context, model: nn.Module, batch: dict, totals: dict, last: bool = True
) -> dict[str, torch.Tensor]:
    """The losses of a prepared micro-batch, whose gradient is added to `.grad`.

    Args:
        context: of the run.
        model: the student, wrapped.
        batch: what the objective prepared.
        totals: what normalizes the losses, over the group and the processes.
        last: whether it is the last of its group, with whose gradient that of all processes is exchanged.
    """
    objective, accelerator = context.objective, context.accelerator
    terms, losses = iter(objective.terms(model, context.teacher, batch, totals)), {}
    for n in range(objective.passes):
        with nullcontext() if last and n == objective.passes - 1 else accelerator.no_sync(model):
            # gradients are averaged over processes, the totals are sums over them
            shares = {name: share * accelerator.num_processes for name, share in next(terms).items()}
            accelerator.backward(sum(shares.values()))
        for name, share in shares.items():
            losses[name] = losses.get(name, 0) + share.detach()
    return losses
