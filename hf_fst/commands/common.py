"""What several commands share: flags and how their values are read."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def whole(smallest: int, largest: int | None = None):
    """The type of an option that takes whole numbers from `smallest` on, to `largest` where there is such."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest or (largest is not None and int(text) > largest):
            bounds = f"{smallest} or more" if largest is None else f"{smallest} to {largest}"
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number, {bounds}")
        return int(text)

    return number


def add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the directory of a run, any saved model, or a Hub id")


def add_student(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--student", action="store_true", help="the student of a run, not its teacher")


def add_views(parser: argparse.ArgumentParser) -> None:
    """How images are looked at; `views` reads it."""
    parser.add_argument(
        "--resize",
        metavar="W,H",
        help="resize images into this, keeping the ratio; `model`: as its image processor; `none`: full size; "
        "default: as the run was evaluated in training, full size for others",
    )
    parser.add_argument("--window", type=whole(1), metavar="PIXELS", help="side of windows that slide over the image")
    parser.add_argument("--stride", type=whole(1), metavar="PIXELS", help="from window to window (two thirds of it)")
    parser.add_argument("--scales", default="1", metavar="S,...", help="scales to average over, such as 0.75,1,1.25")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")


def add_batches(parser: argparse.ArgumentParser, readers: str = "processes") -> None:
    """How many at once; `batches` reads it."""
    parser.add_argument(
        "--batch_size", "--batch-size", type=whole(1), default=1, metavar="N", help="images at once (1)"
    )
    parser.add_argument(
        "-j", "--workers", type=whole(0), default=0, metavar="N", help=f"{readers} that read images (0)"
    )


def views(arguments: argparse.Namespace) -> dict[str, object]:
    """The options of `add_views` by their names in Python. Raises `UsageError`."""
    return {
        "resize": _resize(arguments.resize, arguments.model),
        "window": arguments.window,
        "stride": arguments.stride,
        "scales": numbers(arguments.scales, "scales", float),
        "flip": arguments.flip,
    }


def which(arguments: argparse.Namespace) -> str:
    """What `add_student` says."""
    return "student" if arguments.student else "teacher"


def batches(arguments: argparse.Namespace) -> dict[str, int]:
    """The options of `add_batches` by their names in Python."""
    return {"batch_size": arguments.batch_size, "num_workers": arguments.workers}


def _resize(given: str | None, model: str) -> list[int] | str | None:
    """What `--resize` says, or what the recipe beside the model does."""
    if given is not None:
        return None if given == "none" else "model" if given == "model" else numbers(given, "resize", int, 2)
    recipe = Path(model, "recipe.yaml")
    if not recipe.is_file():
        return None
    import yaml

    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    return next((values[key] for key in ("eval_resize", "unlabeled_resize", "resize") if key in values), None)


def numbers(text: str, name: str, kind: type, count: int | None = None) -> list:
    """Numbers with commas between them. Raises `UsageError`."""
    from hf_fst.errors import UsageError

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

    from hf_fst.errors import UsageError

    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"--options has {pair!r}; give KEY=VALUE.")
    return {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
