"""Files of a long job: inputs, names of outputs, and writing them so that the job can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from hf_fst.data.files import OTHER_KIND, SUFFIXES, walk
from hf_fst.errors import MissingError, RunError, UserError, printable, refuse_unwritable
from hf_fst.evaluation.results import without_nan

PART = ".part"


class Inputs(NamedTuple):
    """Files to work on, how many are of another kind, and those that cannot be used, as `{"file", "reason"}`."""

    files: list[Path]
    others: int
    failed: list[dict[str, str]]


def list_inputs(source: Path, suffixes: Sequence[str] = SUFFIXES, skip: Sequence[Path] = ()) -> Inputs:
    """The files with these suffixes (in lower case) in a folder and the folders in it, sorted, hidden ones and folders
    to `skip` left out; or the one file. Raises `MissingError` if there is no such folder or file, or none with the
    suffixes."""
    if source.is_file():
        if source.suffix.lower() not in suffixes:
            raise MissingError(f"{source} is not one of {', '.join('*' + suffix for suffix in suffixes)}.")
        return Inputs([source], 0, [])
    if source.is_symlink() and not source.exists():
        raise MissingError(f"{source} is a broken link; give a folder or a file with images.")
    if not source.is_dir():
        what = f"{source} is not a regular file" if source.exists() else f"There is no folder or file {source}"
        raise MissingError(f"{what}; give one with images.")
    walked = walk(source, suffixes, skip)
    failed = [
        {"file": printable(path.relative_to(source).as_posix()), "reason": reason}
        for path, reason in sorted(walked.unused.items())
        if reason != OTHER_KIND
    ]
    if not walked.files:
        kinds = ", ".join("*" + suffix for suffix in suffixes)
        bad = f" that can be read ({failed[0]['file']}: {failed[0]['reason']})" if failed else ""
        raise MissingError(f"{source} and the folders in it hold no files {kinds}{bad}.")
    return Inputs(walked.files, len(walked.unused) - len(failed), failed)


def reason(error: Exception) -> str:
    """Why a file failed, in a line."""
    return " ".join(str(error).split()) or type(error).__name__


def output_names(files: Sequence[Path], root: Path) -> list[str]:
    """A name under the output folder for each file, without suffix: its path under `root`, also without suffix unless
    another file would get the same (`a.jpg` and `a.png` become `a.jpg` and `a.png`, `b.jpg` becomes `b`)."""
    whole = [file.relative_to(root).as_posix() for file in files]
    names = [file.relative_to(root).with_suffix("").as_posix() for file in files]
    while shared := {name for name, count in Counter(name.casefold() for name in names).items() if count > 1}:
        renamed = [full if name.casefold() in shared else name for name, full in zip(names, whole, strict=True)]
        if renamed == names:  # names that differ only in case
            break
        names = renamed
    return names


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file so that it is either whole or not there, even if the machine stops in the middle.

    Raises `RunError` in one sentence where it cannot be written.
    """
    short = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # a name of a few more bytes may be too long
    part = path.with_name(f".{short}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"{path} cannot be written ({reason}); what is written so far stays.") from error
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes plain data as JSON with `write_whole`."""
    text = json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def fingerprint(files: Sequence[Path], root: Path) -> str:
    """16 digits that change if a file is added, removed or renamed."""
    names = "\n".join(file.relative_to(root).as_posix() for file in files)
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def stamp(files: Sequence[Path]) -> str:
    """16 digits that change if the content of a file does, whatever its size and date."""
    digest = hashlib.sha256()
    for file in files:
        try:
            facts = file.stat()
            digest.update(_content(file, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino))
        except OSError:  # it has disappeared; reading it will say so
            digest.update(b"gone")
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1 << 16)  # one table may be the source of hundreds of shards
def _content(file: Path, *facts: int) -> bytes:
    """The hash of a whole file; read again if one of `facts`, from its inode, changes."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


@contextmanager
def claimed(
    output: Path, settings_file: str, settings: dict[str, Any], owned: Sequence[str], overwrite: bool
) -> Iterator[None]:
    """Reserves an output folder for a job with these settings inside the context.

    The settings are in `output/settings_file`, so that a later run only continues with the same ones. `overwrite`
    removes what a job with other settings left in the folders `owned`, and never anything else. All processes of a
    launch enter together. Raises `UserError` if the results there have other settings or an unknown origin, or another
    job writes them.
    """
    state = PartialState()
    lock = FileLock(output / f".{settings_file}.lock")
    problem: list[UserError | None] = [None]
    try:
        if state.is_main_process:
            try:
                _claim(output, settings_file, json.loads(json.dumps(settings)), owned, overwrite, lock)
            except UserError as error:
                problem = [error]
        broadcast_object_list(problem)  # all processes stop where the first does
        if problem[0] is not None:
            raise problem[0]
        yield
    finally:
        lock.release(force=True)


def _claim(output, settings_file, settings, owned, overwrite, lock) -> None:
    refuse_unwritable(output)
    output.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"Another process is writing to {output}; wait for it, or give another folder.") from error
    path = output / settings_file
    there = [name for name in owned if (output / name).exists()]
    if there and not path.is_file():  # with `overwrite` too: it may be the user's own, a folder `data` or `videos`
        raise UserError(
            f"{output} holds {there[0]}/ but no {settings_file} that says how it was made; give another folder."
        )
    if overwrite:
        for name in there:
            shutil.rmtree(output / name)
    elif path.is_file():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} does not say how {output} was made; give another folder, or --overwrite to start over."
            ) from error
        for key in {**before, **settings}:
            if before.get(key) != settings.get(key):
                raise UserError(
                    f"{output} was started with {key} {_shown(before.get(key))}, but now {key} is "
                    f"{_shown(settings.get(key))}; use the same, give another folder, or --overwrite to start over."
                )
    write_json(path, settings)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
