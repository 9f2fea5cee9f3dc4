"""Report, pictures, pushes and health are callbacks: without them a run is the same run, and leaves less behind."""

from __future__ import annotations

import logging

import pytest

from hf_fst.training.callbacks import Pushes, Report, ShortRun
from hf_fst.training.health import Health
from hf_fst.training.pictures import Pictures
from hf_fst.training.summary import planned_steps
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


@pytest.mark.parametrize(
    "callback", [Report, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (Pictures, Pushes, Health))]
)
def test_a_callback_that_is_removed_leaves_the_rest_of_the_run_as_it_was(run, callback):
    whole, left = run()
    assert all(left.values())
    trainer, left = run(without=callback)
    assert left == {kind: kind is not callback for kind in left}
    assert tiny.same(tiny.weights(trainer.model), tiny.weights(whole.model))
    assert tiny.same(tiny.weights(trainer.teacher.model), tiny.weights(whole.teacher.model))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_steps": 8}, ["The teacher remembers more steps (1000) than the run has; give teacher_memory=2."]),
        (  # 8 pairs, 2 a step
            {"max_steps": -1, "num_train_epochs": 2, "teacher_momentum": 0.99, "warmup_steps": 8},
            [
                "The warm-up of 8 steps is as long as the run, so learning_rate is never reached; give warmup_steps=0.",
                "The teacher remembers more steps (100) than the run has; give teacher_momentum=0.5.",
            ],
        ),
        ({"max_steps": 8, "teacher_memory": 8}, []),
        ({"max_steps": 8, "rule": "supervised"}, []),
    ],
)
def test_what_is_longer_than_a_run_in_python_is_a_warning(tmp_path, caplog, options, told):
    logging.getLogger("transformers").propagate = True
    trainer = tiny.trainer(tmp_path, **({"rule": "mean_teacher", "per_device_train_batch_size": 2} | options))
    (notice,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, ShortRun)]
    trainer.remove_callback(Pictures)
    steps = trainer.args.max_steps if trainer.args.max_steps > 0 else planned_steps(trainer, trainer.args)
    trainer.state.max_steps, trainer.state.is_world_process_zero = steps, True
    notice.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert [r.message for r in caplog.records if "the run" in r.message] == told
