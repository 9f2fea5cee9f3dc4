"""FSDP2 on CPUs, for tests alone: accelerate falls back to DDP there without a word; this makes it shard."""

from __future__ import annotations

import os
from contextlib import contextmanager
from unittest.mock import patch

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


@contextmanager
def sharding_on_cpu():
    """Inside, an `Accelerator` with an FSDP plugin takes the paths that it takes on GPUs."""
    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=fsdp_plugin)
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    partial = PartialState._shared_state.get("distributed_type")
    try:
        with patch.object(AcceleratorState, "__init__", init):
            yield
    finally:
        # what accelerate leaves behind would shard the next run as well
        os.environ.pop("ACCELERATE_USE_FSDP", None)
        AcceleratorState._reset_state()
        if partial is not None:
            PartialState._shared_state["distributed_type"] = partial
