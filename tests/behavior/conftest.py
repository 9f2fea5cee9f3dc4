"""Every test here runs for both classes, or says in its name where they differ."""

from __future__ import annotations

import pytest

from tests.behavior.both import KINDS


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param
