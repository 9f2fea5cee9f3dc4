"""Runs in forked processes that are killed without warning while they write.

What is forked is a process that has torch imported and one thread, so that a run costs a fraction of a second.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
import transformers.modeling_utils

from tests import tiny

STEPS, EVERY = 6, 2
# the checkpoints written before the one whose writes are counted
BEFORE = 1


class Killer:
    """Counts what a process writes below a directory, and kills it at a given write: before it, or half-way through.

    Files, renames and removals made by Python are seen as audit events; torch and safetensors write with code of their
    own and are wrapped.
    """

    def __init__(self, directory: Path, at: int | None = None, half: bool = False):
        self.directory, self.at, self.half = str(directory), at, half
        self.seen: list[str] = []
        self.armed = False
        self.inside = False
        sys.addaudithook(self._audit)
        torch.save = self._wrap(torch.save, place=1)
        writer = self._wrap(safetensors.torch.save_file, place=1)
        safetensors.torch.save_file = transformers.modeling_utils.safe_save_file = writer

    def _audit(self, event: str, arguments: tuple) -> None:
        if self.inside:
            return
        if event == "open":
            path, mode, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR) and "r" not in str(mode or ""):
                self._write("write", path)
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            self._write(event, arguments[0])

    def _wrap(self, save: Callable, place: int) -> Callable:
        def saves(*arguments, **options):
            path = arguments[place]
            self._write("write", path, lambda: save(*arguments, **options))
            self.inside = True
            try:
                return save(*arguments, **options)
            finally:
                self.inside = False

        return saves

    def _write(self, what: str, path, whole: Callable | None = None) -> None:
        if not self.armed:
            return
        path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        name = os.path.relpath(path, self.directory)
        if not os.path.isabs(path):  # relative to a directory descriptor, as shutil.rmtree removes
            name = path
        elif name.startswith(".."):
            return
        self.seen.append(f"{what} {name}")
        if len(self.seen) - 1 != self.at:
            return
        if self.half and what == "write":
            self.inside = True
            if whole is not None:
                whole()
                os.truncate(path, os.path.getsize(path) // 2)
            else:
                Path(path).write_bytes(b'{"half')
        os.kill(os.getpid(), signal.SIGKILL)


def train(directory: Path, killer: Killer | None = None) -> str:
    """A run of six steps with a checkpoint every second; a digest of all that it leaves and logs.

    It goes on from the last complete checkpoint, if there is one. With a killer the writes of the second checkpoint
    are counted.
    """
    trainer = tiny.trainer(
        directory,
        tiny.model(batch_norm=True, dropout=0.2, dtype=torch.float32),
        sets=(
            tiny.images(6, 1, dtype=torch.float32),
            tiny.images(8, 2, labels=False, dtype=torch.float32),
        ),
        rule="fst_w",
        lookahead_students=2,
        max_steps=STEPS,
        learning_rate=0.05,
        teacher_momentum=0.8,
        save_strategy="steps",
        save_steps=EVERY,
        save_total_limit=1,
        logging_strategy="steps",
        logging_steps=1,
    )
    if killer is not None:
        save, written = trainer._save_checkpoint, []

        def counted(*arguments):
            killer.armed = len(written) == BEFORE
            save(*arguments)
            killer.armed = False
            written.append(True)

        trainer._save_checkpoint = counted
    resumes = any(directory.glob("checkpoint-*/complete.json"))
    trainer.train(resume_from_checkpoint=resumes)
    digest = hashlib.sha256()
    moments = [t for state in trainer.optimizer.state.values() for t in state.values()]
    for tensor in (*tiny.weights(trainer.model), *tiny.weights(trainer.teacher.model), *moments):
        digest.update(tensor.contiguous().numpy().tobytes())
    digest.update(torch.get_rng_state().numpy().tobytes())
    for entry in trainer.state.log_history:
        kept = sorted((k, v) for k, v in entry.items() if not k.endswith(("runtime", "per_second", "flos")))
        digest.update(str(kept).encode())
    return digest.hexdigest()


def forked(work: Callable[[], str], answer: Path, seconds: float = 60) -> int:
    """Runs `work` in a fork, which writes what it returns into a file; the process's number."""
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(int(seconds))
        torch.set_num_threads(1)
        answer.write_text(work())
        code = 0
    except BaseException:  # nothing of a fork may go on into the tests of its parent
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """How a fork ended: 0 for well, minus the signal for a kill."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def uninterrupted(directory: Path) -> tuple[str, float]:
    """The digest of a run that nobody stops, and its seconds."""
    begun = time.monotonic()
    assert ended(forked(lambda: train(directory / "run"), directory / "answer")) == 0
    seconds = time.monotonic() - begun
    shutil.rmtree(directory / "run")
    return (directory / "answer").read_text(), seconds


def writes_of_a_checkpoint(directory: Path) -> list[str]:
    """What is written for the second checkpoint, in order, until older ones are removed."""

    def work():
        killer = Killer(directory / "run")
        train(directory / "run", killer)
        return "\n".join(killer.seen)

    assert ended(forked(work, directory / "answer")) == 0
    shutil.rmtree(directory / "run")
    return (directory / "answer").read_text().splitlines()


def killed_at(directory: Path, number: int, half: bool) -> list[str]:
    """Kills a run at a write; the names of the complete checkpoints that it leaves."""

    def work():
        return train(directory / "run", Killer(directory / "run", number, half))

    assert ended(forked(work, directory / "answer")) == -signal.SIGKILL
    return sorted(path.parent.name for path in (directory / "run").glob("checkpoint-*/complete.json"))


def resumed(directory: Path) -> str:
    """The digest of the run that goes on with what a killed one left; then that is removed."""
    assert ended(forked(lambda: train(directory / "run"), directory / "answer")) == 0
    shutil.rmtree(directory / "run")
    return (directory / "answer").read_text()
