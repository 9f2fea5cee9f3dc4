"""The numbers in force: what the options, the preset, the rule and the objective come to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from hf_fst.data.transforms import Normalization
from hf_fst.errors import UserError
from hf_fst.evaluation.inference import Look, aligns_corners
from hf_fst.method.lookahead import NO_MEMORY, LookAhead
from hf_fst.method.objectives import OBJECTIVES, Objective, default_objective
from hf_fst.method.options import TABLE, Option, defaults_of, given_to, make, refuse_foreign, values_of
from hf_fst.method.presets import preset_values
from hf_fst.method.rules import RULES, NaiveFST
from hf_fst.models.features import return_features
from hf_fst.publishing.facts import Plain, settings_of

# the arguments of transformers' training that a card may show
TRAINING = (
    *("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("lr_scheduler_type", "warmup_steps", "optim", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm"),
    *("bf16", "fp16", "seed", "data_seed"),
)


def options(config) -> dict[str, Option]:
    """Every option that hf_fst adds to `TrainingArguments`, by name, of an `FSTConfig` (class or object)."""
    helps = {field.name: field.metadata.get("help") for field in dataclasses.fields(config)}
    return {name: option for name, option in helps.items() if isinstance(option, Option)}


class Settings(SimpleNamespace):
    """Frozen: an attribute for each option of `FSTConfig` with the value in force (None where the option means nothing),
    `rule_in_force`, the rule as an object, and `by_memory`, whether the momenta follow from `teacher_memory`."""

    def __setattr__(self, name: str, value) -> None:
        raise AttributeError(f"settings are those in force; set {name} in the FSTConfig and make a new trainer.")


def resolve(args, rule=None, objective=None, whole: bool = False) -> Settings:
    """The settings of a run; `args` is not written to.

    Args:
        args: an `FSTConfig`.
        rule: an object of `hf_fst.rules`, the name of one, or None for what the options say.
        objective: an object of `hf_fst.objectives`, the name of one, or None for what the options say.
        whole: whether every weight of the network comes from a checkpoint: its teacher needs no warm-up.

    Raises:
        UserError: what is given disagrees with the options, or an option is not the rule's or the objective's.
    """
    args.check()
    known = options(args)
    given = {name: getattr(args, name) for name in known}
    objective_name = _name("objective", OBJECTIVES, objective, args.objective)
    needs_no_teacher = objective_name in OBJECTIVES and OBJECTIVES[objective_name].fixed_labels
    rule_name = _name("rule", RULES, rule, args.rule) or ("supervised" if needs_no_teacher else known["rule"].default)
    objective_name = objective_name or default_objective(rule_name)
    kind = OBJECTIVES[objective_name] if isinstance(objective, str | None) else objective
    if rule_name == "supervised" and kind.needs_unlabeled and not kind.fixed_labels:
        raise UserError(
            f"rule 'supervised' has no teacher, but objective {objective_name!r} learns from its labels; "
            "use objective 'supervised' or another rule."
        )
    preset = preset_values(args.preset, rule_name, objective_name)
    values = {
        name: preset.get(name, option.default) if given[name] is None else given[name]
        for name, option in known.items()
    }
    values |= dict.fromkeys(TABLE) | {"rule": rule_name, "objective": objective_name}
    values |= _of_method("rule", RULES, rule_name, rule, given, preset)
    values |= _of_method("objective", OBJECTIVES, objective_name, objective, given, preset)
    if whole and given["momentum_warmup"] is None and "momentum_warmup" not in preset:
        values["momentum_warmup"] = False
    if values["lookahead_labels"] == "present" and values["teacher_follows"] != "before":
        raise UserError(
            "lookahead_labels 'present' wants labels of the teacher before it follows the student, which "
            f"teacher_follows {values['teacher_follows']!r} does not keep; use teacher_follows 'before'."
        )
    in_force = make("rule", RULES, rule_name, values) if isinstance(rule, str | None) else rule
    if kind.fixed_labels and virtual_steps(in_force):
        raise UserError(
            f"objective {objective_name!r} learns from a frozen network, so rule {rule_name!r} would look ahead for "
            "nothing; use rule 'supervised' or 'mean_teacher'."
        )
    if values["teacher_follows"] in NO_MEMORY:
        if virtual_steps(in_force):
            raise UserError(
                f"teacher_follows is {values['teacher_follows']!r}, so there is no teacher that rule {rule_name!r} could "
                "let look ahead; use rule 'mean_teacher', or teacher_follows 'before'."
            )
        momentum = float(values["teacher_follows"] == "never")
        values |= {"teacher_momentum": momentum, "lookahead_momentum": momentum, "momentum_warmup": False}
        return Settings(**values | {"teacher_memory": None}, rule_in_force=in_force, by_memory=False)
    momenta = [given["teacher_momentum"], given["lookahead_momentum"]]
    if given["teacher_memory"] is not None and momenta != [None, None]:
        raise UserError(
            "teacher_memory is set beside teacher_momentum or lookahead_momentum, which follow from it; leave out either."
        )
    by_memory = given["teacher_memory"] is not None or (momenta == [None, None] and "teacher_momentum" not in preset)
    values |= _pace(values, in_force, by_memory)
    return Settings(**values, rule_in_force=in_force, by_memory=by_memory)


def _pace(values: Mapping[str, Any], rule, by_memory: bool) -> dict[str, float | None]:
    """μ, μ' and the memory in steps, those that are given and those that follow from them; None remembers all."""
    moves = followings(rule, values["teacher_follows"])
    if by_memory:
        mu = (1 - 1 / values["teacher_memory"]) ** (1 / max(1, moves))
        return {"teacher_momentum": mu, "lookahead_momentum": mu}
    mu = 0.999 if values["teacher_momentum"] is None else values["teacher_momentum"]
    mu_ahead = mu if values["lookahead_momentum"] is None else values["lookahead_momentum"]
    ahead = max(0, followings(rule) - 1)  # of futures, with μ'; naive_fst follows its own with μ
    product = mu ** (moves - ahead) * mu_ahead**ahead
    memory = None if product == 1 else float(f"{1 / (1 - product):.6g}")
    return {"teacher_momentum": mu, "lookahead_momentum": mu_ahead, "teacher_memory": memory}


def followings(rule, follows: str = "before") -> int:
    """How often the teacher moves in a step that looks ahead; by default once, and once for each virtual step.

    Args:
        rule: an object with `followings`, or else one for the present and each virtual step.
        follows: `teacher_follows`; "both" follows the present once more, and so does "after" where a rule does not.
    """
    moves = getattr(rule, "followings", 1 + virtual_steps(rule))
    return moves + (follows == "both" or (follows == "after" and isinstance(rule, NaiveFST)))


def _name(what: str, kinds: Mapping[str, type], thing, configured: str | None) -> str | None:
    """The name of what a trainer was given, which must be the configured one where there are both."""
    name = thing
    if not isinstance(thing, str | None):
        name = next((name for name, kind in kinds.items() if type(thing) is kind), type(thing).__name__)
    elif name is not None and name not in kinds:
        raise UserError(f"{what} is {name!r}; use one of {', '.join(kinds)}.")
    if None not in (name, configured) and name != configured:
        raise UserError(f"the trainer was given {what} {name!r} but its config says {configured!r}; give one.")
    return name or configured


def _of_method(
    what: str, kinds: Mapping[str, type], name: str, thing, given: Mapping[str, object], preset: Mapping[str, object]
) -> dict[str, object]:
    """The options of a rule or an objective with the values in force."""
    given = given_to(kinds, given)
    if isinstance(thing, str | None):
        own = defaults_of(kinds[name])
        if (what, name) == ("objective", "supervised"):  # the control of any recipe: what only others have is left out
            given = {key: value for key, value in given.items() if key in own}
        refuse_foreign(what, kinds, name, given)
        return own | {key: value for key, value in preset.items() if key in own} | given
    own = values_of(thing)
    for key, value in given.items():
        if key not in own or own[key] != value:
            has = f"has {key}={own[key]}" if key in own else f"has no {key}"
            raise UserError(
                f"the trainer was given {what} {type(thing).__name__}, which {has}, but its config says {key}={value}; "
                "give the number once."
            )
    return own


def make_objective(
    settings: Settings, num_labels: int, align_corners: bool = False, reference=None, **more
) -> Objective:
    """The objective of the settings for a model with `num_labels` classes, with the frozen network `reference`, if any.

    `more` may hold `image_mean` and `image_std` of the images, and whether passes are `joint`.
    """
    context = {"num_labels": num_labels, "align_corners": align_corners, "reference": reference, **more}
    return make("objective", OBJECTIVES, settings.objective, vars(settings), **context)


def objective_of(settings: Settings, given, model, reference, device, normalization: Normalization) -> Objective:
    """The objective that a trainer was given, or what the settings say.

    Args:
        settings: those in force.
        given: an objective, its name or None.
        model: the student, unwrapped.
        reference: the network of the feature distance, or of the warm-up; if None, `model` as it is now.
        device: of the run.
        normalization: of the images, with which any objective augments them.
    """
    numbers = {"image_mean": normalization.mean, "image_std": normalization.std}
    if isinstance(given, Objective):
        has = numbers.keys() & {field.name for field in dataclasses.fields(given)}
        other = {name: numbers[name] for name in has if getattr(given, name) != numbers[name]}
        return dataclasses.replace(given, **other) if other else given
    reference = model if reference is None else reference
    kind = OBJECTIVES[settings.objective]
    if settings.feature_distance_weight or "reference" in {field.name for field in dataclasses.fields(kind)}:
        reference = reference.to(device)
        if kind.needs_features:
            return_features(reference)
    else:
        reference = None
    auto = not any(isinstance(module, _BatchNorm) for module in model.modules())
    more = {**numbers, "joint": {"true": True, "false": False, "auto": auto}[settings.joint_forward]}
    return make_objective(settings, model.config.num_labels, aligns_corners(model), reference, **more)


def look_ahead_of(settings: Settings, max_grad_norm: float) -> LookAhead:
    """What a step needs to know of the settings."""
    return LookAhead(
        mu=settings.teacher_momentum,
        mu_ahead=settings.lookahead_momentum,
        memory=settings.teacher_memory if settings.by_memory else None,
        followings=followings(settings.rule_in_force, settings.teacher_follows),
        every=settings.lookahead_every or 1,
        warmup=settings.momentum_warmup,
        warmup_counts=settings.warmup_counts,
        follows=settings.teacher_follows,
        state=settings.lookahead_state,
        start=settings.lookahead_start,
        virtual_steps=virtual_steps(settings.rule_in_force),
        max_grad_norm=max_grad_norm,
    )


def pace_words(settings: Settings) -> str:
    """The rule with its memory and price in one line, for logs."""
    words, rule = [settings.rule], settings.rule_in_force
    for symbol, name in (("K", "lookahead_steps"), ("N", "lookahead_students"), ("M", "lookahead_every")):
        if (value := vars(settings)[name]) is not None:
            words.append(f"{symbol} = {value}")
    if settings.rule == "supervised":
        return f"rule {settings.rule}"
    if settings.teacher_follows in (labels := {"live": "the student labels for itself", "never": "the teacher stays"}):
        return f"rule {settings.rule}: {labels[settings.teacher_follows]} (teacher_follows {settings.teacher_follows})"
    memory = "all" if settings.teacher_memory is None else f"{round(settings.teacher_memory, 1):g}"
    mu = f"μ = {settings.teacher_momentum:.6g}"
    if followings(rule) > 1:
        mu += f", μ' = {settings.lookahead_momentum:.6g}"
    cost = f"; a step costs as much as {passes_a_step(settings):.3g} of a mean teacher" if virtual_steps(rule) else ""
    return f"rule {', '.join(words)}: the teacher remembers {memory} steps ({mu}){cost}"


def longer_than_run(args, settings: Settings, steps: int) -> list[tuple[str, str, float]]:
    """What is longer than a run of this many steps: a clause, the option to give, and a value for it."""
    found, shorter = [], max(2, steps // 4)
    if (warmup := args.get_warmup_steps(steps)) >= steps:
        fault = f"the warm-up of {warmup} steps is as long as the run, so learning_rate is never reached"
        found.append((fault, "warmup_steps", steps // 10))
    memory = None if settings.rule == "supervised" else settings.teacher_memory
    if memory is not None and memory > steps:
        option, value = "teacher_memory", shorter
        if not settings.by_memory:
            moves = followings(settings.rule_in_force, settings.teacher_follows)
            option, value = "teacher_momentum", round((1 - 1 / shorter) ** (1 / max(1, moves)), 4)
        found.append((f"the teacher remembers more steps ({memory:g}) than the run has", option, value))
    return found


def look_of(settings: Settings) -> Look:
    """How evaluation looks at images."""
    return Look(settings.eval_window, settings.eval_stride)


def virtual_steps(rule) -> int:
    """Optimizer steps that a rule takes and undoes in a step; 0 if the rule does not say."""
    return getattr(rule, "virtual_steps", 0)


def passes_a_step(settings: Settings) -> float:
    """Optimizer steps, virtual and real, in a step on average: 1 + K/M."""
    return 1 + virtual_steps(settings.rule_in_force) / (settings.lookahead_every or 1)


def shown(args, settings: Settings) -> dict[str, Plain]:
    """What a model card shows of a run's settings: those of ours that had an effect, then those of the training."""
    without_effect = {"lr_scheduler_type"} if settings.schedule is not None else set()
    for name, option in options(args).items():
        if {settings.rule, settings.objective} & set(option.unused_by):
            without_effect.add(name)
        if option.only_with is not None and not getattr(settings, option.only_with):
            without_effect.add(name)
    in_force = args.to_dict() | vars(settings)
    return settings_of({name: in_force[name] for name in card_names(args) if name not in without_effect})


def card_names(config) -> list[str]:
    """The names of all settings that a card may show."""
    return [*(name for name, option in options(config).items() if option.card), *TRAINING]
