"""`hf-fst convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from hf_fst.commands.common import Output
from hf_fst.errors import UsageError, UserError, did_you_mean, refuse_unwritable


def convert(
    path: Annotated[str, Argument(metavar="PATH", help="The .pth file.")],
    model: Annotated[str, Option(metavar="NAME", help="The network: a name from hf_fst.models.BUILDS.")],
    output: Output,
    which: Annotated[Literal["teacher", "student"], Option(help="Which network's weights.")] = "teacher",
    id2label: Annotated[
        str | None,
        Option(
            "--id2label",
            metavar="FILE",
            help="JSON with the class names; default: Cityscapes' for 19, VOC's for 21 classes.",
        ),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Write into a directory that is not empty.")] = False,
) -> dict:
    """Turn a published checkpoint into a Hub model.

    A .pth checkpoint (the authors', DAFormer's, UniMatch's) becomes an ordinary model directory. Nothing but tensors is
    unpickled.

    Examples:
      hf-fst convert iter_40000.pth --model daformer-mit-b5 --which student --output converted/daformer-b5
    """
    from hf_fst.data.cityscapes import NAMES as CITYSCAPES
    from hf_fst.data.folders import read_id2label
    from hf_fst.data.voc import NAMES as VOC
    from hf_fst.models import BUILDS
    from hf_fst.models.convert import convert
    from hf_fst.models.loading import default_processor

    directory = Path(output)
    if directory.exists() and not overwrite and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is not empty; give another --output, or --overwrite to write into it.")
    refuse_unwritable(directory)
    if model not in BUILDS:
        raise UsageError(f"There is no network {model!r}; {did_you_mean(model, BUILDS)}")
    names = read_id2label(id2label) if id2label else {19: CITYSCAPES, 21: VOC}[BUILDS[model].num_labels]
    network = convert(
        path,
        model,
        which,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    network.save_pretrained(directory)
    default_processor().save_pretrained(directory)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(
        f"{directory} holds {model} with {parameters:,} parameters; load it with from_pretrained.\n"
        "Its image processor has ImageNet's mean and deviation, as all published training code of these networks; a "
        "checkpoint does not say. If yours was trained with others, correct them in preprocessor_config.json."
    )
    return {"output": str(directory), "model": model, "which": which, "parameters": parameters}
