"""What is put back: the present after a look-ahead, and what a pass did that was not finite."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from numbers import Number
from types import FunctionType, NoneType

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from hf_fst.errors import UserError

#: what an optimizer may keep besides tensors and containers: values that no step can change in place
UNCHANGING = (Number, str, bytes, NoneType, Enum, FunctionType, torch.dtype, torch.device)


def local(tensors) -> list[torch.Tensor]:
    """The shards at hand of sharded tensors, the tensors themselves otherwise (foreach copies need plain tensors)."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def copy_all(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """target ← source for all, one foreach call for each device and type."""
    groups: dict[tuple, tuple[list, list]] = {}
    for target, source in zip(targets, sources, strict=True):
        group = groups.setdefault((target.device, target.dtype), ([], []))
        group[0].append(target)
        group[1].append(source)
    for group in groups.values():
        torch._foreach_copy_(*group)


class Present:
    """A copy of everything a virtual step changes, in memory that is allocated once and filled at every look-ahead.

    With `state="restore"` that is parameters, buffers and optimizer state, nested dicts and lists of it included; with
    `"carry"` parameters alone (what the authors' code puts back).
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: str):
        self.model, self.optimizer, self.everything = model, optimizer, state == "restore"
        self.kept_state: list[torch.Tensor] = []
        self._allocate()

    @torch.no_grad()
    def _allocate(self) -> None:
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.live = local(self.trainable)
        if self.everything:
            self.live += local(self.model.buffers())
        self.kept = [torch.empty_like(t) for t in self.live]

    @torch.no_grad()
    def take(self) -> None:
        """Remember the present.

        Raises:
            UserError: the optimizer's state holds an object that cannot be put back.
        """
        if list(map(id, self.trainable)) != [id(p) for p in self.model.parameters() if p.requires_grad]:
            self._allocate()  # weights were frozen or freed since
        copy_all(self.kept, self.live)
        if not self.everything:
            return
        #: the optimizer's containers with their items, and the tensors in them
        self.containers: list[tuple[dict | list | deque, list]] = []
        tensors: list[torch.Tensor] = []
        self._note(self.optimizer.state, tensors)
        for group in self.optimizer.param_groups:  # learning rates and, for some optimizers, counters
            self.containers.append((group, list(group.items())))
            self._note([value for key, value in group.items() if key != "params"], tensors)
        self.live_state = local(tensors)
        layouts = ([(t.shape, t.dtype, t.device) for t in ts] for ts in (self.live_state, self.kept_state))
        if next(layouts) != next(layouts):  # at the first steps, when an optimizer's state is born
            self.kept_state = [torch.empty_like(t) for t in self.live_state]
        copy_all(self.kept_state, self.live_state)

    def _note(self, value, tensors: list[torch.Tensor]) -> None:
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif isinstance(value, dict | list | tuple | deque):
            items = list(value.items() if isinstance(value, dict) else value)
            if not isinstance(value, tuple):
                self.containers.append((value, items))
            for item in value.values() if isinstance(value, dict) else items:
                self._note(item, tensors)
        elif not isinstance(value, UNCHANGING):
            raise UserError(
                f"The optimizer keeps a {type(value).__name__} in its state, which a look-ahead cannot put back; use "
                "another optimizer, or lookahead_state 'carry', which keeps what virtual steps leave there."
            )

    @torch.no_grad()
    def restore(self) -> None:
        """Put the student back: what was there is copied in place, what a virtual step gave birth to is removed."""
        copy_all(self.live, self.kept)
        if not self.everything:
            return
        for container, items in self.containers:
            container.clear()
            container.update(items) if isinstance(container, dict) else container.extend(items)
        copy_all(self.live_state, self.kept_state)

    def nbytes(self, with_mean: bool = False) -> int:
        """Bytes of the copy, `with_mean` also of a mean of futures."""
        mean = local([*self.trainable, *self.model.buffers()]) if with_mean else []
        return sum(t.nbytes for t in [*self.kept, *self.kept_state, *mean])


class Statistics:
    """Buffers (BatchNorm statistics) as they were before a pass, whose images may not be finite.

    Args:
        buffers: of student and teacher.
    """

    LARGE = 2**16  # values; larger ones (tables of positions) are few, and no second copy of them is held

    def __init__(self, buffers: list[torch.Tensor]):
        self.live, self.kept = buffers, [torch.empty_like(buffer) for buffer in buffers]
        self.large = [i for i, buffer in enumerate(buffers) if buffer.numel() > self.LARGE]
        #: of the others, by type and place, whether they are kept or live, as one row of numbers and in their shapes
        self.rows: list[tuple[list[torch.Tensor], torch.Tensor, list[torch.Tensor]]] = []
        places: dict[tuple, list[int]] = {}
        for i, buffer in enumerate(buffers):
            if buffer.numel() <= self.LARGE:
                places.setdefault((buffer.dtype, buffer.device), []).append(i)
        for (dtype, device), those in places.items():
            rows = torch.empty(2, sum(buffers[i].numel() for i in those), dtype=dtype, device=device)
            cut = [row.split([buffers[i].numel() for i in those]) for row in rows]
            kept, now = ([part.view(buffers[i].shape) for part, i in zip(parts, those, strict=True)] for parts in cut)
            for i, view in zip(those, kept, strict=True):
                self.kept[i] = view
            self.rows.append(([buffers[i] for i in those], rows, now))

    @torch.no_grad()
    def take(self) -> None:
        """Remember the buffers."""
        copy_all(self.kept, self.live)

    @torch.no_grad()
    def restore(self, where: torch.Tensor | None = None) -> None:
        """Put the buffers back; with `where` (), bool, on the device, only if it is true: the host need not know."""
        if where is None:
            copy_all(self.live, self.kept)
            return
        for live, (kept, found), now in self.rows:  # a few calls for hundreds of buffers
            torch._foreach_copy_(now, live)
            torch.where(where.to(kept.device), kept, found, out=found)
            torch._foreach_copy_(live, now)
        for i in self.large:
            torch.where(where.to(self.live[i].device), self.kept[i], self.live[i], out=self.live[i])


def skips_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer can leave out a step by a flag on the device, as it does for a gradient scaler.

    Fused SGD can too, but its momentum would be born without a value in a first step that is left out.
    """
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return False
    groups = optimizer.param_groups
    return all(group["fused"] and not any(isinstance(p, DTensor) for p in group["params"]) for group in groups)


@contextmanager
def skipped(optimizer: torch.optim.Optimizer, where: torch.Tensor) -> Iterator[None]:
    """Steps inside do nothing if `where` (), bool, on the device of the parameters, is true."""
    optimizer.found_inf = where.float()  # what a gradient scaler sets
    try:
        yield
    finally:
        del optimizer.found_inf
