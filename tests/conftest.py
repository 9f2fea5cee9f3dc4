"""What holds for all tests."""

from __future__ import annotations

import gc


def pytest_collection_finish(session):
    """Modules live as long as the tests; the collection that begins every training need not go through them again."""
    gc.freeze()


def pytest_sessionfinish(session):
    """Else libraries complain that what they made outlives the interpreter."""
    gc.unfreeze()
