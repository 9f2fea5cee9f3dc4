"""The table of equivalences names tests that exist, and the page on exactness names their files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.equivalences import EQUIVALENCES

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("row", EQUIVALENCES, ids=lambda row: row[0])
def test_an_equivalence_is_shown_by_a_test_that_exists(row):
    *_, closeness, reason, node = row
    file, _, name = node.partition("::")
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert reason
    assert re.search(rf"^def {name or 'test_'}", text, flags=re.M)
    # a tolerance is that of the test or looser, never one that it does not ask for
    assert closeness in ("bitwise", "float32 rounding") or 0 < closeness <= 1e-9


@pytest.mark.parametrize("file", sorted({node.partition("::")[0] for *_, node in EQUIVALENCES}))
def test_the_page_on_exactness_names_the_file(file):
    assert f"`tests/{file}`" in (ROOT / "docs" / "exactness.md").read_text(encoding="utf-8")
