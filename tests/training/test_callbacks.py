"""Report, pictures, pushes and health are callbacks: without them a run is the same run, and leaves less behind."""

from __future__ import annotations

import pytest

from hf_fst.training.callbacks import Pushes, Report
from hf_fst.training.health import Health
from hf_fst.training.pictures import Pictures
from tests import tiny


@pytest.fixture
def run(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr("hf_fst.training.callbacks.push_checkpoint", lambda trainer, folder: pushed.append(folder))

    def train(without=None):
        folder = tmp_path / ("whole" if without is None else without.__name__)
        often = {"save_strategy": "steps", "save_steps": 1, "logging_strategy": "steps", "logging_steps": 1}
        trainer = tiny.trainer(folder, rule="fst_d", report=True, picture_steps=1, max_steps=2, **often)
        if without is not None:
            trainer.remove_callback(without)
        pushed.clear()
        trainer.train()
        left = {
            Report: (folder / "README.md").is_file(),
            Pictures: (folder / "pictures" / "step-1.png").is_file(),
            Pushes: pushed == [str(folder)] * 2,
            Health: any("pseudo_confidence" in entry for entry in trainer.state.log_history),
        }
        return trainer, left

    return train


@pytest.mark.parametrize("callback", [Report, Pictures, Pushes, Health])
def test_a_callback_that_is_removed_leaves_the_rest_of_the_run_as_it_was(run, callback):
    whole, left = run()
    assert all(left.values())
    trainer, left = run(without=callback)
    assert left == {kind: kind is not callback for kind in left}
    assert tiny.same(tiny.weights(trainer.model), tiny.weights(whole.model))
    assert tiny.same(tiny.weights(trainer.teacher.model), tiny.weights(whole.teacher.model))
