"""A run that is interrupted and resumed is the run that was not: student, teacher, optimizer and log, bit for bit."""

from __future__ import annotations

import itertools

import pytest

from tests import tiny
from tests.invariants.resumed import CASES, Case, assert_same, both, run
from tests.processes import held_by_two

FAST = CASES[:3]
LONG = [case for case in CASES[3:] if case.processes == 1]
TWO = [case for case in CASES if case.processes == 2]


def name_of(case: Case) -> str:
    return "-".join(str(value) for value in case)


def test_each_pair_of_settings_occurs_in_some_case():
    for a, b in itertools.combinations(range(len(Case._fields)), 2):
        columns = [{case[i] for case in CASES} for i in (a, b)]
        assert {(case[a], case[b]) for case in CASES} == set(itertools.product(*columns))
    assert all(len({case[i] for case in CASES}) > 1 for i in range(len(Case._fields)))


@pytest.mark.parametrize("case", FAST, ids=name_of)
def test_resumed_run_is_the_uninterrupted_run(tmp_path, case):
    assert_same(*both(tmp_path, case))


@pytest.mark.slow
@pytest.mark.parametrize("case", LONG, ids=name_of)
def test_resumed_run_is_the_uninterrupted_run_for_every_pair_of_settings(tmp_path, case):
    assert_same(*both(tmp_path, case))


@pytest.mark.parametrize("objective", ["pseudo_label", "entropy_drop"])
def test_resumed_run_is_the_uninterrupted_run_as_the_authors_code_trains(tmp_path, objective):
    assert_same(*both(tmp_path, CASES[0], preset="official", objective=objective))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes holds after its runs."""
    return held_by_two("tests.invariants.resumed", tmp_path_factory.mktemp("two"))


@pytest.mark.distributed
@pytest.mark.parametrize("case", TWO, ids=name_of)
def test_resumed_run_is_the_uninterrupted_run_on_two_processes(two, case):
    for rank in (0, 1):
        assert_same(*two[rank][CASES.index(case)])


def test_the_number_of_workers_does_not_matter(tmp_path):
    case = Case("segformer", "fst_w", "inside")
    none, one = (run(tmp_path, case, dataloader_num_workers=n) for n in (0, 1))
    assert_same(none, one)


def test_a_step_that_was_skipped_before_an_interruption_is_remembered_after_it(tmp_path):
    """Two of three bad steps in a row come before it, so that the third, after it, stops the run."""
    spoiled = tiny.images(2, 1)
    for item in spoiled:
        item["pixel_values"][:] = float("nan")
    options = {
        "sets": (spoiled, tiny.images(2, 2, labels=False)),
        "rule": "fst_d",
        "lookahead_steps": 1,
        "max_nonfinite_steps": 3,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    with pytest.raises(RuntimeError, match="not finite for 3 steps in a row .last: step 3,"):
        tiny.trainer(tmp_path, **options).train()
    resumed = tiny.trainer(tmp_path, **options)
    with pytest.raises(RuntimeError, match="not finite for 3 steps in a row .last: step 3,"):
        resumed.train(resume_from_checkpoint=True)
    # two real and two virtual ones before, one of each after it
    assert resumed.journal.skipped == {"real": 3, "virtual": 3}
