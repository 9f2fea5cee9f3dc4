"""The options of rules and objectives, each described once, and the one function that makes either from them.

A field of a rule or an objective refers to its row in `TABLE` and holds the published default:
`num_steps: int = option(3, "lookahead_steps")`. `FSTConfig` has a field for each row.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

from hf_fst.errors import UserError
from hf_fst.kinds import fits, hints_of, in_words

MOST = 1000  # virtual steps in a step, or unlabeled images for a labeled one; more would never end


class Option(str):
    """The help of an option, and what else is known of it.

    It is text, so that a dataclass field may hold it as the `help` that argument parsers show.

    Args:
        help: what the option means, without its default.
        group: the heading it stands under.
        default: what is in force where the option is left out; None for nothing, or where it depends on the method.
        choices: the accepted words.
        low, high: smallest and largest accepted number; of a list, those of each item.
        above: the number that must be exceeded.
        unused_by: names of rules and objectives with which it does nothing, though it may be given.
        only_with: another option, without which this one does nothing.
        card: whether the model card shows it.
    """

    def __new__(cls, help: str, **facts):
        return super().__new__(cls, help)

    def __init__(
        self,
        help: str,
        *,
        group: str = "Objective",
        default: Any = None,
        choices: tuple[str, ...] | None = None,
        low: float | None = None,
        high: float | None = None,
        above: float | None = None,
        unused_by: tuple[str, ...] = (),
        only_with: str | None = None,
        card: bool = True,
    ):
        self.group, self.default, self.choices, self.card = group, default, choices, card
        self.low, self.high, self.above, self.unused_by, self.only_with = low, high, above, unused_by, only_with

    def check(self, name: str, value: Any, annotation: Any) -> None:
        """Refuse a value of the wrong type, that is no choice, out of bounds, nan or infinite; None stands for left out.

        Raises:
            UserError: one sentence with the name, the value and what is accepted.
        """
        if value is None:
            return
        if not fits(value, annotation):
            raise UserError(f"{name} is {value!r}; give {in_words(annotation)}.")
        if self.choices is not None and value not in self.choices:
            if len(self.choices) == 1:
                raise UserError(f"{name} is {value!r}; use {self.choices[0]!r} or leave it out.")
            raise UserError(f"{name} is {value!r}; use one of {', '.join(self.choices)}.")
        if isinstance(value, (list, tuple)):
            if self.low is not None and (not value or not all(self._allows(item) for item in value)):
                raise UserError(f"{name} is {value}; give ids of classes, {self.low} or more, or None for all.")
            if self.low is not None and len({*value}) < len(value):
                raise UserError(f"{name} is {value}; name each class once.")
        elif isinstance(value, numbers.Real) and not isinstance(value, bool) and not self._allows(value):
            raise UserError(f"{name} is {value}; use {self.bounds()}.")

    def _allows(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
        )

    def bounds(self) -> str:
        """The accepted numbers in words."""
        if self.high is not None:
            return f"a number from {self.low} to {self.high}"
        if self.above is not None:
            return f"a number above {self.above}"
        return "a finite number" if self.low is None else f"{self.low} or more"


TABLE = {
    "lookahead_steps": Option(
        "how many steps fst_d looks ahead, K; 0 is the mean teacher", low=0, high=MOST, group="Look-ahead"
    ),
    "lookahead_students": Option("how many virtual students fst_w has, N", low=1, high=MOST, group="Look-ahead"),
    "lookahead_batches": Option(
        "what virtual steps learn from: the 'same' images as the real step or 'different' ones drawn for them",
        choices=("same", "different"),
        group="Look-ahead",
    ),
    "lookahead_every": Option(
        "look ahead at every M-th step; a future then weighs as much as M of them, the steps between are those of a mean "
        "teacher, and a step costs 1 + K/M mean-teacher steps on average",
        low=1,
        group="Look-ahead",
    ),
    "lookahead_labels": Option(
        "who labels for the students of fst_w: the teacher after it 'followed' the present student (the authors' code), "
        "or the teacher at 'present' (as printed in the paper)",
        choices=("followed", "present"),
        group="Look-ahead",
    ),
    "unlabeled_weight": Option("weight of the unlabeled term, lambda", low=0),
    "unlabeled_weighting": Option(
        "how pseudo-labels weigh: 'constant', by the 'quality' of all (the share of confident pixels), or by 'threshold' "
        "(confident pixels alone)",
        choices=("constant", "quality", "threshold"),
    ),
    "confidence_threshold": Option("confidence from which a pseudo-label counts as confident", low=0, high=1),
    "pseudo_ignore_top": Option("rows at the top of unlabeled crops that are not learned from", low=0),
    "pseudo_ignore_bottom": Option("rows at the bottom of unlabeled crops that are not learned from", low=0),
    "mix_classes": Option(
        "choose among the classes of each labeled 'image' or of the whole 'batch' (the authors' code)",
        choices=("image", "batch"),
    ),
    "cut_probability": Option("probability that an image is cut", low=0, high=1),
    "cut_partner": Option(
        "what is pasted into an unlabeled image: the 'next' one of the batch, or another view of the 'same' image (the "
        "code of UniMatch and CPS)",
        choices=("next", "same"),
    ),
    "feature_stream_weight": Option("weight of the stream with dropped feature channels, lambda of UniMatch", low=0),
    "strong_views_weight": Option("weight of both strong views together, mu of UniMatch", low=0),
    "feature_dropout": Option("probability that a feature channel is dropped", low=0, high=1),
    "entropy_drop_percent": Option(
        "drop the pseudo-labels whose entropy is at this percentile of the batch or above", low=0, high=100
    ),
    "ohem_threshold": Option(
        "learn only from labeled pixels whose right class has at most this probability (the authors' Cityscapes recipe: "
        "0.7); all pixels if left out",
        low=0,
        high=1,
    ),
    "ohem_min_kept": Option(
        "but from at least this many pixels of a batch, the hardest", low=0, only_with="ohem_threshold"
    ),
    "feature_distance_weight": Option(
        "weight of the distance of the student's last features on labeled images from those of a frozen network "
        "(`reference_model` of the trainer; DAFormer and the authors' code: 0.005)",
        low=0,
    ),
    "feature_distance_classes": Option(
        "ids of the classes where that distance is taken (the authors' code: Cityscapes' things); all if left out",
        low=0,
        only_with="feature_distance_weight",
    ),
    "prototype_temperature": Option("temperature of the distances of features from prototypes", above=0),
    "prototype_momentum": Option("how slowly the prototypes follow the teacher's features", low=0, high=1),
    "prototype_passes": Option(
        "how often the unlabeled images are seen before the first step for the prototypes to start with", above=0
    ),
    "consistency_weight": Option(
        "weight of the consistency: of a strong view with the image (proda, cpsl), of two branches (gct)", low=0
    ),
    "ramp_share": Option("share of the run in which the weight of the consistency rises", low=0, high=1),
    "annealed_threshold": Option(
        "learn only from labeled pixels whose right class has at most a probability that rises to this in the first 40 % "
        "of the run; 0 for all pixels",
        low=0,
        high=1,
    ),
    "vat_step": Option("length of the step that finds the adversarial direction, xi", above=0),
    "flaw_correction_weight": Option("weight of the flaws that a detector sees in both branches", low=0),
    "flaw_threshold": Option("predictions with a flaw from this on do not teach the other branch, xi", low=0, high=1),
    "contrast_weight": Option("weight of the contrast of pixels with classes", low=0),
    "contrast": Option(
        "the contrast of the 'paper', or as 'coded' by the authors of U2PL, whose labels, negatives and banks differ",
        choices=("paper", "coded"),
        only_with="contrast_weight",
    ),
    "bank_size": Option("how many pixels are remembered, for each class by u2pl, in total by cpsl", low=1),
    "self_labeling_weight": Option("weight of the loss by which prototypes label themselves", low=0),
    "self_labeling": Option(
        "that loss of the 'paper', or as it is 'coded' by the authors of CPSL",
        choices=("paper", "coded"),
        only_with="self_labeling_weight",
    ),
    "distillation_weight": Option("weight of the divergence from the fixed network's probabilities", low=0),
    "distillation": Option(
        "that divergence: 'kl', or as it is 'coded' by the authors of ProDA, with p instead of log p",
        choices=("kl", "coded"),
        only_with="distillation_weight",
    ),
    "regularizer_weight": Option("weight of what keeps predictions from collapsing", low=0),
    "jitter_probability": Option("probability that the colors of an image are jittered", low=0, high=1),
    "jitter_strength": Option(
        "brightness, contrast, saturation and hue are drawn within plus or minus this (unimatch: the hue within half)",
        low=0,
        high=0.5,
        only_with="jitter_probability",
    ),
    "gray_probability": Option("probability that an image loses its colors", low=0, high=1),
    "blur_probability": Option("probability that an image is blurred", low=0, high=1),
    "augmentation_draw": Option(
        "draw jitter, blur and cuts for each 'image' or once for the whole 'batch' (the authors' code)",
        choices=("image", "batch"),
    ),
    "loss_reduction": Option(
        "a loss is the mean over 'valid' pixels or over 'all', ignored ones included (the authors' code)",
        choices=("valid", "all"),
    ),
    "auxiliary_loss_weight": Option(
        "weight of the loss of each auxiliary head, for models that return `auxiliary_logits`", low=0
    ),
    "auxiliary_pseudo_weight": Option(
        "whether auxiliary heads weigh pseudo-labels as the main head does, or by 1 (false, the authors' code)"
    ),
}


def option(default: Any, name: str | None = None) -> Any:
    """A field of a rule, an objective or a part for an option of `TABLE`: that of the field's name, or `name`.
    `default` is that of the published recipe."""
    return dataclasses.field(default=default, metadata={"option": name or True})


def part(kind: type, switch: str) -> Any:
    """A field for a component that has options of its own; `make` builds it where the option `switch` is not 0."""
    return dataclasses.field(default=None, metadata={"part": kind, "switch": switch})


def options_of(kind: Any) -> dict[str, tuple[dataclasses.Field, str | None]]:
    """The options of a rule, an objective or a config (class or object), by name: the field of each, and the field of
    the part that it belongs to, None for none."""
    found: dict[str, tuple[dataclasses.Field, str | None]] = {}
    for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        if "option" in field.metadata:
            name = field.metadata["option"]
            found[field.name if name is True else name] = (field, None)
        elif "part" in field.metadata:
            found |= {name: (own, field.name) for name, (own, _) in options_of(field.metadata["part"]).items()}
    return found


def defaults_of(kind: type) -> dict[str, Any]:
    """The options of a rule or an objective with their published defaults, by name."""
    return {name: field.default for name, (field, _) in options_of(kind).items()}


def values_of(made: Any) -> dict[str, Any]:
    """The options that are in force in a rule or an objective, by name, e.g. `{"lookahead_steps": 3, …}`."""
    found = {}
    for name, (field, component) in options_of(made).items():
        owner = made if component is None else getattr(made, component)
        found[name] = field.default if owner is None else getattr(owner, field.name)
    return found


def check(made: Any) -> None:
    """Checks all options of a rule, an objective or a part; each calls this when it is made. Raises as
    `Option.check`."""
    hints = hints_of(type(made))
    for name, (field, component) in options_of(made).items():
        if component is None:
            TABLE[name].check(name, getattr(made, field.name), hints[field.name])


def given_to(kinds: Mapping[str, type], given: Mapping[str, Any]) -> dict[str, Any]:
    """Of `given`, what is not None and an option of one of `kinds`."""
    known = {name for kind in kinds.values() for name in options_of(kind)}
    return {name: value for name, value in given.items() if name in known and value is not None}


def refuse_foreign(what: str, kinds: Mapping[str, type], name: str, given: Mapping[str, Any]) -> None:
    """Raises `UserError`, with who has the option, for options that only other rules (or objectives) have."""
    for key in given_to(kinds, given):
        owners = [other for other, kind in kinds.items() if key in options_of(kind)]
        if name not in owners:
            raise UserError(f"{key} is set but the {what} is {name}; leave it out or use {' or '.join(owners)}.")


def make(what: str, kinds: Mapping[str, type], name: str, given: Mapping[str, Any], **context) -> Any:
    """The rule or objective called `name`.

    Args:
        what: "rule" or "objective", for the sentences.
        kinds: the classes by name.
        name: a key of `kinds`.
        given: values by option; None stands for the default, and options of no kind are passed over.
        context: what fields that are no options need to know of the run, such as `num_labels`; each takes its own.

    Raises:
        UserError: no such name, an option that it does not have, or a value that is not accepted.
    """
    if name not in kinds:
        raise UserError(f"{what} is {name!r}; use one of {', '.join(kinds)}.")
    refuse_foreign(what, kinds, name, given)
    kind, own = kinds[name], options_of(kinds[name])
    arguments: dict[str | None, dict[str, Any]] = {}  # by part; those of the kind itself under None
    for key, value in given_to(kinds, given).items():
        field, component = own[key]
        arguments.setdefault(component, {})[field.name] = value
    made = arguments.pop(None, {})
    for field in dataclasses.fields(kind):
        if field.name in arguments and given.get(field.metadata["switch"]):
            component = field.metadata["part"]
            made[field.name] = component(**arguments[field.name], **_needed(component, context))
    return kind(**made, **_needed(kind, context))


def _needed(kind: type, context: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind) if field.init}
    return {name: value for name, value in context.items() if name in names}
