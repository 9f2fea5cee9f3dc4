"""Checkpoints that are damaged, of another run or cannot be written: one sentence, and nothing is overwritten."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import zlib

import pytest
import torch
from safetensors import SafetensorError

from hf_fst.training import checkpoints
from tests import tiny
from tests.device import USE_CPU
from tests.faults.killed import ended, forked


def options(**changes):
    return {
        "rule": "mean_teacher",
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 0.05,
        **changes,
    }


def contents(directory) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run with two complete checkpoints."""
    directory = tmp_path_factory.mktemp("run")
    tiny.trainer(directory, **options()).train()
    return directory


@pytest.fixture
def run(original, tmp_path):
    """A copy of it that may be spoiled."""
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def refused(run, checkpoint=True, network=None, **changes) -> str:
    """The sentence with which a resume is refused, before anything is written."""
    before = contents(run)
    trainer = tiny.trainer(run, network, **options(max_steps=4, **changes))
    start = tiny.weights(trainer.model)
    with pytest.raises(ValueError) as error:
        trainer.train(resume_from_checkpoint=checkpoint)
    assert contents(run) == before and tiny.same(start, tiny.weights(trainer.model))
    assert "\n" not in str(error.value)
    return str(error.value)


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def empty(path):
    path.write_bytes(b"")


FILES = ["model.safetensors", "teacher/model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
FILES += ["trainer_state.json", "journal_0.pt", "teacher/config.json"]


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named_and_nothing_is_overwritten(run, file):
    last, older = run / "checkpoint-2", run / "checkpoint-1"
    for damage in (cut_off, flip, empty):
        kept = (last / file).read_bytes()
        damage(last / file)
        sentence = f"The checkpoint {last} is damaged: {file} has changed since it was written; use {older}."
        assert refused(run) == refused(run, str(last)) == sentence
        (last / file).write_bytes(kept)
    (last / file).unlink()
    assert refused(run) == f"The checkpoint {last} is damaged: {file} is missing; use {older}."
    # the one that is named does
    trainer = tiny.trainer(run, **options(max_steps=2))
    trainer.train(resume_from_checkpoint=str(older))
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("content", [b"", b'{"step": 2', b"[]", b'{"step": 2}', b"\xff\x00"])
def test_a_damaged_marker_is_named(run, content):
    (run / "checkpoint-2/complete.json").write_bytes(content)
    assert refused(run) == (
        f"The checkpoint {run}/checkpoint-2 is damaged: complete.json cannot be read; use {run}/checkpoint-1."
    )


def test_a_checkpoint_without_marker_does_not_count(run):
    (run / "checkpoint-2/complete.json").unlink()
    assert refused(run, str(run / "checkpoint-2")) == (
        f"The checkpoint {run}/checkpoint-2 is incomplete (it has no complete.json); use {run}/checkpoint-1."
    )
    trainer = tiny.trainer(run, **options(max_steps=2))
    trainer.train(resume_from_checkpoint=True)  # told only to resume, it takes the last complete one
    assert checkpoints.complete_checkpoints(run) == [run / "checkpoint-1", run / "checkpoint-2"]
    (run / "checkpoint-1/complete.json").unlink()
    (run / "checkpoint-2/complete.json").unlink()
    assert refused(run) == f"{run} holds no complete checkpoint to resume from."
    assert refused(run, str(run / "checkpoint-1")) == (
        f"The checkpoint {run}/checkpoint-1 is incomplete (it has no complete.json); there is no other complete one."
    )


def test_a_checkpoint_that_does_not_exist_is_named(run):
    with pytest.raises(FileNotFoundError) as error:
        tiny.trainer(run, **options()).train(resume_from_checkpoint=str(run / "checkpoint-3"))
    assert str(error.value) == (
        f"The checkpoint {run}/checkpoint-3 does not exist; give the path of a checkpoint-N directory."
    )


def test_a_checkpoint_of_another_rule_or_model_is_named(run):
    from tests.architectures import make

    last = run / "checkpoint-2"
    assert refused(run, rule="fst_d") == (
        f"The checkpoint {last} is of rule 'mean_teacher' but this run has 'fst_d'; resume with the same."
    )
    assert refused(run, network=make("segformer")) == (
        f"The checkpoint {last} is of model_type 'tiny_segmenter' but this run has 'segformer'; resume with the same."
    )
    assert refused(run, network=tiny.model(width=8)) == (
        f"The checkpoint {last} is of another model: its head.weight has shape (3, 4, 1, 1), that of this run "
        "(3, 8, 1, 1); resume with the same model and classes."
    )
    torch.manual_seed(0)
    more_classes = tiny.TinySegmenter(tiny.TinyConfig(num_labels=5)).double()
    assert refused(run, network=more_classes) == (
        f"The checkpoint {last} is of another model: its head.bias has shape (3,), that of this run (5,); resume with "
        "the same model and classes."
    )
    assert refused(run, network=tiny.model(batch_norm=True)) == (
        f"The checkpoint {last} is of another model: its norm.bias has shape none, that of this run (4,); resume with "
        "the same model and classes."
    )


def test_a_checkpoint_of_weights_alone_is_no_place_to_go_on_from(tmp_path):
    tiny.trainer(tmp_path, **options(save_only_model=True, max_steps=1)).train()
    assert refused(tmp_path) == (
        f"The checkpoint {tmp_path}/checkpoint-1 holds only weights (save_only_model), so no run can resume from "
        "it; give it as the model of a new run."
    )


def test_files_that_a_user_adds_to_a_checkpoint_do_no_harm(run):
    (run / "checkpoint-2/notes.txt").write_text("the good one")
    trainer = tiny.trainer(run, **options(max_steps=3))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


def no_space(*arguments, **named):
    raise OSError(errno.ENOSPC, "No space left on device", "optimizer.pt")


def no_space_for_weights(*arguments, **named):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("target", "failure", "reason"),
    [
        ("torch.save", no_space, "[Errno 28] No space left on device: 'optimizer.pt'"),
        (
            "transformers.modeling_utils.safe_save_file",
            no_space_for_weights,
            "Error while serializing: I/O error: No space left on device (os error 28)",
        ),
        ("os.replace", no_space, "[Errno 28] No space left on device: 'optimizer.pt'"),
    ],
)
def test_a_full_disk_ends_the_run_with_one_sentence_and_older_checkpoints_stay(
    run, monkeypatch, target, failure, reason
):
    before = contents(run)
    trainer = tiny.trainer(run, **options(max_steps=3, save_total_limit=1))
    monkeypatch.setattr(target, failure)
    with pytest.raises(OSError) as error:
        trainer.train(resume_from_checkpoint=True)
    assert str(error.value) == (
        f"The checkpoint {run}/checkpoint-3 could not be written ({reason}); free the disk and resume from "
        f"{run}/checkpoint-2."
    )
    after = contents(run)
    assert {name: after[name] for name in before} == before
    monkeypatch.undo()
    again = tiny.trainer(run, **options(max_steps=3, save_total_limit=1))
    again.train(resume_from_checkpoint=True)
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]


@pytest.mark.skipif(not USE_CPU, reason="forks, and a fork cannot use the GPU of its parent")
@pytest.mark.parametrize("limit", [700, 2500, 7000])
def test_a_file_that_cannot_grow_is_told_by_the_writers_themselves(tmp_path, limit):
    """The system's own limit: torch, safetensors and Python each fail in their way."""

    def work():
        trainer = tiny.trainer(tmp_path / "run", **options(max_steps=1))
        most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most[1]))
        with pytest.raises(OSError) as error:
            trainer.train()
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
        return str(error.value)

    assert ended(forked(work, tmp_path / "answer")) == 0
    sentence = (tmp_path / "answer").read_text()
    assert sentence.startswith(f"The checkpoint {tmp_path}/run/checkpoint-1 could not be written (")
    assert sentence.endswith("); free the disk and start again.") and "\n" not in sentence


def test_a_half_removed_checkpoint_does_not_count(run, monkeypatch):
    def interrupted(directory):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.discard(run / "checkpoint-1")
    assert checkpoints.complete_checkpoints(run) == [run / "checkpoint-2"]


def test_the_newest_and_the_best_are_kept_and_what_was_left_incomplete_goes_first(tmp_path):
    for number in (1, 2, 3, 9, 10):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}/complete.json").write_text(json.dumps({}))
    (tmp_path / "checkpoint-3-kept").mkdir()
    (tmp_path / "checkpoint-9/complete.json").unlink()

    def rotate(limit, newest, best=None):
        checkpoints.rotate(tmp_path, limit, tmp_path / newest, best and str(tmp_path / best))
        return sorted(path.name.removeprefix("checkpoint-") for path in tmp_path.iterdir())

    everything = ["1", "10", "2", "3", "3-kept", "9"]
    assert rotate(None, "checkpoint-3") == rotate(0, "checkpoint-3") == rotate(5, "checkpoint-3") == everything
    assert rotate(4, "checkpoint-3") == ["1", "10", "2", "3", "3-kept"]
    assert rotate(3, "checkpoint-3", "checkpoint-1") == ["1", "10", "3", "3-kept"]
    # a run that went on from an older one keeps what it has just written
    assert rotate(1, "checkpoint-3", "checkpoint-1") == ["1", "3", "3-kept"]
    assert rotate(1, "checkpoint-3") == ["3", "3-kept"]


def test_the_checksum_is_of_a_whole_file_however_long(tmp_path):
    content = bytes(range(256)) * (3 << 12) + b"end"  # three pieces of a megabyte and a bit
    (tmp_path / "long.bin").write_bytes(content)
    checkpoints.mark_complete(tmp_path, 1, {"rule": "fst_d", "model_type": "tiny"})
    facts = json.loads((tmp_path / "complete.json").read_text())
    assert facts["files"]["long.bin"] == [len(content), zlib.crc32(content)]


def test_what_an_interrupted_save_left_is_no_part_of_the_next_one(tmp_path):
    left = tmp_path / "checkpoint-1"
    left.mkdir()
    (left / "half.bin").write_text("half")
    tiny.trainer(tmp_path, **options(max_steps=1, save_steps=1)).train()
    assert (left / "complete.json").is_file() and not (left / "half.bin").exists()
    assert "half.bin" not in json.loads((left / "complete.json").read_text())["files"]
