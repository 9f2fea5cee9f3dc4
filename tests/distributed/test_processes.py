"""Two processes of two images are one of four, and the processes never drift apart."""

from __future__ import annotations

import pytest

from tests import tiny
from tests.distributed.worker import ACCUMULATION, RULES, everything
from tests.processes import held_by_two

pytestmark = pytest.mark.distributed
RUNS = [f"{name} x{n}" for name in RULES for n in ACCUMULATION]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes holds after its runs."""
    return held_by_two("tests.distributed.worker", tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process holds."""
    return everything(tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("run", [*RUNS, "spoiled", "batch norm", "adamw, carried"])
def test_the_processes_hold_the_same_student_and_teacher(two, run):
    for network in ("student", "teacher"):
        assert tiny.same(two[0][run][network], two[1][run][network])


@pytest.mark.parametrize("run", [*RUNS, "adamw, carried"])
def test_two_processes_of_two_images_are_one_of_four(two, one, run):
    for network in ("student", "teacher"):
        assert tiny.distance(two[0][run][network], one[run][network]) < 1e-12
    assert two[0][run]["losses"] == [pytest.approx(losses, abs=1e-9) for losses in one[run]["losses"]]


@pytest.mark.parametrize("name", RULES)
def test_evaluation_counts_each_image_once_on_any_number_of_processes(two, one, name):
    run = f"{name} x1"
    assert two[0][run]["metrics"] == two[1][run]["metrics"]
    assert two[0][run]["metrics"] == pytest.approx(one[run]["metrics"], abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", [name for name in RULES if name != "supervised"])
def test_health_is_counted_over_the_processes(two, one, name):
    # at accumulation 1 the first micro-batches of both processes are the images of the single one
    run = f"{name} x1"
    for together, single in zip(two[0][run]["health"], one[run]["health"], strict=True):
        assert single and together == pytest.approx(single, abs=1e-9, nan_ok=True)


def test_a_batch_that_is_not_finite_on_one_process_is_skipped_by_both(two, one):
    assert two[0]["spoiled"]["skipped"] == two[1]["spoiled"]["skipped"] == one["spoiled"]["skipped"]
    assert 0 < one["spoiled"]["skipped"]["real"] < 4
    assert tiny.distance(two[0]["spoiled"]["teacher"], one["spoiled"]["teacher"]) < 1e-12
