"""A server at the address that the environment gives the Hub's client, and a client that does not wait to try again."""

from __future__ import annotations

import os
import time
from urllib.parse import urlsplit

import pytest

from .server import Hub


@pytest.fixture(scope="session")
def hub():
    with Hub(urlsplit(os.environ["HF_ENDPOINT"]).port) as server:
        yield server


@pytest.fixture
def no_waiting(monkeypatch, hub):
    """The client waits up to 8 s before it tries again; faults are of one test alone."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.faults.clear()
