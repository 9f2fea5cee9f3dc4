"""The one exception of the data part."""

from __future__ import annotations


class DataError(ValueError):
    """A file or a dataset that cannot be used, told in one sentence.

    A loader worker hands an exception over as text with its whole traceback, and the main process raises the class
    again with that text. The sentence is its last line, so it is taken out again here: the user reads the same words
    whether the file was read in the main process, in a worker of a `DataLoader` or in a process of `datasets.map`.
    """

    def __init__(self, message: str):
        super().__init__(message.rsplit("DataError: ", 1)[-1].strip())
