"""What several commands share: flags and how their values are read."""

from __future__ import annotations

import argparse
import os


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def numbers(text: str, name: str, kind: type, count: int | None = None) -> list:
    """Numbers with commas between them. Raises `UsageError`."""
    from hf_fst.recipes.keys import UsageError

    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or (count is not None and len(values) != count):
        raise UsageError(f"--{name} is {text!r}; give {count or 'one or more'} numbers with commas between them.")
    return values


def options(pairs: list[str]) -> dict[str, object]:
    """`KEY=VALUE` pairs, the values as YAML. Raises `UsageError`."""
    import yaml

    from hf_fst.recipes.keys import UsageError

    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"--options has {pair!r}; give KEY=VALUE.")
    return {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
