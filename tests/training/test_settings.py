"""Options are described once: checks, help, docstring and model card follow; settings are what is in force."""

from __future__ import annotations

import typing

import pytest
from transformers import HfArgumentParser

from hf_fst.errors import UserError
from hf_fst.method.objectives import OBJECTIVES, ClassMixObjective, CutMixObjective, PseudoLabelObjective
from hf_fst.method.options import TABLE, defaults_of, options_of, values_of
from hf_fst.method.rules import RULES
from hf_fst.recipes.keys import key_table
from hf_fst.training.config import FSTConfig, described
from hf_fst.training.settings import options, resolve, shown
from hf_fst.training.trainer import FSTTrainer
from tests import tiny

OPTIONS = options(FSTConfig)
# who has which options, apart from those that all objectives have
MIXED = {"unlabeled_weight", "confidence_threshold", "jitter_probability", "jitter_strength", "blur_probability"}
MIXED |= {"augmentation_draw"}
PSEUDO = MIXED | {"unlabeled_weighting", "pseudo_ignore_top", "pseudo_ignore_bottom", "auxiliary_pseudo_weight"}
DISTANCE = {"feature_distance_weight", "feature_distance_classes"}
VIEWS = MIXED | {"cut_probability", "cut_partner", "gray_probability"}
PROTOTYPES = {"unlabeled_weight", "confidence_threshold", "consistency_weight"}
PROTOTYPES |= {"prototype_temperature", "prototype_momentum", "prototype_passes"}
OWN = {
    "pseudo_label": PSEUDO | DISTANCE,
    "class_mix": PSEUDO | DISTANCE | {"mix_classes"},
    "cut_mix": PSEUDO | DISTANCE | {"cut_probability"},
    "entropy_drop": MIXED | {"cut_probability", "entropy_drop_percent"},
    "cct": {"unlabeled_weight", "ramp_share", "annealed_threshold", "vat_step"},
    "gct": {"consistency_weight", "ramp_share", "flaw_correction_weight", "flaw_threshold"},
    "cps": {"unlabeled_weight", "cut_probability", "cut_partner"},
    "unimatch": VIEWS | {"feature_stream_weight", "strong_views_weight", "feature_dropout"},
    "unimatch_v2": VIEWS | DISTANCE,
    "u2pl": MIXED | {"cut_probability", "entropy_drop_percent", "contrast_weight", "contrast", "bank_size"},
    "distill": {"unlabeled_weight", "confidence_threshold", "distillation_weight", "distillation"},
    "proda": PROTOTYPES | {"regularizer_weight"},
    "cpsl": PROTOTYPES
    | {
        "regularizer_weight",
        "cut_probability",
        "self_labeling_weight",
        "self_labeling",
        "contrast_weight",
        "bank_size",
    },
    "naive_fst": {"lookahead_batches"},
    "improved_fst": {"lookahead_batches", "lookahead_every"},
    "fst_d": {"lookahead_batches", "lookahead_steps", "lookahead_every"},
    "fst_w": {"lookahead_batches", "lookahead_students", "lookahead_labels", "lookahead_every"},
    "mean_teacher": set(),
}
COMMON = {"loss_reduction", "auxiliary_loss_weight", "ohem_threshold", "ohem_min_kept"}


def config(tmp_path, **given):
    return FSTConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], **given)


def acceptable(name: str):
    """Some value that the option takes."""
    option, hint = OPTIONS[name], typing.get_type_hints(FSTConfig)[name]
    if option.choices:
        return option.choices[0]
    if bool in typing.get_args(hint):
        return True
    return [0] if "list" in str(hint) else 1 if option.high is None else option.high


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("kind", OWN)
def test_an_option_is_taken_by_its_owners_and_refused_by_all_others(tmp_path, kind, name):
    what, kinds = ("rule", RULES) if kind in RULES else ("objective", OBJECTIVES)
    if not any(name in options_of(other) for other in kinds.values()):
        return  # an option of the other axis
    if name in OWN[kind] or what == "objective" and name in COMMON:
        assert getattr(resolve(config(tmp_path, **{what: kind, name: acceptable(name)})), name) == acceptable(name)
        return
    owners = [owner for owner in kinds if name in OWN.get(owner, ()) or (owner == "supervised" and name in DISTANCE)]
    with pytest.raises(UserError) as error:
        config(tmp_path, **{what: kind, name: acceptable(name)})
    assert str(error.value) == f"{name} is set but the {what} is {kind}; leave it out or use {' or '.join(owners)}."


def test_the_supervised_control_of_a_recipe_leaves_out_the_unlabeled_term(tmp_path):
    settings = resolve(config(tmp_path, rule="supervised", confidence_threshold=0.7, feature_distance_weight=0.5))
    assert (settings.confidence_threshold, settings.feature_distance_weight) == (None, 0.5)


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.choices])
def test_a_word_that_is_no_choice_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} is 'nothing'; use "):
        config(tmp_path, **{name: "nothing"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [n for n, hint in typing.get_type_hints(FSTConfig).items() if "float" in str(hint)])
def test_every_number_must_be_finite(tmp_path, name, value):
    with pytest.raises(UserError, match=f"^{name} is {value}; use "):
        config(tmp_path, **{name: value})


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("lookahead_steps", "three", "give a whole number"),
        ("lookahead_steps", 2.5, "give a whole number"),
        ("unlabeled_weight", "1", "give a number"),
        ("unlabeled_weight", True, "give a number"),
        ("momentum_warmup", "no", "give true or false"),
        ("no_decay", "norm", "give a list"),
        ("feature_distance_classes", [-1], "give ids of classes, 0 or more, or None for all"),
        ("head_lr_multiplier", 0, "use a number above 0"),
        ("entropy_drop_percent", 101, "use a number from 0 to 100"),
        ("schedule", "cosine", "use 'poly' or leave it out"),
    ],
)
def test_a_value_of_the_wrong_type_or_size_is_refused(tmp_path, name, value, words):
    with pytest.raises(UserError) as error:
        config(tmp_path, **{name: value})
    assert str(error.value) == f"{name} is {value if words.startswith('use a') else repr(value)}; {words}."


def test_objectives_made_by_hand_are_checked_as_well():
    with pytest.raises(UserError, match="unlabeled_weighting is 'soft'; use one of constant, quality, threshold"):
        PseudoLabelObjective(weighting="soft")
    with pytest.raises(UserError, match="cut_probability is 2; use a number from 0 to 1"):
        CutMixObjective(cut_probability=2)


def test_types_of_rules_and_objectives_are_those_of_the_config():
    ours = typing.get_type_hints(FSTConfig)
    for kind in (*RULES.values(), *OBJECTIVES.values()):
        for name, (field, part) in options_of(kind).items():
            owner = kind if part is None else kind.__dataclass_fields__[part].metadata["part"]
            assert ours[name] == typing.get_type_hints(owner)[field.name] | None, (kind, name)
            assert defaults_of(kind)[name] == field.default


def test_help_names_the_default_of_each_owner():
    assert described("lookahead_steps").endswith("[fst_d: 3]")
    assert "[pseudo_label, class_mix: 0.968; cut_mix, entropy_drop" in described("confidence_threshold")
    assert described("loss_reduction").endswith("[valid]") and described("momentum_warmup").endswith("[true]")


def test_every_option_stands_once_in_the_help_of_train():
    lines = [line.split()[0] for line in key_table().splitlines() if line.startswith("    ") and line[4] != " "]
    assert all(lines.count(name) == 1 for name in OPTIONS)


def test_a_script_may_parse_the_options_with_transformers_own_parser(tmp_path):
    [args] = HfArgumentParser(FSTConfig).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--rule", "fst_w", "--lookahead_students", "2", "--no_decay", "norm", "bias"]
    )
    assert (args.rule, args.lookahead_students, args.no_decay) == ("fst_w", 2, ["norm", "bias"])


def test_an_objective_that_disagrees_with_the_config_is_refused(tmp_path):
    objective = ClassMixObjective(num_labels=3, unlabeled_weight=0.5)
    with pytest.raises(UserError, match="ClassMixObjective, which has unlabeled_weight=0.5, but its config says unl"):
        resolve(config(tmp_path, unlabeled_weight=2.0), objective=objective)
    with pytest.raises(UserError, match="ClassMixObjective, which has no cut_probability, but its config says"):
        resolve(config(tmp_path, cut_probability=0.1), objective=objective)
    with pytest.raises(UserError, match="was given objective 'class_mix' but its config says 'cut_mix'; give one"):
        resolve(config(tmp_path, objective="cut_mix"), objective=objective)
    settings = resolve(config(tmp_path, preset="official"), objective=objective)
    assert {name: getattr(settings, name) for name in values_of(objective)} == values_of(objective)


def test_a_number_that_a_trial_sets_is_checked(tmp_path):
    args = config(tmp_path)
    args.unlabeled_weight = float("nan")
    with pytest.raises(UserError, match="unlabeled_weight is nan; use 0 or more"):
        resolve(args)


@pytest.mark.parametrize(
    "given, absent, present",
    [
        (
            {"rule": "supervised"},
            {"teacher_momentum", "lookahead_momentum", "lookahead_state", "teacher_buffers", "unlabeled_per_labeled"}
            | {"confidence_threshold", "unlabeled_weight"},
            {"rule": "supervised", "objective": "supervised", "lr_scheduler_type": "linear"},
        ),
        (
            {"rule": "mean_teacher"},
            {"lookahead_momentum", "lookahead_state", "lookahead_start", "lookahead_steps"},
            {"teacher_momentum": 0.999, "momentum_warmup": True, "mix_classes": "image"},
        ),
        ({"rule": "naive_fst"}, {"lookahead_momentum"}, {"lookahead_state": "restore"}),
        (
            {"rule": "fst_d", "objective": "entropy_drop", "jitter_probability": 0.0},
            {"ohem_threshold", "ohem_min_kept", "jitter_strength", "feature_distance_weight", "unlabeled_weighting"},
            {"entropy_drop_percent": 80.0, "confidence_threshold": 0.95, "teacher_memory": 1000.0},
        ),
        (
            {"schedule": "poly", "poly_power": 0.9, "no_decay": ["norm"], "head_lr_multiplier": 10.0},
            {"lr_scheduler_type"},
            {"schedule": "poly", "poly_power": 0.9, "no_decay": ["norm"], "head_lr_multiplier": 10.0},
        ),
        ({}, {"poly_power", "schedule", "feature_distance_classes", "eval_stride"}, {"lr_scheduler_type": "linear"}),
    ],
    ids=lambda value: str(sorted(value))[:30],
)
def test_a_card_shows_what_was_in_force_and_had_an_effect(tmp_path, given, absent, present):
    args = config(tmp_path, **given)
    card = shown(args, resolve(args))
    assert not absent & card.keys()
    assert {name: card[name] for name in present} == present
    assert "output_dir" not in card and "report" not in card


def test_groups_and_rates_are_those_of_the_paper_through_the_python_api(tmp_path):
    """Heads at ten times the rate, norms without decay, and (1 - i/T)^0.9 · (i/W, all but exactly) while i < W."""
    args = tiny.config(
        tmp_path,
        rule="mean_teacher",
        optim="sgd",
        learning_rate=0.1,
        weight_decay=0.01,
        head_lr_multiplier=10.0,
        no_decay=["norm"],
        schedule="poly",
        poly_power=0.9,
        warmup_steps=2,
        max_steps=4,
        logging_strategy="steps",
        logging_steps=1,
    )
    sets = {"train_dataset": tiny.images(4), "unlabeled_dataset": tiny.images(4, 2, labels=False)}
    trainer = FSTTrainer(tiny.model(batch_norm=True), args, **sets)
    trainer.train()
    groups = {group["name"]: (group["initial_lr"], group["weight_decay"]) for group in trainer.optimizer.param_groups}
    assert groups == {"backbone": (0.1, 0.01), "backbone_no_decay": (0.1, 0.0), "head": (1.0, 0.01)}
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    factors = [1e-6, 0.75**0.9 * (1 - 0.5 * (1 - 1e-6)), 0.5**0.9, 0.25**0.9]
    assert logged == pytest.approx([0.1 * factor for factor in factors])
