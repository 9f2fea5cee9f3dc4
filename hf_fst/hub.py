"""Access to the Hub: whether it answers is asked once, and failures become one sentence."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from hf_fst.errors import RunError, UserError, in_a_line

PATIENCE = 5.0  # seconds until the first answer, and again until the end of it
READING, WRITING = 10.0, 120.0  # most seconds without a byte of an answer: to a question, and to an upload


def bounded() -> None:
    """Sets a timeout for requests to the Hub without one: by default its client waits forever for most answers."""
    hooks = get_session().event_hooks["request"]
    if _bound not in hooks:
        hooks.append(_bound)


def _bound(request) -> None:
    most = READING if request.method in ("GET", "HEAD") else WRITING
    waits = request.extensions["timeout"]
    request.extensions["timeout"] = {way: most if wait is None else wait for way, wait in waits.items()}


@contextmanager
def asked_once(name: str | Path) -> Iterator[str | None]:
    """Inside, what was downloaded before is used for `name` where the Hub does not answer; gives why it does not.

    Left to itself, the client asks a Hub that does not answer again and again for each file, for over a minute.
    Nothing is asked for a file or a directory, or for what cannot be an id.
    """
    may_be_there, before = is_repo_id(str(name)) and not Path(name).exists(), constants.HF_HUB_OFFLINE
    fault = silence(str(name)) if may_be_there else None
    constants.HF_HUB_OFFLINE = before or fault is not None
    try:
        yield fault
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def hub(name: str | Path) -> Iterator[None]:
    """As `asked_once`; raises `RunError` if the Hub is needed but does not answer, or the connection breaks."""
    with asked_once(name) as fault:
        try:
            yield
        except UserError:
            raise
        except (HTTPError, OSError) as error:
            if fault is not None:
                raise RunError(
                    f"{name} was not downloaded before, and the Hub at {constants.ENDPOINT} does not answer ({fault}); "
                    "check the connection, or give a directory."
                ) from error
            broke = next(filter(is_broken_connection, _chain(error)), None)
            if broke is None:
                raise
            raise RunError(
                f"{name} cannot be fetched from {constants.ENDPOINT} ({in_a_line(broke)}); try again later."
            ) from error


def is_repo_id(name: str) -> bool:
    """Whether a name can be an id on the Hub, such as owner/name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_broken_connection(error: BaseException) -> bool:
    """Whether an error is a connection that broke, and not an answer of the Hub."""
    without_answer = isinstance(error, HTTPError) and getattr(error, "response", None) is None
    return without_answer or isinstance(error, (ConnectionError, TimeoutError))


def silence(name: str) -> str | None:
    """Why the Hub does not answer, to the end, when asked for a file of `name`; None if it does, be it with "no"."""
    try:
        bounded()
        address = f"{constants.ENDPOINT}/{name}/resolve/main/config.json"  # its front page may be another machine's
        with get_session().stream("GET", address, timeout=PATIENCE, follow_redirects=False) as answer:
            latest = time.monotonic() + PATIENCE
            for _ in answer.iter_raw():
                if time.monotonic() > latest:
                    return f"it sends no small file within {PATIENCE:g} s"
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except (HTTPError, OSError, ValueError) as error:  # ValueError: a malformed address
        return in_a_line(error)
    return f"it answers {answer.status_code}" if answer.status_code >= 500 else None
