"""Killed while it writes a checkpoint, or at any moment, a run goes on as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from tests.device import USE_CPU
from tests.faults.killed import ended, forked, killed_at, resumed, train, uninterrupted, writes_of_a_checkpoint

pytestmark = pytest.mark.skipif(not USE_CPU, reason="forks, and a fork cannot use the GPU of its parent")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(place):
    """Digest and seconds of the run that nobody stops."""
    return uninterrupted(place)


@pytest.fixture(scope="module")
def writes(place, whole):
    return writes_of_a_checkpoint(place)


def test_the_marker_is_written_last_and_older_checkpoints_go_after_it(writes):
    new, old = "checkpoint-4/", "checkpoint-2"
    marker = writes.index(f"os.rename {new}complete.json.tmp")
    written = {line.removeprefix(f"write {new}") for line in writes[:marker] if line.startswith(f"write {new}")}
    assert written == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "training_args.bin"),
        *("teacher/config.json", "teacher/model.safetensors", "teacher/preprocessor_config.json"),
        *("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "journal_0.pt", "complete.json.tmp"),
    }
    assert not any(old in line for line in writes[: marker + 1])
    # an old one stops counting before any of its files is gone
    assert writes[marker + 1] == f"os.remove {old}/complete.json" and len(writes) > marker + 10


def ends_as_if_nothing_happened(place, whole, writes, number, half):
    left = killed_at(place, number, half)
    marker = writes.index("os.rename checkpoint-4/complete.json.tmp")
    assert left == (["checkpoint-2"] if number <= marker else ["checkpoint-2", "checkpoint-4"][number > marker + 1 :])
    assert resumed(place) == whole[0]


@pytest.mark.parametrize("where", ["write checkpoint-4/teacher/model", "os.rename", "os.remove checkpoint-2/complete"])
def test_killed_around_the_marker_a_run_goes_on_as_if_nothing_happened(place, whole, writes, where):
    number = next(i for i, line in enumerate(writes) if line.startswith(where))
    ends_as_if_nothing_happened(place, whole, writes, number, half=True)


def test_killed_after_its_last_checkpoint_a_run_ends_as_if_nothing_happened(place, whole):
    child = forked(lambda: train(place / "run") and os.kill(os.getpid(), signal.SIGKILL), place / "answer")
    assert ended(child) == -signal.SIGKILL
    assert resumed(place) == whole[0]


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True], ids=["before", "half-way"])
def test_killed_at_every_write_of_a_checkpoint_a_run_goes_on_as_if_nothing_happened(place, whole, writes, half):
    numbers = [i for i, line in enumerate(writes) if not half or line.startswith("write")]
    assert len(numbers) >= 13
    for number in numbers:
        ends_as_if_nothing_happened(place, whole, writes, number, half)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_a_run_goes_on_as_if_nothing_happened(place, whole):
    draw, killed, longest = random.Random(0), 0, whole[1]
    while killed < 20:
        child, begun = forked(lambda: train(place / "run"), place / "answer"), time.monotonic()
        time.sleep(draw.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        if ended(child) == -signal.SIGKILL:
            killed += 1
        else:  # it was through: runs take less time than was thought
            longest = 0.9 * min(longest, time.monotonic() - begun)
        assert resumed(place) == whole[0]
