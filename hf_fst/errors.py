"""The one exception of the data part, and what to say when a process that loads images dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class DataError(ValueError):
    """A file or a dataset that cannot be used, told in one sentence.

    A loader worker hands an exception over as text with its whole traceback, and the main process raises the class
    again with that text. The sentence is its last line, so it is taken out again here: the user reads the same words
    whether the file was read in the main process, in a worker of a `DataLoader` or in a process of `datasets.map`.
    """

    def __init__(self, message: str):
        super().__init__(message.rsplit("DataError: ", 1)[-1].strip())


@contextmanager
def dead_workers(place: Callable[[], str]) -> Iterator[None]:
    """A loader's worker that dies inside ends the block with one sentence.

    Args:
        place: says where the run is.

    Raises:
        RuntimeError: a worker was killed, most often for want of memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        reason = str(error).split(". ")[0].strip().rstrip(".")
        raise RuntimeError(
            f"A process that loads images died after {place()} ({reason}); lower dataloader_num_workers or free memory, "
            "then resume."
        ) from error
