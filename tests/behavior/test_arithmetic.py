"""How many steps a run has, and where in an epoch it is."""

from __future__ import annotations

import pytest

from tests.behavior.both import Recorder, images, make

# images, batch size, accumulation, epochs, steps: each epoch has ⌈images / (batch size · accumulation)⌉
CASES = [
    (4, 2, 1, 1, 2),
    (4, 2, 2, 3, 3),
    (5, 2, 1, 2, 6),
    (5, 2, 2, 2, 4),
    (5, 1, 3, 1, 2),
    (7, 2, 2, 1.5, 3),
    (6, 4, 1, 0.5, 1),
    (3, 8, 2, 2, 2),
]


@pytest.mark.parametrize(("count", "batch", "accumulation", "epochs", "steps"), CASES)
def test_epochs_make_steps(tmp_path, kind, count, batch, accumulation, epochs, steps):
    trainer = make(
        kind,
        tmp_path,
        train=images(count),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
    )
    assert trainer.train().global_step == trainer.state.max_steps == steps


@pytest.mark.parametrize(("limit", "epochs"), [(1, 1), (3, 2), (7, 4)])
def test_max_steps_go_before_epochs(tmp_path, kind, limit, epochs):
    trainer = make(kind, tmp_path, max_steps=limit, num_train_epochs=9)
    assert trainer.train().global_step == limit
    assert trainer.state.num_train_epochs == epochs
    assert trainer.state.epoch == limit / 2


def test_an_epoch_of_whole_groups_is_where_it_says(tmp_path, kind):
    trainer = make(kind, tmp_path, train=images(8), gradient_accumulation_steps=2, num_train_epochs=2)
    recorder = Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    assert [round(e["epoch"], 6) for e in trainer.state.log_history] == [2]
    assert recorder.events.count("on_substep_end") == 4 and recorder.events.count("on_step_end") == 4


def test_exception_an_epoch_of_fst_trainer_is_rounded_up_to_whole_groups(tmp_path, kind):
    """Five images in groups of four: Trainer ends with one image, FSTTrainer draws three once more."""
    recorder = Recorder()
    trainer = make(
        kind,
        tmp_path,
        train=images(5),
        gradient_accumulation_steps=2,
        trainer_options={"callbacks": [recorder]},
        logging_strategy="steps",
        logging_steps=1,
    )
    trainer.train()
    expected = {"Trainer": (3, 1, 2 / 3), "FSTTrainer": (4, 2, 1 / 2)}[kind]
    loader = recorder.calls[-1][4]["train_dataloader"]
    first = trainer.state.log_history[0]["epoch"]
    assert (len(loader), recorder.events.count("on_substep_end"), first) == pytest.approx(expected)
    assert trainer.state.epoch == 1


def test_every_image_comes_once_an_epoch(tmp_path, kind):
    seen = []

    class Look(list):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    make(kind, tmp_path, train=Look(images(8)), num_train_epochs=2).train()
    assert sorted(seen[:8]) == sorted(seen[8:]) == list(range(8)) and seen[:8] != seen[8:]
