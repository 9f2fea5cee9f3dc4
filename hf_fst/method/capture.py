"""Passes of student and teacher replayed as CUDA graphs: one launch instead of thousands.

A function is replayed with tensors at fixed addresses. Weights, buffers and optimizer state are only ever written in
place, so a graph sees them as they are; inputs are copied to where it reads them; gradients are added to tensors that
stay. Noise is drawn again at every replay, from the device's own generator, which can be set between replays.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from transformers.utils import logging

from hf_fst.method.present import copy_all

logger = logging.get_logger(__name__)

WARM_UP = 2  # calls of a kind that run as they are: what is made at a first call is made, and it is seen what they do
KINDS = 2  # graphs of a function; each holds the memory of its pass


class Graph:
    """A CUDA graph of what `function` launches; it is recorded, not run.

    Args:
        function: of nothing; what it reads stays where it is.
        pool: memory that graphs share, which are never replayed at the same time.
    """

    def __init__(self, function: Callable[[], Any], pool):
        self.graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # other threads may pin memory at the same time
            with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
                self.outputs = function()
        except RuntimeError:
            torch.cuda.set_stream(stream)  # which a recording that fails does not give back
            raise

    def replay(self) -> Any:
        """Run it; gives the outputs, which the next replay of any graph of the pool may overwrite."""
        self.graph.replay()
        return self.outputs


class Replayed:
    """A function of tensors that is recorded at its third call with tensors of the same shapes, and replayed after it.

    Where it waits for the device or draws random numbers on the CPU, it cannot be recorded: this is said once, and it
    runs as it is. So it does for all shapes but the first `KINDS`.

    Args:
        function: of a dict whose tensors are the inputs; what it gives holds tensors.
        name: of what is replayed, for the sentence.
        pool: see `Graph`.
    """

    def __init__(self, function: Callable[[dict], Any], name: str, pool=None):
        self.function, self.name, self.pool = function, name, pool
        self.reason: str | None = None  # why it cannot be recorded
        self.forget()

    def forget(self) -> None:
        """Drop all graphs."""
        self.calls: dict[Hashable, int] = {}
        self.graphs: dict[Hashable, tuple[list[torch.Tensor], Graph]] = {}

    def __call__(self, inputs: Mapping[str, Any], state: Hashable = (), ready: bool = True) -> Any:
        """What the function gives.

        Args:
            inputs: tensors by name; anything else is the function's own matter.
            state: whatever else a recording depends on.
            ready: whether one may be made now.
        """
        names = [name for name, value in inputs.items() if isinstance(value, torch.Tensor)]
        tensors = [inputs[name] for name in names]
        kind = (state, *((name, t.shape, t.dtype, t.stride()) for name, t in zip(names, tensors, strict=True)))
        if kind not in self.graphs:
            self.calls[kind] = self.calls.get(kind, 0) + 1
            if self.calls[kind] <= WARM_UP or not ready or self.reason or len(self.graphs) == KINDS:
                with self.watched() if self.calls[kind] == WARM_UP and not self.reason else _nothing():
                    return self.function(dict(inputs))
            if not self.record(kind, dict(inputs), names):
                return self.function(dict(inputs))
        fixed, graph = self.graphs[kind]
        copy_all(fixed, tensors)
        return pytree.tree_map_only(torch.Tensor, torch.clone, graph.replay())

    def record(self, kind: Hashable, inputs: dict, names: list[str]) -> bool:
        """Make the graph of a kind of inputs; whether that went well."""
        fixed = {name: inputs[name].clone() for name in names}
        try:
            graph = Graph(lambda: self.function(inputs | fixed), self.pool)
        except RuntimeError as error:
            self.refuse(" ".join(str(error).split())[:200])
            return False
        if not all(isinstance(leaf, torch.Tensor | NoneType) for leaf in pytree.tree_leaves(graph.outputs)):
            self.refuse(f"its output, a {type(graph.outputs).__name__}, does not say what tensors are in it")
            return False
        self.graphs[kind] = list(fixed.values()), graph
        return True

    def refuse(self, reason: str) -> None:
        """Record nothing from now on, and say why once."""
        self.reason = reason
        logger.warning(f"capture: {self.name} cannot be replayed as a CUDA graph and runs as without ({reason}).")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """See whether what happens inside can be recorded."""
        before = _noise()
        with warnings.catch_warnings(record=True) as found, _told_of_waiting():
            warnings.simplefilter("always")
            yield
        waits = [w for w in found if "synchronizing" in str(w.message)]
        for warning in found:
            if warning not in waits:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if waits:
            self.refuse(f"the host waits for the device at {waits[0].filename}:{waits[0].lineno}")
        elif _noise() != before:
            self.refuse("random numbers are drawn on the CPU")


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _told_of_waiting() -> Iterator[None]:
    """Inside, PyTorch warns where the host waits for a GPU."""
    if not torch.cuda.is_available():
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _noise() -> tuple:
    return torch.get_rng_state().numpy().tobytes(), str(np.random.get_state()), random.getstate()


class Capture:
    """The passes of a run that are replayed: the teacher's, and the student's over a micro-batch, backward pass included.

    Args:
        teacher: the `EMATeacher`, whose calls are replayed from now on.
        backward: gives the losses of a prepared micro-batch (a dict) with its totals (a dict) and adds up its gradient;
            None where that cannot be replayed.
    """

    def __init__(self, teacher, backward: Callable[[dict, dict], dict] | None):
        pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None
        self.teacher = Replayed(lambda inputs: teacher.model(**inputs), "the teacher's pass", pool)
        teacher.faster = partial(self.label, teacher.model)
        self.student = None
        if backward is not None:
            self.student = Replayed(lambda inputs: backward(*_apart(inputs)), "the student's pass", pool)
        self.trainable: tuple[bool, ...] = ()
        #: places of the parameters that get a gradient, once known, and the gradients
        self.places: list[int] | None = None
        self.gradients: list[torch.Tensor] = []

    def label(self, network: torch.nn.Module, **inputs) -> Any:
        """The teacher's output for its inputs."""
        if inputs.keys() != {"pixel_values"}:
            return network(**inputs)
        kind = inputs["pixel_values"].device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        return self.teacher(inputs, state=(network.training, half))

    def begin(self, parameters: list[torch.nn.Parameter]) -> None:
        """Before a gradient is taken: it is added up in tensors that stay, once it is known which parameters have one."""
        trainable = tuple(parameter.requires_grad for parameter in parameters)
        if self.student is None or trainable != self.trainable:  # at the first, or weights were frozen or freed since
            self.trainable, self.places, self.gradients = trainable, None, []
            if self.student is not None:
                self.student.forget()
            return
        if not self.gradients:
            self.gradients = [torch.zeros_like(parameters[i]) for i in self.places]
        torch._foreach_zero_(self.gradients)
        for i, gradient in zip(self.places, self.gradients, strict=True):
            parameters[i].grad = gradient

    def end(self, parameters: list[torch.nn.Parameter]) -> None:
        """After a gradient was taken: note which parameters have one."""
        if self.places is None:
            self.places = [i for i, parameter in enumerate(parameters) if parameter.grad is not None]

    def __call__(self, backward: Callable[[dict, dict], dict], batch: dict, totals: dict) -> dict[str, torch.Tensor]:
        """What `backward` gives for a micro-batch, replayed where that is possible."""
        if self.student is None or any(isinstance(value, list) for value in batch.values()):  # images of several sizes
            return backward(batch, totals)
        return self.student(_together(batch, totals), ready=bool(self.gradients))


def _together(batch: dict, totals: dict) -> dict:
    return batch | {f"total {name}": total for name, total in totals.items()}


def _apart(inputs: dict) -> tuple[dict, dict]:
    totals = {name: value for name, value in inputs.items() if name.startswith("total ")}
    batch = {name: value for name, value in inputs.items() if name not in totals}
    return batch, {name.removeprefix("total "): value for name, value in totals.items()}
