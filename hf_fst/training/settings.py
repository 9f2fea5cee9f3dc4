"""The numbers in force: what the options, the preset, the rule and the objective come to."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

from hf_fst.errors import UserError
from hf_fst.method.lookahead import LookAhead
from hf_fst.method.objectives import OBJECTIVES, FeatureDistance, Objective
from hf_fst.method.options import make, options_of, refuse_foreign, values_of
from hf_fst.method.presets import preset_values
from hf_fst.method.rules import RULES
from hf_fst.training.options import options

RULE_OPTIONS = {name for kind in RULES.values() for name in options_of(kind)}
OBJECTIVE_OPTIONS = {name for kind in OBJECTIVES.values() for name in options_of(kind)}
FEATURE_DISTANCE = {"feature_distance_weight": 0.0, "feature_distance_classes": None}


class Settings(SimpleNamespace):
    """Frozen: an attribute for each option of `FSTConfig` with the value in force (None where the option means nothing),
    and `rule_in_force`, the rule as an object."""

    def __setattr__(self, name: str, value) -> None:
        raise AttributeError(f"settings are those in force; set {name} in the FSTConfig and make a new trainer.")


def resolve(args, rule=None, objective=None) -> Settings:
    """The settings of a run; `args` is not written to.

    Args:
        args: an `FSTConfig`.
        rule: an object of `hf_fst.rules`, the name of one, or None for what the options say.
        objective: an object of `hf_fst.objectives`, the name of one, or None for what the options say.

    Raises:
        UserError: what is given disagrees with the options, or an option is not the rule's or the objective's.
    """
    given = {name: getattr(args, name) for name in options(args)}
    rule, rule_name = _rule(given, rule)
    objective_name = _objective_name(given, rule_name, objective)
    values = given | {"rule": rule_name, "objective": objective_name, "rule_in_force": rule}
    values |= dict.fromkeys(RULE_OPTIONS) | values_of(rule)

    set_here = {name: given[name] for name in (*OBJECTIVE_OPTIONS, *FEATURE_DISTANCE) if given[name] is not None}
    if (
        objective_name in OBJECTIVES and objective_name != "supervised"
    ):  # the control of any recipe: its rest is left out
        refuse_foreign("objective", OBJECTIVES, objective_name, set_here)
    if objective_name == "entropy_drop" and given["feature_distance_weight"]:
        raise UserError("objective 'entropy_drop' has no feature distance; leave feature_distance_weight out.")
    if isinstance(objective, Objective):
        own = values_of(objective)
        for name, value in set_here.items():
            if name in own and own[name] != value:
                raise UserError(
                    f"the trainer was given an objective with {name} {own[name]} but its config says {value}; give the "
                    "number once."
                )
    else:
        kind = OBJECTIVES[objective_name]
        own = {name: kind.__dataclass_fields__[field].default for name, field in options_of(kind).items()}
        preset = preset_values(args.preset, rule_name, objective_name)
        own |= {name: preset[name] for name in own if name in preset}
        own |= {name: value for name, value in set_here.items() if name in own}
    values |= dict.fromkeys(OBJECTIVE_OPTIONS) | own
    values["feature_distance_weight"] = given["feature_distance_weight"] or 0.0

    for name, value in preset_values(args.preset, rule_name, objective_name).items():
        if name not in OBJECTIVE_OPTIONS and values[name] is None:
            values[name] = value
    if values["lookahead_momentum"] is None:
        values["lookahead_momentum"] = values["teacher_momentum"]
    if values["lookahead_labels"] == "present" and values["teacher_follows"] != "before":
        raise UserError(
            "lookahead_labels 'present' wants labels of the teacher before it follows the student, which "
            f"teacher_follows {values['teacher_follows']!r} does not keep; use teacher_follows 'before'."
        )
    return Settings(**values)


def _rule(given: dict, rule) -> tuple[object, str]:
    """The rule in force and its name."""
    said = given["rule"]
    own = {name: given[name] for name in RULE_OPTIONS}
    if rule is None or isinstance(rule, str):
        name = rule or said or "fst_d"
        if said is not None and name != said:
            raise UserError(f"the trainer was given rule {name!r} but its config says {said!r}; give one.")
        return make("rule", RULES, name, own), name
    name = next((name for name, kind in RULES.items() if type(rule) is kind), type(rule).__name__)
    if said is not None and name != said:
        raise UserError(f"the trainer was given rule {rule} but its config says {said!r}; give one.")
    for key, value in own.items():
        if value is not None and values_of(rule).get(key) != value:
            raise UserError(
                f"the trainer was given rule {rule} but its config says {key}={value}; give the number once."
            )
    return rule, name


def _objective_name(given: dict, rule_name: str, objective) -> str:
    said = given["objective"]
    if isinstance(objective, Objective):
        name = next((name for name, kind in OBJECTIVES.items() if type(objective) is kind), type(objective).__name__)
    elif objective is not None and said not in (None, objective):
        raise UserError(f"the trainer was given objective {objective!r} but its config says {said!r}; give one.")
    else:
        name = objective or said or ("supervised" if rule_name == "supervised" else "class_mix")
        if name not in OBJECTIVES:
            raise UserError(f"objective is {name!r}; use one of {', '.join(OBJECTIVES)}.")
    needs_teacher = (objective if isinstance(objective, Objective) else OBJECTIVES[name]).needs_unlabeled
    if rule_name == "supervised" and needs_teacher:
        raise UserError(
            f"rule 'supervised' has no teacher, but objective {name!r} learns from its labels; "
            "use objective 'supervised' or another rule."
        )
    return name


def make_objective(settings: Settings, num_labels: int, align_corners: bool = False, reference=None) -> Objective:
    """The objective of the settings.

    Args:
        settings: those in force.
        num_labels: classes of the model.
        align_corners: how the model wants its logits resized.
        reference: the network of the feature distance, if one is asked for.
    """
    context: dict[str, object] = {"align_corners": align_corners}
    if settings.feature_distance_weight:
        weight, classes = settings.feature_distance_weight, settings.feature_distance_classes
        context["feature_distance"] = FeatureDistance(reference, weight, num_labels, classes)
    if settings.objective == "class_mix":
        context["num_labels"] = num_labels
    own = options_of(OBJECTIVES[settings.objective])
    return make("objective", OBJECTIVES, settings.objective, {n: getattr(settings, n) for n in own}, **context)


def look_ahead_of(settings: Settings, max_grad_norm: float) -> LookAhead:
    """What a step needs to know of the settings."""
    return LookAhead(
        mu=settings.teacher_momentum,
        mu_ahead=settings.lookahead_momentum,
        warmup=settings.momentum_warmup,
        warmup_counts=settings.warmup_counts,
        follows=settings.teacher_follows,
        state=settings.lookahead_state,
        start=settings.lookahead_start,
        virtual_steps=virtual_steps(settings.rule_in_force),
        max_grad_norm=max_grad_norm,
    )


def virtual_steps(rule) -> int:
    """Optimizer steps that a rule takes and undoes in a step; a rule of one's own need not say, 0 then."""
    return getattr(rule, "virtual_steps", 0)


def shown(args, settings: Settings) -> dict[str, object]:
    """What a model card may show of a run's settings: ours that are in force, then those of the training."""
    ours = {name: getattr(settings, name) for name, field in options(args).items() if field.metadata["card"]}
    return ours | {
        field.name: getattr(args, field.name) for field in dataclasses.fields(args) if field.name in TRAINING
    }


TRAINING = (
    *("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm"),
    *("bf16", "fp16", "seed", "data_seed"),
)
