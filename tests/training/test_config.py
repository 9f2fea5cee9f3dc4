"""Options: what follows from rule and objective, and what is refused, in which words."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest

from hf_fst.errors import UserError
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.method.rules import DeepFST, MeanTeacher, Supervised, WideFST
from hf_fst.training.config import FSTConfig
from hf_fst.training.settings import options, resolve
from hf_fst.training.trainer import FSTTrainer
from tests import tiny
from tests.device import USE_CPU

DEFAULTS = {"use_cpu": USE_CPU, "report_to": []}


def config(tmp_path, **options):
    return FSTConfig(output_dir=str(tmp_path), **{**DEFAULTS, **options})


def test_every_option_has_its_place_in_the_documentation():
    ours = {f.name for f in dataclasses.fields(FSTConfig)} - {f.name for f in dataclasses.fields(FSTConfig.__base__)}
    assert ours == options(FSTConfig).keys()
    assert ours == {name for name in ours if f"\n        {name} (" in FSTConfig.__doc__}


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, DeepFST(3, "same")),
        ({"rule": "fst_w"}, WideFST(3, "different", "followed")),
        ({"rule": "fst_d", "lookahead_steps": 1, "lookahead_batches": "different"}, DeepFST(1, "different")),
        ({"lookahead_steps": 5}, DeepFST(5)),
    ],
)
def test_the_rule_follows_from_the_options(tmp_path, options, expected):
    settings = resolve(config(tmp_path, **options))
    assert settings.rule_in_force == expected
    assert settings.rule == {DeepFST: "fst_d", WideFST: "fst_w"}[type(expected)]
    assert settings.lookahead_batches == expected.batches


@pytest.mark.parametrize(
    "objective, weighting, threshold, jitter, blur",
    [
        ("class_mix", "quality", 0.968, 0.8, 0.5),
        ("cut_mix", "threshold", 0.95, 0.8, 0.5),
        ("pseudo_label", "constant", 0.968, 0.0, 0.0),
    ],
)
def test_numbers_left_out_are_those_of_the_objectives_recipe(tmp_path, objective, weighting, threshold, jitter, blur):
    args = resolve(config(tmp_path, objective=objective))
    found = (args.unlabeled_weighting, args.confidence_threshold, args.jitter_probability, args.blur_probability)
    assert found == (weighting, threshold, jitter, blur)
    args = resolve(config(tmp_path, objective=objective, confidence_threshold=0.5, jitter_probability=0.1))
    assert (args.confidence_threshold, args.jitter_probability, args.blur_probability) == (0.5, 0.1, blur)


@pytest.mark.parametrize(
    "rule, objective, best", [("supervised", "supervised", "student"), ("fst_d", "class_mix", "teacher")]
)
def test_what_is_best_is_the_score_of_the_network_that_is_saved(tmp_path, rule, objective, best):
    sets = {"train_dataset": tiny.images(2), "unlabeled_dataset": tiny.images(2), "eval_dataset": tiny.images(2)}
    args = config(tmp_path, rule=rule, load_best_model_at_end=True, eval_strategy="steps", save_steps=500)
    trainer = FSTTrainer(tiny.model(), args, **sets)
    assert trainer.settings.objective == objective
    assert trainer.args.metric_for_best_model == f"{best}_mean_iou" and trainer.args.greater_is_better


def test_momentum_of_the_look_ahead_defaults_to_the_teachers(tmp_path):
    assert resolve(config(tmp_path, teacher_momentum=0.9)).lookahead_momentum == 0.9
    assert resolve(config(tmp_path, teacher_momentum=0.9, lookahead_momentum=0.0)).lookahead_momentum == 0.0


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            {"rule": "fst_e"},
            "rule is 'fst_e'; use one of supervised, mean_teacher, naive_fst, improved_fst, fst_d, fst_w.",
        ),
        (
            {"objective": "mixup"},
            f"objective is 'mixup'; use one of {', '.join(OBJECTIVES)}.",
        ),
        ({"rule": "fst_d", "lookahead_steps": -1}, "lookahead_steps is -1; use a number from 0 to 1000."),
        ({"rule": "fst_w", "lookahead_students": 0}, "lookahead_students is 0; use a number from 1 to 1000."),
        (
            {"rule": "mean_teacher", "lookahead_batches": "same"},
            "lookahead_batches is set but the rule is mean_teacher; "
            "leave it out or use naive_fst or improved_fst or fst_d or fst_w.",
        ),
        (
            {"rule": "fst_d", "lookahead_students": 3},
            "lookahead_students is set but the rule is fst_d; leave it out or use fst_w.",
        ),
        ({"teacher_momentum": 1.5}, "teacher_momentum is 1.5; use a number from 0 to 1."),
        ({"lookahead_momentum": -0.1}, "lookahead_momentum is -0.1; use a number from 0 to 1."),
        ({"teacher_momentum": float("nan")}, "teacher_momentum is nan; use a number from 0 to 1."),
        ({"confidence_threshold": 2}, "confidence_threshold is 2; use a number from 0 to 1."),
        ({"cut_probability": -1}, "cut_probability is -1; use a number from 0 to 1."),
        ({"jitter_strength": 0.6}, "jitter_strength is 0.6; use a number from 0 to 0.5."),
        ({"unlabeled_weight": -1}, "unlabeled_weight is -1; use 0 or more."),
        ({"pseudo_ignore_top": -1}, "pseudo_ignore_top is -1; use 0 or more."),
        ({"unlabeled_per_labeled": 0}, "unlabeled_per_labeled is 0; use a number from 1 to 1000."),
        ({"max_nonfinite_steps": 0}, "max_nonfinite_steps is 0; use 1 or more."),
        ({"eval_classes": []}, "eval_classes is []; give ids of classes, 0 or more, or None for all."),
        ({"eval_classes": [3, 1, 3]}, "eval_classes is [3, 1, 3]; name each class once."),
        ({"eval_classes": [3, -1]}, "eval_classes is [3, -1]; give ids of classes, 0 or more, or None for all."),
        ({"lookahead_state": "keep"}, "lookahead_state is 'keep'; use one of restore, carry."),
        ({"teacher_buffers": "mean"}, "teacher_buffers is 'mean'; use one of copy, ema, batch."),
        ({"mix_classes": "all"}, "mix_classes is 'all'; use one of image, batch."),
        ({"loss_reduction": "sum"}, "loss_reduction is 'sum'; use one of valid, all."),
        ({"unlabeled_weighting": "soft"}, "unlabeled_weighting is 'soft'; use one of constant, quality, threshold."),
        (
            {"rule": "supervised", "objective": "cut_mix"},
            "rule 'supervised' has no teacher, but objective 'cut_mix' learns from its labels; "
            "use objective 'supervised' or another rule.",
        ),
        (
            {"eval_stride": 64},
            "eval_stride is 64 and eval_window None; give a window at least as large as the stride, or pixels would "
            "be left out.",
        ),
        (
            {"eval_stride": 64, "eval_window": 32},
            "eval_stride is 64 and eval_window 32; give a window at least as large as the stride, or pixels would "
            "be left out.",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(tmp_path, options, sentence):
    with pytest.raises(ValueError) as error:
        config(tmp_path, **options)
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    "options, rule, objective, sentence",
    [
        (
            {"rule": "fst_d"},
            "fst_w",
            None,
            "the trainer was given rule 'fst_w' but its config says 'fst_d'; give one.",
        ),
        (
            {"rule": "fst_d"},
            MeanTeacher(),
            None,
            "the trainer was given rule 'mean_teacher' but its config says 'fst_d'; give one.",
        ),
        (
            {"rule": "fst_d", "lookahead_steps": 2},
            DeepFST(3),
            None,
            "the trainer was given rule DeepFST, which has lookahead_steps=3, but its config says lookahead_steps=2; "
            "give the number once.",
        ),
        (
            {"lookahead_steps": 2},
            MeanTeacher(),
            None,
            "the trainer was given rule MeanTeacher, which has no lookahead_steps, but its config says "
            "lookahead_steps=2; give the number once.",
        ),
        (
            {"lookahead_steps": 2},
            "fst_w",
            None,
            "lookahead_steps is set but the rule is fst_w; leave it out or use fst_d.",
        ),
        (
            {"objective": "class_mix"},
            None,
            "cut_mix",
            "the trainer was given objective 'cut_mix' but its config says 'class_mix'; give one.",
        ),
        (
            {},
            None,
            "mixup",
            f"objective is 'mixup'; use one of {', '.join(OBJECTIVES)}.",
        ),
        (
            {"objective": "class_mix"},
            Supervised(),
            None,
            "rule 'supervised' has no teacher, but objective 'class_mix' learns from its labels; "
            "use objective 'supervised' or another rule.",
        ),
        (
            {},
            "fst",
            None,
            "rule is 'fst'; use one of supervised, mean_teacher, naive_fst, improved_fst, fst_d, fst_w.",
        ),
    ],
)
def test_a_trainer_that_is_told_two_things_refuses(tmp_path, options, rule, objective, sentence):
    with pytest.raises(ValueError) as error:
        resolve(config(tmp_path, **options), rule, objective)
    assert str(error.value) == sentence


def test_a_rule_object_that_agrees_is_taken_and_its_numbers_are_written_down(tmp_path):
    args = config(tmp_path, rule="fst_w", lookahead_students=2)
    rule = WideFST(2, "same", "present")
    settings = resolve(args, rule)
    assert settings.rule_in_force is rule
    assert (settings.lookahead_batches, settings.lookahead_labels) == ("same", "present")


def test_settings_of_the_trainers_arguments_stay_what_suits_pairs(tmp_path):
    args = config(tmp_path)
    assert args.remove_unused_columns is False and args.label_names == ["labels"] and args.batch_eval_metrics


def test_a_wrong_kind_of_arguments_is_refused(tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(ValueError) as error:
        FSTTrainer(tiny.model(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    assert str(error.value) == "args is a TrainingArguments; give an hf_fst.FSTConfig."


@pytest.mark.parametrize(
    "objective, option, value, owner",
    [
        ("class_mix", "entropy_drop_percent", 50.0, "entropy_drop or u2pl"),
        ("pseudo_label", "mix_classes", "image", "class_mix"),
        ("cut_mix", "entropy_drop_percent", 80.0, "entropy_drop or u2pl"),
        ("entropy_drop", "unlabeled_weighting", "quality", "pseudo_label or class_mix or cut_mix"),
    ],
)
def test_options_of_another_objective_are_refused(tmp_path, objective, option, value, owner):
    with pytest.raises(UserError) as error:
        config(tmp_path, objective=objective, **{option: value})
    assert str(error.value) == f"{option} is set but the objective is {objective}; leave it out or use {owner}."


@pytest.mark.parametrize(
    "option", ["unlabeled_weight", "learning_rate", "auxiliary_loss_weight", "head_lr_multiplier"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path, option, value):
    with pytest.raises(UserError, match=f"{option} is {value}; use "):
        config(tmp_path, **{option: value})


def test_one_config_serves_two_trainers_and_is_never_written_to(tmp_path):
    args = config(tmp_path, max_steps=1, save_strategy="no", report=False)
    before = copy.deepcopy(args.to_dict())
    sets = {"train_dataset": tiny.images(2), "unlabeled_dataset": tiny.images(2)}
    for rule, objective in (("fst_w", "cut_mix"), ("mean_teacher", "class_mix")):
        trainer = FSTTrainer(tiny.model(), args, rule=rule, objective=objective, **sets)
        trainer.train()
        assert (trainer.settings.rule, trainer.settings.objective) == (rule, objective)
    assert args.to_dict() == before


def test_settings_in_force_cannot_be_set(tmp_path):
    settings = resolve(config(tmp_path))
    with pytest.raises(AttributeError, match="set teacher_momentum in the FSTConfig"):
        settings.teacher_momentum = 0.5


def test_heads_and_schedule_of_a_recipe_are_options_of_the_config(tmp_path):
    args = config(
        tmp_path,
        rule="supervised",
        learning_rate=0.1,
        head_lr_multiplier=10.0,
        schedule="poly",
        poly_power=0.5,
        max_steps=4,
        save_strategy="no",
        report=False,
        logging_steps=1,
    )
    trainer = FSTTrainer(tiny.model(), args, train_dataset=tiny.images(2))
    trainer.train()
    rates = {group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert max(rates) == pytest.approx(1.0)  # 10 times 0.1, for the head
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged[1] / logged[0] == pytest.approx(math.sqrt((1 - 1 / 4) / 1))  # (1 - t/4)^0.5 at t = 1 and 0
