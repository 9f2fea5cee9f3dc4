"""Layout of a run's directory: what makes a checkpoint complete, and how weights come back from one.

`output_dir/` is the teacher, `output_dir/student/` the student. `checkpoint-N/` is the student, with the teacher in
`teacher/`; it is complete when its marker, written last, is there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

TEACHER_DIR, STUDENT_DIR, MARKER = "teacher", "student", "complete.json"


def mark_incomplete(directory: str | os.PathLike) -> None:
    """Remove the marker, if any: a checkpoint that is written anew does not count until it is whole."""
    Path(directory, MARKER).unlink(missing_ok=True)


def mark_complete(directory: str | os.PathLike, trainer) -> None:
    """Write the marker: from now on this checkpoint counts."""
    facts = {"step": trainer.state.global_step, "rule": trainer.args.rule, "model_type": model_type(trainer.model)}
    temporary = Path(directory, MARKER + ".tmp")
    temporary.write_text(json.dumps(facts))
    os.replace(temporary, Path(directory, MARKER))


def model_type(model) -> str:
    """The architecture's name in its config."""
    return model.config.model_type


def complete_checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The complete `checkpoint-N` directories of a run, oldest first."""
    found = [path.parent for path in Path(output_dir).glob(f"checkpoint-*/{MARKER}")]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def load_weights(trainer, directory: str | os.PathLike) -> None:
    """Load student and teacher from a complete checkpoint.

    `from_pretrained` reads the files, since models are saved under other key names than their modules have.

    Raises:
        ValueError: the checkpoint is incomplete, or one of another model or rule.
    """
    directory = Path(directory)
    if not (directory / MARKER).is_file():
        complete = complete_checkpoints(directory.parent)
        hint = f"use {complete[-1]}" if complete else "there is no complete one beside it"
        raise ValueError(f"The checkpoint {directory} is incomplete (it has no {MARKER}); {hint}.")
    facts = json.loads((directory / MARKER).read_text())
    networks = trainer.networks()
    ours = {"rule": trainer.args.rule, "model_type": model_type(networks["student"])}
    for key, value in ours.items():
        if facts[key] != value:
            raise ValueError(
                f"The checkpoint {directory} is of {key} {facts[key]!r} but this run has {value!r}; resume with the same."
            )
    for name, network in networks.items():
        path = directory if name == "student" else directory / TEACHER_DIR
        loaded = type(network).from_pretrained(path, dtype=network.dtype)
        network.load_state_dict(loaded.state_dict())
