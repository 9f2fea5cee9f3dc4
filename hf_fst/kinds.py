"""Types of values: what an annotation accepts, and its words for a sentence."""

from __future__ import annotations

import functools
import numbers
import os
import types
import typing

KINDS = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: ((str, os.PathLike), "text"),
    list: ((list, tuple), "a list"),
    dict: (dict, "a mapping"),
}
hints_of = functools.cache(typing.get_type_hints)  # of a function, or of each field of a class; it takes milliseconds


def alternatives(annotation: object) -> list:
    """The types that an annotation allows, without None."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if is_union else (annotation,)
    return [kind for kind in kinds if kind is not types.NoneType]


def plain_kinds(annotation: object) -> list:
    """`alternatives` without what is in them: `list` for `list[int]`."""
    return [typing.get_origin(kind) or kind for kind in alternatives(annotation)]


def fits(value: object, annotation: object) -> bool:
    """Whether a value is of one of the annotation's kinds, all out of `KINDS`, or its None; true and false are no
    numbers."""
    if value is None:
        return types.NoneType in typing.get_args(annotation)
    kinds = plain_kinds(annotation)
    return any(isinstance(value, KINDS[kind][0]) for kind in kinds) and (not isinstance(value, bool) or bool in kinds)


def in_words(annotation: object) -> str:
    """The kinds of an annotation in words, such as "a whole number or text"."""
    return " or ".join(dict.fromkeys(KINDS[kind][1] for kind in plain_kinds(annotation) if kind in KINDS))
