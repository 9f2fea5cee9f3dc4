"""How a command ends: a result, a sentence, or a traceback that asks for a report."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from hf_fst.commands.common import is_first_process
from hf_fst.errors import UsageError, UserError, in_a_line, printable

FAILURE, USAGE, INTERRUPTED = 1, 2, 130
FORMAT = warnings.formatwarning
# a disk that is full, a folder that may not be written to or is a file, a name that is too long: nobody's bug
NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
NO_PLACE += (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
COMMON = {
    "json": Annotated[bool, typer.Option("--json", help="Print the result as JSON, everything else on stderr.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
}


def reported(function: Callable[..., dict]) -> Callable[..., int]:
    """The command with `--debug` and, unless it has its own, `--json`, returning the exit code. A `UserError` becomes one
    sentence on stderr.

    Any other error is a fault of ours and keeps its traceback.
    """

    @functools.wraps(function)
    def command(*, debug: bool, **arguments) -> int:
        sys.excepthook = ask_for_report  # for kinds of errors that are not caught below
        warnings.formatwarning = plain_warning
        json = "json" not in own and arguments.pop("json")
        try:
            with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
                result = function(**arguments)
        except KeyboardInterrupt as stop:
            if sys.stderr.isatty():
                print(file=sys.stderr)  # below a bar and ^C
            say(str(stop) or "Stopped.")
            return INTERRUPTED
        except (ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:
            if debug:
                raise
            return failed(error)
        return _done(result, json)

    # typer reads what a command takes from its signature
    signature = inspect.signature(function, eval_str=True)
    own = signature.parameters
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in COMMON.items()
        if name not in own
    ]
    command.__signature__ = signature.replace(parameters=[*own.values(), *common])
    return command


def _done(result: dict, as_json: bool) -> int:
    if not is_first_process():  # which alone may fail: a launcher then stops the others, perhaps before it has spoken
        return 0
    if as_json:
        print(json.dumps(result, indent=2))
    return FAILURE if result.get("failed") else 0


def failed(error: Exception) -> int:
    if isinstance(error, UserError):
        say(" ".join(str(error).split()))
        return USAGE if isinstance(error, UsageError) else FAILURE
    if isinstance(error, OSError) and error.errno in NO_PLACE:
        place = error.filename or "where the command writes"
        say(f"{error.strerror}: {place}; make room or choose another place.")
    elif type(error).__name__ == "OutOfMemoryError":  # torch's
        say(
            "The memory of the accelerator is full; take smaller crops or batches (with more "
            "gradient_accumulation_steps in training), or look at images in windows."
        )
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        say("The memory of this machine is full; take smaller images, crops or batches, or look at images in windows.")
    elif isinstance(error, ImportError) and error.name is None:  # raised by a library for an option that needs more
        say(f"{in_a_line(error)}; or leave out the option that needs it.")
    else:
        ask_for_report(type(error), error, error.__traceback__)
    return FAILURE


def ask_for_report(kind: type[BaseException], error: BaseException, trace) -> None:
    """Prints a traceback as `sys.excepthook` does, and where to report it."""
    traceback.print_exception(kind, error, trace)
    if not issubclass(kind, KeyboardInterrupt):
        say(f"This error is not expected; please report it to {tracker()} with the lines above.")


def tracker() -> str:
    """Where errors are reported: the address that setup.py gives the package, if it does."""
    for entry in importlib.metadata.metadata("hf_fst").get_all("Project-URL") or ():
        label, _, address = entry.partition(", ")
        if label == "Issues":
            return address
    return "the project's issue tracker"


def plain_warning(message, category, filename, *where, **more) -> str:
    """A warning: one of ours as a sentence, others as Python prints them. Names in it come from data of others."""
    if category is UserWarning and Path(__file__).parents[1] in Path(filename).parents:
        return printable(f"hf-fst: Warning: {message}\n")
    return printable(FORMAT(message, category, filename, *where, **more))


def say(sentence: str) -> None:
    """A sentence on stderr; the processes of one launch that say the same say it once."""
    if "LOCAL_RANK" in os.environ:
        launch = f"{os.getppid()} {os.environ.get('MASTER_PORT')} {sentence}"
        said = Path(tempfile.gettempdir(), f"hf-fst-said-{hashlib.sha256(launch.encode()).hexdigest()[:24]}")
        try:
            said.touch(exist_ok=False)
        except FileExistsError:
            if time.time() - said.stat().st_mtime < 60:
                return
            said.touch()
    print(printable(f"hf-fst: {sentence}"), file=sys.stderr, flush=True)
