"""Guesses at what a user meant."""

import pytest

from hf_fst.errors import Gathered, UserError, did_you_mean

COMMANDS = ("train", "eval", "predict", "label", "push")
OPTIONS = ("--resize", "--batch_size", "--window", "--stride", "--scales")


@pytest.mark.parametrize(
    ("given", "accepted", "meant"),
    [
        ("trian", COMMANDS, "train"),
        ("EVAL", COMMANDS, "eval"),
        ("--batch-size", OPTIONS, "--batch_size"),
        ("--windw", OPTIONS, "--window"),
        ("citiscapes", ("cityscapes", "camvid"), "cityscapes"),
    ],
)
def test_a_slip_is_understood(given, accepted, meant):
    assert did_you_mean(given, accepted) == f"did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("given", "accepted"),
    [("device", ("resize",)), ("--device", OPTIONS), ("x", COMMANDS), ("", COMMANDS), ("optimizer", ("eval", "push"))],
)
def test_another_word_is_not_guessed_at(given, accepted):
    assert did_you_mean(given, accepted) == f"use one of {', '.join(accepted)}."
    assert did_you_mean(given, accepted, "see --help.") == "see --help."


def test_a_fault_of_ours_after_one_of_the_user_does_not_hide_it():
    faults = Gathered()
    with faults:
        raise UserError("There is no folder a.")
    with pytest.raises(UserError, match="There is no folder a.") as caught, faults:
        [][0]
    assert isinstance(caught.value.__context__, IndexError)
    with pytest.raises(IndexError), Gathered():
        [][0]
