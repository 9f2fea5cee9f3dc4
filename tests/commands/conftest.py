"""What tests of several commands need."""

from __future__ import annotations

import pytest

from hf_fst import cli
from tests.data import trees


@pytest.fixture
def camvid(tmp_path):
    """The folder of a tiny CamVid and the recipe keys for it."""
    trees.camvid(tmp_path / "camvid")
    return {"dataset": "camvid", "data_dir": str(tmp_path / "camvid"), "labeled": 2, "objective": "cut_mix"}


@pytest.fixture
def says(capsys):
    """Runs a command that must fail with `code` and gives the one sentence it says."""

    def run(argv: list[str], code: int) -> str:
        capsys.readouterr()
        assert cli.main(argv) == code
        sentences = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-fst: ")]
        assert len(sentences) == 1
        return sentences[0].removeprefix("hf-fst: ")

    return run
