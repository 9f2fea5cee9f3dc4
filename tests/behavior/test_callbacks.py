"""Callbacks: which events come, in which order, with what, and what they may ask for."""

from __future__ import annotations

import pytest
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from tests.behavior.both import Recorder, images, make

STEP = ["on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"]
EVALUATION = ["on_prediction_step", "on_prediction_step", "on_log", "on_evaluate"]


def test_events_come_in_the_order_of_the_documentation(tmp_path, kind):
    recorder = Recorder()
    trainer = make(
        kind,
        tmp_path,
        trainer_options={"callbacks": [recorder]},
        evaluation=images(3),
        max_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        logging_strategy="steps",
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
    )
    assert recorder.events == ["on_init_end"]
    trainer.train()
    assert recorder.events[1:] == [
        *("on_train_begin", "on_epoch_begin"),
        *(*STEP, "on_log"),
        *(*STEP, "on_log", *EVALUATION, "on_save"),
        *("on_epoch_end", "on_log", "on_train_end"),
    ]


def test_events_are_called_with_the_networks_optimizer_schedule_and_loaders(tmp_path, kind):
    recorder = Recorder()
    trainer = make(kind, tmp_path, trainer_options={"callbacks": [recorder]}, max_steps=1)
    trainer.train()
    for name, args, state, control, kwargs, _ in recorder.calls:
        assert args is trainer.args
        if name == "on_init_end":
            continue
        assert (state, control) == (trainer.state, trainer.control)
        assert kwargs["model"] is trainer.model and kwargs["optimizer"] is trainer.optimizer
        assert kwargs["lr_scheduler"] is trainer.lr_scheduler and len(kwargs["train_dataloader"]) == 2
        known = {"model", "processing_class", "optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader"}
        assert kwargs.keys() == known | ({"logs"} if name == "on_log" else set())


@pytest.mark.parametrize("wish", ["should_log", "should_evaluate", "should_save"])
def test_a_callback_may_ask_for_a_log_an_evaluation_or_a_checkpoint(tmp_path, kind, wish):
    class Ask(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            setattr(control, wish, state.global_step == 2)

    recorder = Recorder()
    trainer = make(kind, tmp_path, trainer_options={"callbacks": [Ask(), recorder]}, evaluation=images(2), max_steps=3)
    trainer.train()
    event = {"should_log": "on_log", "should_evaluate": "on_evaluate", "should_save": "on_save"}[wish]
    # whoever logs, logs at the end as well
    assert [call[5] for call in recorder.calls if call[0] == event][:1] == [2]
    assert (tmp_path / "checkpoint-2").is_dir() == (wish == "should_save")


def test_a_callback_may_stop_the_run(tmp_path, kind):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    trainer = make(kind, tmp_path, trainer_options={"callbacks": [Stop()]}, max_steps=9)
    assert trainer.train().global_step == 3


def test_a_callback_may_end_an_epoch_and_the_next_has_other_images(tmp_path, kind):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = True

    seen = []

    class Look(list):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    trainer = make(
        kind,
        tmp_path,
        trainer_options={"callbacks": [Stop()]},
        train=Look(images(32)),
        num_train_epochs=3,
        per_device_train_batch_size=8,
    )
    assert trainer.train().global_step == 3
    # a loader reads one batch ahead
    epochs = [frozenset(seen[i : i + 8]) for i in range(0, len(seen), 16)]
    assert len(epochs) == len(set(epochs)) == 3


def test_callbacks_are_added_removed_and_popped(tmp_path, kind):
    trainer = make(kind, tmp_path, max_steps=1)
    recorder = Recorder()
    trainer.add_callback(recorder)
    assert trainer.pop_callback(Recorder) is recorder
    trainer.add_callback(Recorder)
    trainer.remove_callback(Recorder)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert recorder.events == []
    assert not any(isinstance(c, Recorder | PrinterCallback) for c in trainer.callback_handler.callbacks)
