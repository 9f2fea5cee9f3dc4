"""Errors that a user can fix: the command line turns these, and only these, into a sentence.

Each message says what was given, what is accepted, and what to do. They are also the standard kinds, so that a script may
catch `ValueError` or `FileNotFoundError`. Any other error is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import tempfile
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """Something that was given cannot be used."""


class UsageError(UserError):
    """The command or the recipe is wrong by itself, whatever the data."""


class MissingError(UserError, FileNotFoundError):
    """A file or directory that was named is not there."""


class WriteError(UserError, OSError):
    """A file could not be written, for a full disk in most cases."""


class RunError(UserError, RuntimeError):
    """Something on this machine prevents a run."""


class NotFiniteError(UserError):
    """A network gives logits that are nan or infinite."""


class PushError(RunError):
    """Publishing failed on the way; the message says why and what to run again."""


class DataError(UserError):
    """A file or a dataset that cannot be used.

    A loader worker hands an exception over as text with its whole traceback, and the main process raises the class
    again with that text. The sentence is its last line, so it is taken out again here: the user reads the same words
    whether the file was read in the main process, in a worker of a `DataLoader` or in a process of `datasets.map`.
    """

    def __init__(self, message: str):
        super().__init__(message.rsplit("DataError: ", 1)[-1].strip())


def refuse_below(least: int, **numbers: int) -> None:
    """Raises `UserError` for the first of some numbers, by name, that is less than `least`."""
    for name, number in numbers.items():
        if number < least:
            raise UserError(f"{name} is {number}, but at least {least} is needed.")


def refuse_unwritable(folder: Path) -> None:
    """Raises `UserError` for a folder in which no file can be made, before work whose results it should hold."""
    made = []
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror or error
        raise UserError(f"{folder} cannot be written to ({reason}); give another place.") from error
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


class Gathered:
    """Errors of several steps, raised together: `with faults: ...` for each, then `faults.end()`."""

    def __init__(self) -> None:
        self.found: list[UserError] = []

    def __enter__(self) -> None:
        """Begins a step."""

    def __exit__(self, kind, error, trace) -> bool:
        if isinstance(error, UserError):
            self.found.append(error)
        elif isinstance(error, Exception):  # perhaps of the same cause
            self.end()
        return isinstance(error, UserError)

    def end(self) -> None:
        """Raises the error, or one that names all, if there is any."""
        sentences = list(dict.fromkeys(map(str, self.found)))
        if len(sentences) > 1:
            raise type(self.found[0])(" Also: ".join(sentences)) from self.found[0]
        if self.found:
            raise self.found[0]


def printable(text: str) -> str:
    """The text without the power to move a cursor, change colors or hide: what cannot be printed becomes an escape.

    Names of classes and files come from data that others made. Line breaks and tabs stay.
    """
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape", "backslashreplace").decode() for c in text
    )


def in_a_line(error: Exception) -> str:
    """The words of an error, or its kind, as a part of a sentence."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def did_you_mean(given: str, accepted: Iterable[str], otherwise: str | None = None) -> str:
    """The end of a sentence that guesses what was meant; if nothing accepted is close, `otherwise`, or all that is.

    Close is a slip of the fingers (`trian` for `train`), not a word of the same length (`device` is not `resize`):
    of the letters of both words three in four must match. Case, dashes and underscores do not count.
    """

    def plain(name: str) -> str:
        return name.lower().replace("-", "_")

    names = {plain(name): name for name in accepted}
    near = difflib.get_close_matches(plain(given), names, n=1, cutoff=0.75)
    if near:
        return f"did you mean {names[near[0]]!r}?"
    return f"use one of {', '.join(names.values())}." if otherwise is None else otherwise
