"""Options said once: type, default, help, choices and bounds stand at the field; checks, help and docs come from it."""

from __future__ import annotations

import dataclasses
import math
import numbers
import textwrap
import types
import typing

from hf_fst.errors import UserError


def option(default, help: str, *, group: str, choices=None, low=None, high=None, above=None, card: bool = True):
    """A field of `FSTConfig`.

    Args:
        default: None where the default follows from rule, objective or preset.
        help: what it does, for the docstring and for `hf-fst train --help`.
        group: heading that it stands under.
        choices: the values accepted.
        low, high: bounds of a number, both accepted.
        above: a bound that is not accepted itself.
        card: whether model cards show it.
    """
    bounds = {"low": low, "high": high, "above": above}
    about = {"help": help, "group": group, "choices": choices and tuple(choices), "card": card, **bounds}
    return dataclasses.field(default=default, metadata=about)


def options(config) -> dict[str, dataclasses.Field]:
    """The options of a config (class or object) that were made by `option`, by name."""
    return {f.name: f for f in dataclasses.fields(config) if "group" in f.metadata}


def check(config) -> None:
    """Make sure that every option is one of its choices or within its bounds, and every number finite.

    Raises:
        UserError: with the name, the value, and what is accepted.
    """
    for name, field in options(config).items():
        value, about = getattr(config, name), field.metadata
        if value is None:
            continue
        if about["choices"] and value not in about["choices"]:
            raise UserError(f"{name} is {value!r}; use one of {', '.join(about['choices'])}.")
        if isinstance(value, numbers.Real) and not isinstance(value, bool) and not _within(value, about):
            raise UserError(f"{name} is {value}; use {_bounds(about)}.")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{field.name} is {value}; use a finite number.")


def _within(value: float, about) -> bool:
    low, high, above = about["low"], about["high"], about["above"]
    return (
        math.isfinite(value)
        and (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
    )


def _bounds(about) -> str:
    low, high, above = about["low"], about["high"], about["above"]
    if above is not None:
        return f"a number above {above}"
    if low is not None and high is not None:
        return f"a number from {low} to {high}"
    return "a finite number" if low is None else f"{low} or more"


def documented(cls):
    """Class decorator: the options become the `Attributes` of the docstring."""
    lines, group = ["", "", "Attributes:"], None
    hints = typing.get_type_hints(cls)
    for name, field in options(cls).items():
        if field.metadata["group"] != group:
            group = field.metadata["group"]
            lines += [f"    > {group}", ""]
        default = "" if field.default is None else f", defaults to `{field.default!r}`"
        lines.append(f"    {name} (`{_type_name(hints[name])}`, *optional*{default}):")
        lines += [f"        {line}" for line in textwrap.wrap(field.metadata["help"], 110, break_on_hyphens=False)]
    cls.__doc__ = textwrap.dedent(cls.__doc__ or "").strip() + "\n".join(lines)
    return cls


def _type_name(hint) -> str:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " | ".join(k.__name__ if isinstance(k, type) and not typing.get_args(k) else str(k)
                      for k in kinds if k is not types.NoneType)  # fmt: skip
