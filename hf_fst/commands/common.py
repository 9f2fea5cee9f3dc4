"""What several commands share: options, and how their values are read.

Commands are imported for `--help` and completion too, so whatever takes time is imported where it is used.
"""

from __future__ import annotations

import os
from typing import Annotated

from typer import Argument, Option

from hf_fst.errors import UsageError, UserError, in_a_line

VIEWS, LOADING = "How images are seen", "Loading"

Model = Annotated[str, Argument(metavar="MODEL", help="The directory of a run, any saved model, or a Hub id.")]
Student = Annotated[bool, Option("--student", help="Use the student of a run, not its teacher.")]
Output = Annotated[str, Option("--output", "-o", metavar="DIR", help="The folder to write.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Start over, even with another model or other settings.")]

Trust = Annotated[bool, Option("--trust_remote_code", help="Run code that comes with the model; read it first.")]

Resize = Annotated[
    str | None,
    Option(
        metavar="H,W",
        help="Height, then width: images are resized to fit into this, upright ones into the reverse, keeping their "
        "ratio. `model`: as its image processor does; `none`: full size. Default: as the run was evaluated in "
        "training, full size for others.",
        rich_help_panel=VIEWS,
    ),
]
Window = Annotated[
    int | None,
    Option(min=1, metavar="PIXELS", help="Side of windows that slide over the image.", rich_help_panel=VIEWS),
]
Stride = Annotated[
    int | None,
    Option(
        min=1,
        metavar="PIXELS",
        help="Distance between windows; default: two thirds of the window.",
        rich_help_panel=VIEWS,
    ),
]
Scales = Annotated[
    str, Option(metavar="S,...", help="Scales to average over, such as 0.75,1,1.25.", rich_help_panel=VIEWS)
]
Flip = Annotated[bool, Option("--flip", help="Average with the mirrored image.", rich_help_panel=VIEWS)]

BatchSize = Annotated[
    int, Option("--batch_size", min=1, max=65536, metavar="N", help="Images per batch.", rich_help_panel=LOADING)
]
Workers = Annotated[
    int,
    Option(
        *("--workers", "-j"),
        min=0,
        max=1024,
        metavar="N",
        help="Processes or threads that read images.",
        rich_help_panel=LOADING,
    ),
]


def look(model: str, resize: str | None, window: int | None, stride: int | None, scales: str, flip: bool):
    """The `Look` of the options above. Raises `UsageError` where a list of numbers is none."""
    from hf_fst.evaluation.inference import Look
    from hf_fst.recipes.evaluation import recipe_of

    if resize is None:
        try:
            recipe = recipe_of(model)
        except UserError as error:
            raise UserError(
                f"recipe.yaml of {model} does not say at what size the run was evaluated ({in_a_line(error)}); give "
                "--resize, or correct it."
            ) from error
        size = recipe and recipe.evaluated_size
    elif resize in ("none", "model"):
        size = None if resize == "none" else resize
    else:
        size = numbers(resize, "resize", int, 2)
    return Look(window, stride, numbers(scales, "scales", float), flip, size)


def which(student: bool) -> str:
    """The network of a run that `--student` chooses."""
    return "student" if student else "teacher"


def numbers(text: str, option: str, kind: type, count: int | None = None) -> list:
    """`count` numbers of a kind, or one or more, with commas between them, which is how every option takes a list of
    numbers. Raises `UsageError`, naming the option, for anything else."""
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or (count is not None and len(values) != count):
        raise UsageError(f"--{option} is {text!r}; give {count or 'one or more'} numbers with commas between them.")
    return values


def options(pairs: list[str]) -> dict[str, object]:
    """`KEY=VALUE` pairs of a dataset's options, the values as YAML. Raises `UsageError` for anything else."""
    from hf_fst.recipes.load import parse_option

    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--options has {pair!r}; give KEY=VALUE, the value as YAML.")
        found[key] = parse_option([key], value)
    return found


def is_first_process() -> bool:
    """Whether this is the only process, or the one of several that prints."""
    return os.environ.get("RANK", "0") == "0"
