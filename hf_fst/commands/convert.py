"""`hf-fst convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_fst.commands.common import add_common
from hf_fst.errors import UserError


def add(commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="turn a published checkpoint into a Hub model",
        description="Turn a published .pth checkpoint (the authors', DAFormer's, UniMatch's) into an ordinary model\n"
        "directory. Nothing but tensors is unpickled.",
        epilog="example:\n"
        "  hf-fst convert iter_40000.pth --model daformer-mit-b5 --which student --output converted/daformer-b5\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH", help="the .pth file")
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="the network: a name out of hf_fst.models.BUILDS"
    )
    parser.add_argument("--which", choices=("teacher", "student"), default="teacher", help="whose weights (teacher)")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="the directory to write")
    parser.add_argument(
        "--id2label",
        metavar="FILE",
        help="JSON with the class names; default: Cityscapes' for 19, VOC's for 21 classes",
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a directory that is not empty")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, overrides: dict[str, str]) -> dict:
    from transformers import SegformerImageProcessor

    from hf_fst.data.cityscapes import NAMES as CITYSCAPES
    from hf_fst.data.folders import read_id2label
    from hf_fst.data.voc import NAMES as VOC
    from hf_fst.errors import UsageError
    from hf_fst.models import BUILDS
    from hf_fst.models.convert import convert

    output = Path(arguments.output)
    if output.exists() and not arguments.overwrite and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not empty; give another --output, or --overwrite to write into it.")
    if arguments.model not in BUILDS:
        raise UsageError(f"There is no network {arguments.model!r}; use one of {', '.join(BUILDS)}.")
    names = read_id2label(arguments.id2label) if arguments.id2label else None
    if names is None:
        names = {19: CITYSCAPES, 21: VOC}[BUILDS[arguments.model].num_labels]
    model = convert(
        arguments.path,
        arguments.model,
        arguments.which,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    model.save_pretrained(output)
    SegformerImageProcessor(do_resize=False).save_pretrained(output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{output} holds {arguments.model} with {parameters:,} parameters; load it with from_pretrained.")
    return {"output": str(output), "model": arguments.model, "which": arguments.which, "parameters": parameters}
