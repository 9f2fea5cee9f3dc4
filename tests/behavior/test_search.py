"""Hyperparameter search with Trainer's own backend, and trials by hand."""

from __future__ import annotations

import pytest
from transformers import logging as transformers_logging

from hf_fst.method.rules import DeepFST
from hf_fst.training.trainer import FSTTrainer
from tests import tiny
from tests.behavior.both import images, make

RATES = [0.0, 0.3]


def fresh():
    """A new model for each trial."""
    return tiny.model()


def score(metrics) -> float:
    """Of a search: what the evaluation gives."""
    return metrics.get("eval_student_mean_iou", -metrics.get("eval_loss", 0.0))


def space(trial):
    return {"learning_rate": trial.suggest_categorical("learning_rate", RATES)}


@pytest.mark.parametrize("evaluated", ["while training", "after it"])
def test_a_search_finds_the_better_learning_rate(tmp_path, kind, evaluated):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    strategy = {"eval_strategy": "steps", "eval_steps": 6} if evaluated == "while training" else {}
    trainer = make(
        kind,
        tmp_path,
        trainer_options={"model_init": fresh},
        evaluation=images(4),
        max_steps=6,
        save_strategy="steps",
        save_steps=6,
        **strategy,
    )
    best = trainer.hyperparameter_search(
        space,
        score,
        n_trials=2,
        direction="maximize",
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"learning_rate": RATES}),
    )
    assert best.hyperparameters == {"learning_rate": 0.3}
    assert {path.name for path in tmp_path.glob("run-*")} == {"run-0", "run-1"}
    assert (tmp_path / "run-1/checkpoint-6/model.safetensors").is_file()


def test_a_search_needs_model_init(tmp_path, kind):
    with pytest.raises(RuntimeError, match="model_init"):
        make(kind, tmp_path).hyperparameter_search(space, score, n_trials=1, backend="optuna")


def test_model_init_is_told_the_trial(tmp_path, kind):
    told = []

    def told_fresh(trial):
        told.append(trial)
        return tiny.model()

    trainer = make(kind, tmp_path, trainer_options={"model_init": told_fresh}, max_steps=1)
    trainer.train(trial={"width": 4})
    assert told == [None, {"width": 4}]


def test_a_model_and_model_init_exclude_each_other(tmp_path, kind):
    with pytest.raises(ValueError, match="model_init"):
        make(kind, tmp_path, trainer_options={"model": tiny.model(), "model_init": tiny.model})


def test_a_search_over_the_look_ahead_changes_the_rule(tmp_path):
    """The options of rule and objective are those of the trial, and every trial has a teacher of its own."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    transformers_logging.set_verbosity_error()
    seen = []

    class Look(FSTTrainer):
        def training_step(self, *arguments, **named):
            seen.append((self.rule, self.learning_objective.unlabeled_weight, self.teacher))
            return super().training_step(*arguments, **named)

    trainer = Look(
        args=tiny.config(tmp_path, rule="fst_d", max_steps=1),
        model_init=fresh,
        train_dataset=tiny.images(4),
        unlabeled_dataset=tiny.images(4, 2, labels=False),
        eval_dataset=tiny.images(2, 3),
    )
    grid = {"lookahead_steps": [1, 2], "unlabeled_weight": [0.5]}
    trainer.hyperparameter_search(
        lambda trial: {name: trial.suggest_categorical(name, values) for name, values in grid.items()},
        lambda metrics: metrics["eval_teacher_mean_iou"],
        n_trials=2,
        backend="optuna",
        sampler=optuna.samplers.GridSampler(grid),
    )
    assert sorted((rule.num_steps, weight) for rule, weight, _ in seen) == [(1, 0.5), (2, 0.5)]
    assert all(isinstance(rule, DeepFST) for rule, _, _ in seen) and seen[0][2] is not seen[1][2]


def test_options_that_follow_from_others_follow_those_of_the_trial(tmp_path):
    """μ' follows μ; another objective has its own weighting and threshold."""
    trainer = FSTTrainer(
        args=tiny.config(tmp_path, rule="fst_d", objective="class_mix"),
        model_init=fresh,
        train_dataset=tiny.images(2),
        unlabeled_dataset=tiny.images(2, 2, labels=False),
    )
    assert (trainer.settings.lookahead_momentum, trainer.settings.unlabeled_weighting) == (0.999 ** (1 / 4), "quality")
    for name, value in {"teacher_momentum": 0.5, "objective": "cut_mix"}.items():  # what a search does for a trial
        setattr(trainer.args, name, value)
    trainer._hp_search_setup({})
    settings, objective = trainer.settings, trainer.learning_objective
    assert settings.lookahead_momentum == 0.5
    assert (settings.unlabeled_weighting, settings.confidence_threshold) == ("threshold", 0.95)
    assert (objective.weighting, objective.confidence_threshold) == ("threshold", 0.95)
