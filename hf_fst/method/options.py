"""Rules and objectives from options: both are frozen dataclasses, made here by the same function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from hf_fst.errors import UserError


def option(default, name: str | None = None):
    """A field that an option of `FSTConfig` sets.

    Args:
        default: what is in force where the option is left out: the published recipe.
        name: of the option, where it is not that of the field.
    """
    return dataclasses.field(default=default, metadata={"option": name or True})


def options_of(kind) -> dict[str, str]:
    """The options of a rule or an objective (class or object): the field of each by the option's name."""
    if not dataclasses.is_dataclass(kind):
        return {}
    fields = [f for f in dataclasses.fields(kind) if "option" in f.metadata]
    return {f.name if f.metadata["option"] is True else f.metadata["option"]: f.name for f in fields}


def values_of(made) -> dict[str, object]:
    """The options that are in force in a rule or an objective, by name."""
    return {name: getattr(made, field) for name, field in options_of(made).items()}


def refuse_foreign(what: str, kinds: Mapping[str, type], name: str, given: Mapping[str, object]) -> None:
    """Refuse options that only other rules (or objectives) have.

    Raises:
        UserError: with who has the option.
    """
    for key in given:
        owners = [other for other, kind in kinds.items() if key in options_of(kind)]
        if owners and name not in owners:
            raise UserError(f"{key} is set but the {what} is {name}; leave it out or use {' or '.join(owners)}.")


def make(what: str, kinds: Mapping[str, type], name: str, given: Mapping[str, object], **context):
    """The rule or objective called `name`.

    Args:
        what: "rule" or "objective", for the sentences.
        kinds: the classes by name.
        name: a key of `kinds`.
        given: values by option; None stands for the default.
        context: fields that are no options.

    Raises:
        UserError: no such name, or an option that it does not have.
    """
    if name not in kinds:
        raise UserError(f"{what} is {name!r}; use one of {', '.join(kinds)}.")
    given = {key: value for key, value in given.items() if value is not None}
    refuse_foreign(what, kinds, name, given)
    own = options_of(kinds[name])
    return kinds[name](**{own[key]: value for key, value in given.items() if key in own}, **context)
