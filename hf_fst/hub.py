"""Asking the Hub: whether it answers is asked once, and what does not come is a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from hf_fst.errors import RunError, UserError

PATIENCE = 5.0  # seconds until the first answer


@contextmanager
def asked_once(name: str | Path) -> Iterator[str | None]:
    """Inside, what was downloaded before is used for `name` where the Hub does not answer; gives why it does not.

    Left to itself, the client asks a Hub that does not answer again and again for each file, for over a minute.

    Args:
        name: an id on the Hub; nothing is asked for a file or a directory, or what can be no id.
    """
    fault, before = silence(str(name)) if _may_be_there(name) else None, constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or fault is not None
    try:
        yield fault
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def hub(name: str | Path) -> Iterator[None]:
    """As `asked_once`; what does not come is a sentence.

    Raises:
        RunError: the Hub does not answer and `name` was not downloaded before, or the connection breaks.
    """
    with asked_once(name) as fault:
        try:
            yield
        except UserError:
            raise
        except (HTTPError, OSError) as error:
            if fault is not None:
                raise RunError(
                    f"{name} was not downloaded before, and the Hub at {constants.ENDPOINT} does not answer ({fault}); "
                    "see to the connection, or give a directory."
                ) from error
            broke = isinstance(error, HTTPError) and getattr(error, "response", None) is None  # no answer, not a "no"
            if not broke and not isinstance(error, (ConnectionError, TimeoutError)):
                raise
            raise RunError(
                f"{name} cannot be fetched from {constants.ENDPOINT} ({in_a_line(error)}); try again later."
            ) from error


def _may_be_there(name: str | Path) -> bool:
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return False
    return not Path(name).exists()


def in_a_line(error: Exception) -> str:
    """The words of an error, or its kind, as a part of a sentence."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def silence(name: str) -> str | None:
    """Why the Hub does not answer when asked for a file of `name`, None if it does, be it with "no"."""
    try:
        address = f"{constants.ENDPOINT}/{name}/resolve/main/config.json"  # its front page may be another machine's
        answer = get_session().head(address, timeout=PATIENCE, follow_redirects=False)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except (HTTPError, OSError, ValueError) as error:  # ValueError: an address that is none
        return in_a_line(error)
    return f"it answers {answer.status_code}" if answer.status_code >= 500 else None
