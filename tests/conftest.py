"""What holds for all tests."""

from __future__ import annotations

import gc
import os

import torch

from tests.device import USE_CPU

if not USE_CPU:
    # what is equal bit for bit is so with kernels that add in one order; a few have no such kernel and stay as they are
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = False


def pytest_collection_finish(session):
    """Modules live as long as the tests; the collection that begins every training need not go through them again."""
    gc.freeze()


def pytest_sessionfinish(session):
    """Else libraries complain that what they made outlives the interpreter."""
    gc.unfreeze()
