"""When checkpoints are written, which are kept, which is the best, and how a run goes on from one."""

from __future__ import annotations

import pytest
import torch
from transformers import EarlyStoppingCallback

from tests import tiny
from tests.behavior.both import accuracy, images, make


def checkpoints(directory) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in directory.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"save_strategy": "no"}, []),
        ({"save_strategy": "steps", "save_steps": 2}, [2, 4, 5]),
        ({"save_strategy": "steps", "save_steps": 0.4}, [2, 4, 5]),
        ({"save_strategy": "epoch"}, [2, 4, 5]),
        ({"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}, [4, 5]),
        ({"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}, [5]),
        ({"save_strategy": "steps", "save_steps": 1, "save_total_limit": 0}, [1, 2, 3, 4, 5]),
    ],
)
def test_strategy_and_limit_say_which_checkpoints_there_are(tmp_path, kind, options, steps):
    make(kind, tmp_path, max_steps=5, **options).train()
    assert checkpoints(tmp_path) == steps


@pytest.mark.parametrize("options", [{"save_only_model": False}, {"save_only_model": True}])
def test_files_of_a_checkpoint(tmp_path, kind, options):
    make(kind, tmp_path, max_steps=1, save_strategy="steps", save_steps=1, **options).train()
    found = {path.name for path in (tmp_path / "checkpoint-1").iterdir()}
    expected = {"config.json", "model.safetensors", "training_args.bin", "trainer_state.json"}
    if not options["save_only_model"]:
        expected |= {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    extra = {"complete.json", "preprocessor_config.json"} | (set() if options["save_only_model"] else {"journal_0.pt"})
    assert found == expected | (extra if kind == "FSTTrainer" else set())
    loaded = tiny.TinySegmenter.from_pretrained(tmp_path / "checkpoint-1")
    assert loaded.config.num_labels == 3


@pytest.mark.parametrize("strategy", ["no", "steps", "epoch"])
def test_strategy_says_when_there_is_an_evaluation(tmp_path, kind, strategy):
    trainer = make(kind, tmp_path, max_steps=5, evaluation=images(2), eval_strategy=strategy, eval_steps=3)
    trainer.train()
    found = [entry["step"] for entry in trainer.state.log_history if "eval_runtime" in entry]
    assert found == {"no": [], "steps": [3, 5], "epoch": [2, 4, 5]}[strategy]


def test_an_evaluation_at_the_start(tmp_path, kind):
    trainer = make(
        kind, tmp_path, max_steps=1, evaluation=images(2), eval_strategy="steps", eval_steps=1, eval_on_start=True
    )
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_runtime" in entry] == [0, 1]


class Scores:
    """A metric whose values are told beforehand."""

    def __init__(self, *values):
        self.values = list(values)

    def __call__(self, prediction, compute_result=True):
        return {"told": self.values.pop(0)}


def judged(kind, directory, values, callbacks=(), **options):
    return make(
        kind,
        directory,
        evaluation=images(2),
        trainer_options={"compute_metrics": Scores(*values), "callbacks": list(callbacks)},
        **{
            "batch_eval_metrics": False,
            "max_steps": len(values),
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "metric_for_best_model": "told",
            "load_best_model_at_end": True,
            **options,
        },
    )


@pytest.mark.parametrize(("greater", "best"), [(True, 2), (False, 4)])
def test_the_best_model_is_loaded_at_the_end(tmp_path, kind, greater, best):
    trainer = judged(kind, tmp_path, [0.2, 0.9, 0.3, 0.1, 0.5], greater_is_better=greater)
    trainer.train()
    assert trainer.state.best_global_step == best
    assert trainer.state.best_metric == {2: 0.9, 4: 0.1}[best]
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    saved = tiny.TinySegmenter.from_pretrained(tmp_path / f"checkpoint-{best}", dtype=torch.float64)
    assert tiny.same(tiny.weights(saved), tiny.weights(trainer.model))
    last = tiny.TinySegmenter.from_pretrained(tmp_path / "checkpoint-5", dtype=torch.float64)
    assert not tiny.same(tiny.weights(last), tiny.weights(trainer.model))


@pytest.mark.parametrize(("limit", "kept"), [(1, [2]), (2, [2, 5]), (3, [2, 4, 5])])
def test_the_best_checkpoint_is_never_removed(tmp_path, kind, limit, kept):
    judged(kind, tmp_path, [0.2, 0.9, 0.3, 0.1, 0.5], save_total_limit=limit).train()
    assert checkpoints(tmp_path) == kept


def test_only_the_best_are_written(tmp_path, kind):
    judged(kind, tmp_path, [0.2, 0.9, 0.3, 1.0, 0.5], save_strategy="best", load_best_model_at_end=False).train()
    # the loop writes the last one as well
    assert set(checkpoints(tmp_path)) >= {1, 2, 4} and 3 not in checkpoints(tmp_path)


def test_a_run_stops_early(tmp_path, kind):
    stop = EarlyStoppingCallback(early_stopping_patience=2)
    trainer = judged(kind, tmp_path, [0.2, 0.9, 0.3, 0.4, 0.5, 0.6], [stop])
    assert trainer.train().global_step == 4


def test_a_metric_that_does_not_exist_is_named(tmp_path, kind):
    trainer = judged(kind, tmp_path, [0.2], metric_for_best_model="other")
    with pytest.raises(KeyError, match="eval_other"):
        trainer.train()


def test_the_last_checkpoint_is_kept_where_nobody_asks_for_the_best(tmp_path, kind):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    make(kind, tmp_path, evaluation=images(2), max_steps=4, save_total_limit=1, **options).train()
    assert checkpoints(tmp_path) == [4]


@pytest.mark.parametrize("how", ["path", "true"])
def test_a_run_goes_on_from_a_checkpoint(tmp_path, kind, how):
    options = {"save_strategy": "steps", "save_steps": 2, "train": images(4), "per_device_train_batch_size": 4}
    make(kind, tmp_path, max_steps=2, lr_scheduler_type="constant", **options).train()
    resumed = make(kind, tmp_path, max_steps=5, lr_scheduler_type="constant", **options)
    steps = []
    resumed.add_callback(_Steps(steps))
    resumed.train(resume_from_checkpoint=True if how == "true" else str(tmp_path / "checkpoint-2"))
    assert steps == [3, 4, 5] and resumed.state.global_step == 5
    whole = make(kind, tmp_path / "whole", max_steps=5, lr_scheduler_type="constant", **options)
    whole.train()
    assert tiny.same(tiny.weights(resumed.model), tiny.weights(whole.model))


def test_exception_a_run_of_fst_trainer_that_is_resumed_at_its_end_takes_no_step_more(tmp_path, kind):
    """Three steps of two an epoch; Trainer takes the rest of the epoch up, and stops after a step too many."""
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    whole = make(kind, tmp_path, **options)
    whole.train()
    resumed = make(kind, tmp_path, **options)
    steps = resumed.train(resume_from_checkpoint=True).global_step
    assert steps == {"Trainer": 4, "FSTTrainer": 3}[kind]
    assert tiny.same(tiny.weights(whole.model), tiny.weights(resumed.model)) == (kind == "FSTTrainer")


def test_a_run_that_need_not_resume_begins_anew(tmp_path, kind):
    make(kind, tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    for nothing in (None, False):
        assert make(kind, tmp_path, max_steps=1).train(resume_from_checkpoint=nothing).global_step == 1


def test_nothing_to_resume_is_an_error(tmp_path, kind):
    with pytest.raises(ValueError, match="checkpoint"):
        make(kind, tmp_path, max_steps=1).train(resume_from_checkpoint=True)


def test_save_model_writes_a_model_that_loads(tmp_path, kind):
    trainer = make(kind, tmp_path / "run", max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = tiny.TinySegmenter.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    assert tiny.same(tiny.weights(loaded), tiny.weights(trainer.model))


def _Steps(steps):
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    return Steps()


def test_a_users_metric_is_the_metric(tmp_path, kind):
    trainer = make(
        kind,
        tmp_path,
        evaluation=images(4),
        trainer_options={"compute_metrics": accuracy},
        batch_eval_metrics=False,
    )
    assert 0 <= trainer.evaluate()["eval_cells"] <= 1
