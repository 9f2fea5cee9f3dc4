"""Publishing, through the real client of the Hub against a server on loopback.

The client reads its address when it is imported, so the scenarios run in a process of their own, with that address in
the environment.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .server import TOKEN

HERE = Path(__file__).parent


@pytest.mark.slow
def test_scenarios_pass_against_a_hub_on_loopback(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTEST_"))}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_DATASETS_CACHE": str(Path(os.environ.get("HF_DATASETS_CACHE", tmp_path / "datasets"))),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["--basetemp", str(tmp_path / "runs"), *map(str, sorted(HERE.glob("scenarios_*.py")))]
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
