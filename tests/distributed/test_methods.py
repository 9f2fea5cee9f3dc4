"""Other methods' objectives on two processes of two images are those on one of four."""

from __future__ import annotations

import pytest

from tests import tiny
from tests.distributed.methods import RUNS, everything
from tests.processes import held_by_two

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes holds after its runs."""
    return held_by_two("tests.distributed.methods", tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process holds."""
    return everything(tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("run", [f"{name}, {rule} x{n}" for name, rule, n in RUNS])
def test_two_processes_of_two_images_are_one_of_four(two, one, run):
    for network in ("student", "teacher"):
        assert tiny.same(two[0][run][network], two[1][run][network])
        assert tiny.distance(two[0][run][network], one[run][network]) < 1e-12
