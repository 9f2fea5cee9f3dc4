"""How a command ends: its exit code, one sentence, or a traceback that asks for a report."""

from __future__ import annotations

import errno
import sys
from email import message_from_string

import numpy as np
import pytest
import torch

from hf_fst import cli
from hf_fst.commands import outcome


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (lambda *args: np.zeros(2) + np.zeros(3), "ValueError: operands could not be broadcast"),
        (lambda *args: max([]), "ValueError: max() "),
        (lambda *args: torch.zeros(2) + torch.zeros(3), "RuntimeError: The size of tensor a (2) must match"),
        (lambda *args: [].index(1), "ValueError: 1 is not in list"),
    ],
)
def test_a_fault_of_ours_keeps_its_traceback_and_asks_for_a_report(capsys, monkeypatch, fault, line):
    monkeypatch.setattr("hf_fst.recipes.load.load_recipe", fault)
    assert cli.main(["train", "folders"]) == 1
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error and f"\n{line}" in error
    assert error.splitlines()[-1] == (
        f"hf-fst: This error is not expected; please report it to {outcome.tracker()} with the lines above."
    )


@pytest.mark.parametrize(
    ("metadata", "place"),
    [
        ("Project-URL: Issues, https://example.org/issues\n", "https://example.org/issues"),
        ("Project-URL: Documentation, https://example.org\n", "the project's issue tracker"),
        ("", "the project's issue tracker"),
    ],
)
def test_the_tracker_is_the_address_of_the_package_if_it_has_one(monkeypatch, metadata, place):
    monkeypatch.setattr(outcome.importlib.metadata, "metadata", lambda name: message_from_string(metadata))
    assert outcome.tracker() == place


def test_a_full_accelerator_is_nobodys_bug(says, monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("hf_fst.recipes.load.load_recipe", full)
    assert says(["train", "folders"], 1).startswith("The memory of the accelerator is full; take smaller crops")


def test_of_several_processes_the_first_alone_ends_with_a_failure_of_files(capsys, monkeypatch):
    monkeypatch.setattr("hf_fst.recipes.load.load_recipe", lambda *args: None)
    monkeypatch.setattr("hf_fst.recipes.run.run", lambda *args, **options: {"failed": [{"file": "a", "reason": "b"}]})
    for rank, code in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["train", "folders"]) == code


def test_an_error_of_any_kind_asks_for_a_report(capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back afterwards
    monkeypatch.setattr("hf_fst.recipes.load.load_recipe", lambda *a, **k: {}["nothing"])
    with pytest.raises(KeyError) as caught:
        cli.main(["train", "folders"])
    sys.excepthook(KeyError, caught.value, caught.value.__traceback__)  # as Python does where nobody catches it
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error and "KeyError: 'nothing'" in error
    assert error.splitlines()[-1].startswith("hf-fst: This error is not expected; please report it to ")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/data/runs"),
            "Permission denied: /data/runs; make room or choose another place.",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left on device: where the command writes; make room or choose another place.",
        ),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "a.txt/out"),
            "Not a directory: a.txt/out; make room or choose another place.",
        ),
    ],
)
def test_a_place_that_cannot_be_written_to_is_one_sentence(says, monkeypatch, error, sentence):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("hf_fst.recipes.load.load_recipe", fail)
    assert says(["train", "folders"], 1) == sentence


def test_ctrl_c_is_one_word_and_code_130(says, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_fst.recipes.load.load_recipe", stop)
    assert says(["train", "folders"], 130) == "Stopped."


def test_debug_shows_the_traceback_of_our_own_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no recipe"):
        cli.main(["train", str(tmp_path / "none.yaml"), "--debug"])


def test_processes_of_one_launch_say_a_sentence_once(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(outcome.tempfile, "gettempdir", lambda: str(tmp_path))
    for sentence in ("It is wrong.", "It is wrong.", "It is very wrong."):
        outcome.say(sentence)
    assert capsys.readouterr().err == "hf-fst: It is wrong.\nhf-fst: It is very wrong.\n"
