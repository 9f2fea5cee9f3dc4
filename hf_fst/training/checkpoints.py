"""Layout of a run's directory: what makes a checkpoint complete, and how weights come back from one.

`output_dir/` is the teacher, `output_dir/student/` the student. `checkpoint-N/` is the student, with the teacher in
`teacher/`; it is complete when its marker, written last, is there. The marker holds size and checksum of every file,
so that a file that was cut off or changed is found before anything is read from it.
"""

from __future__ import annotations

import json
import os
import shutil
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from hf_fst.errors import MissingError, UserError, WriteError
from hf_fst.method.objectives import Objective
from hf_fst.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hf_fst.models.loading import MARKER, STUDENT_DIR, TEACHER_DIR, refuse_broken_files
from hf_fst.training.adapters import beside_adapter, is_adapted, load_adapter
from hf_fst.training.sharding import is_sharded, load_shards, load_whole, save_shards, saves_shards

MEMORY = "objective.pt"  # of a checkpoint: what the objective remembers


def discard(directory: str | os.PathLike) -> None:
    """Remove a checkpoint, its marker first, so that a half-removed one does not count."""
    Path(directory, MARKER).unlink(missing_ok=True)
    if Path(directory).is_dir():
        shutil.rmtree(directory)


def kind(rule: str, student: nn.Module) -> dict[str, str]:
    """What a checkpoint and the run that loads it must have in common."""
    return {"rule": rule, "model_type": student.config.model_type}


def mark_complete(directory: str | os.PathLike, step: int, of_kind: dict[str, str]) -> None:
    """Write the marker: from now on this checkpoint counts, also after a loss of power."""
    directory = Path(directory)
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    facts = {
        "step": step,
        **of_kind,
        "files": {path.relative_to(directory).as_posix(): list(_fingerprint(path)) for path in paths},
    }
    temporary = directory / (MARKER + ".tmp")
    temporary.write_text(json.dumps(facts), encoding="utf-8")
    for path in (*paths, temporary):  # the marker must not reach the disk before what it vouches for
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    os.replace(temporary, directory / MARKER)


def _fingerprint(path: Path) -> tuple[int, int]:
    """Size in bytes and CRC-32 of a file."""
    size = checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return size, checksum


def complete_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The complete `checkpoint-N` directories of a run, oldest first."""
    return [path for path in all_checkpoints(output_dir) if (path / MARKER).is_file()]


def all_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """All `checkpoint-N` directories, by N; renamed ones, such as `checkpoint-4-kept`, do not count."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name[len("checkpoint-") :].isdigit()]
    return sorted((path for path in found if path.is_dir()), key=lambda path: int(path.name[len("checkpoint-") :]))


def rotate(output_dir: str | os.PathLike, limit: int | None, newest: str | os.PathLike, best: str | None) -> None:
    """Remove the oldest checkpoints but `limit`; never the newest, which must be complete, nor the best.

    Incomplete ones are removed first.
    """
    if not limit or limit < 0:
        return
    kept = {Path(path).resolve() for path in (newest, best) if path is not None}
    found = all_checkpoints(output_dir)
    others = sorted((path for path in found if path.resolve() not in kept), key=lambda path: (path / MARKER).is_file())
    for path in others[: max(len(found) - limit, 0)]:
        discard(path)


@contextmanager
def checkpoint(trainer, run_dir: str) -> Iterator[None]:
    """What all processes write inside becomes `checkpoint-N` of a run: it counts when the block is left.

    Older checkpoints are removed (`save_total_limit`) only after that.

    Raises:
        WriteError: a file could not be written, for a full disk in most cases; older checkpoints stay.
    """
    args, wait = trainer.args, trainer.accelerator.wait_for_everyone
    directory = Path(run_dir, f"checkpoint-{trainer.state.global_step}")
    if args.should_save:
        discard(directory)  # what an interrupted or an earlier run left there
    wait()
    limit, args.save_total_limit = args.save_total_limit, None  # `Trainer` would remove older ones before the marker
    student = trainer.networks()["student"]
    try:
        with beside_adapter(student, directory) if args.should_save else nullcontext():
            yield
        if not args.save_only_model:
            trainer.journal.save(directory, args.process_index, args.world_size)
            if args.should_save and trainer.learning_objective.remembers:
                torch.save(trainer.learning_objective.state_dict(), directory / MEMORY)
        wait()
        if args.should_save:
            mark_complete(directory, trainer.state.global_step, kind(trainer.settings.rule, student))
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch's writer raises a RuntimeError, and after it another one from closing the file
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        if isinstance(error, RuntimeError) and where != torch.serialization.__file__:
            raise
        first = error
        while first.__context__ is not None:
            first = first.__context__
        others = complete_checkpoints(run_dir)
        hint = f"resume from {others[-1]}" if others else "start again"
        reason = str(first).splitlines()[0].rstrip(".")
        raise WriteError(
            f"The checkpoint {directory} could not be written ({reason}); free the disk and {hint}."
        ) from error
    finally:
        args.save_total_limit = limit
    if args.should_save:
        rotate(run_dir, limit, directory, trainer.state.best_model_checkpoint)
    wait()


def to_resume(
    resume_from_checkpoint: str | bool, output_dir: str, expected: dict[str, str], remembers: bool = False
) -> str:
    """Checks and returns the checkpoint to resume from: the given one, or with True the newest complete one.

    Raises:
        UserError: there is none, or as `check`.
    """
    if resume_from_checkpoint is True:
        complete = complete_checkpoints(output_dir)
        if not complete:
            raise UserError(f"{output_dir} holds no complete checkpoint to resume from.")
        resume_from_checkpoint = str(complete[-1])
    check(resume_from_checkpoint, expected, resumes=True, remembers=remembers)
    return resume_from_checkpoint


def check(
    directory: str | os.PathLike, expected: dict[str, str], resumes: bool = False, remembers: bool = False
) -> None:
    """Make sure that a run can load weights from a checkpoint or, with `resumes`, resume from it.

    Args:
        directory: `checkpoint-N`.
        expected: the `kind` of the run.
        resumes: whether more than weights is needed.
        remembers: whether the run's objective needs its memory.

    Raises:
        MissingError: there is no such directory.
        UserError: the checkpoint is incomplete, damaged, or one of another rule or architecture, holds weights alone, or
            weights that are not finite.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise MissingError(f"The checkpoint {directory} does not exist; give the path of a checkpoint-N directory.")
    others = [path for path in complete_checkpoints(directory.parent) if path.resolve() != directory.resolve()]
    hint = f"use {others[-1]}" if others else "there is no other complete one"
    if not (directory / MARKER).is_file():
        raise UserError(f"The checkpoint {directory} is incomplete (it has no {MARKER}); {hint}.")
    try:
        facts = json.loads((directory / MARKER).read_text(encoding="utf-8"))
        files, found = facts["files"], {key: facts[key] for key in expected}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"The checkpoint {directory} is damaged: {MARKER} cannot be read; {hint}.") from error
    for key, value in expected.items():
        if found[key] != value:
            raise UserError(
                f"The checkpoint {directory} is of {key} {found[key]!r} but this run has {value!r}; resume with the "
                "same."
            )
    if resumes and "trainer_state.json" in files and "journal_0.pt" not in files:
        raise UserError(
            f"The checkpoint {directory} holds only weights (save_only_model), so no run can resume from it; give it as "
            "the model of a new run."
        )
    if remembers and MEMORY not in files:
        raise UserError(
            f"The checkpoint {directory} holds no {MEMORY}, which this run's objective needs to resume; resume with the "
            "objective that wrote it, or give it as the model of a new run."
        )
    for name, fingerprint in files.items():
        path = directory / name
        if not path.is_file():
            raise UserError(f"The checkpoint {directory} is damaged: {name} is missing; {hint}.")
        if list(_fingerprint(path)) != fingerprint:
            raise UserError(f"The checkpoint {directory} is damaged: {name} has changed since it was written; {hint}.")
    for folder in (directory, directory / TEACHER_DIR) if resumes else ():
        refuse_broken_files(folder)


def load_memory(objective: Objective, directory: str | os.PathLike, device: torch.device) -> None:
    """Restore the memory of an objective from a checkpoint that was checked."""
    if objective.remembers:
        objective.load_state_dict(torch.load(Path(directory, MEMORY), device, weights_only=True))


def save_output(accelerator: Accelerator, networks: dict[str, nn.Module], processor, directory: str) -> None:
    """Write the result of a run: the teacher as an ordinary checkpoint, and the student in `student/`.

    Without a teacher both are the student. All processes call it, those that do not write with `processor` None.
    """
    save_network(accelerator, networks.get("teacher", networks["student"]), processor, directory)
    save_network(accelerator, networks["student"], processor, os.path.join(directory, STUDENT_DIR))


def save_teacher(accelerator: Accelerator, teacher: nn.Module, processor, directory: str) -> None:
    """Write the teacher into `checkpoint-N/`, where the student is already; called like `save_output`."""
    directory = os.path.join(directory, TEACHER_DIR)
    if saves_shards(accelerator):
        save_shards(accelerator, teacher, directory)
    else:
        save_network(accelerator, teacher, processor, directory)


def save_network(accelerator: Accelerator, network: nn.Module, processor, directory: str | os.PathLike) -> None:
    """Write a network, its weights gathered, and its image processor; called like `save_output`."""
    whole = accelerator.get_state_dict(network) if is_sharded(network) else None  # all processes take part
    if processor is not None:
        if not is_adapted(network):
            for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):  # left by an earlier run; this one would be mistaken for it
                Path(directory, name).unlink(missing_ok=True)
        with beside_adapter(network, directory):
            network.save_pretrained(directory, state_dict=whole)
        processor.save_pretrained(directory)


def load_weights(accelerator: Accelerator, networks: dict[str, nn.Module], directory: str | os.PathLike) -> None:
    """Load student and teacher from a checkpoint that was checked.

    `from_pretrained` reads the files, since models are saved under other key names than their modules have.

    Raises:
        UserError: the checkpoint is one of another model.
    """
    directory = Path(directory)
    for name, network in networks.items():
        path = directory if name == "student" else directory / TEACHER_DIR
        if is_adapted(network):
            load_adapter(network, path)
            continue
        if saves_shards(accelerator):
            load_shards(accelerator, network, path)
            continue
        loaded = type(network).from_pretrained(path, dtype=network.dtype).state_dict()
        ours = network.state_dict()
        for key in sorted(loaded.keys() | ours.keys()):
            theirs, own = (tuple(s[key].shape) if key in s else "none" for s in (loaded, ours))
            if theirs != own:
                raise UserError(
                    f"The checkpoint {directory} is of another model: its {key} has shape {theirs}, that of this run "
                    f"{own}; resume with the same model and classes."
                )
        load_whole(network, loaded)
