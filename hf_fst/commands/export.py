"""`hf-fst export`."""

from __future__ import annotations

import argparse

from hf_fst.commands.common import add_common, add_model, add_student, numbers, which


def add(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write a model as an ONNX file",
        description="Write a model as an ONNX file: input pixel_values (B, 3, H, W), output logits (B, C, h, w).\n"
        "Class names, colors, mean and deviation are in the file's metadata. The file is compared with PyTorch\n"
        "before it is written.",
        epilog="examples:\n"
        "  hf-fst export runs/street_da_fst_d --to onnx -o street.onnx\n"
        "  hf-fst export runs/upernet --to onnx --size 512,1024 --full_size\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model(parser)
    add_student(parser)
    parser.add_argument("--to", choices=("onnx",), default="onnx", help="the format (onnx)")
    parser.add_argument("-o", "--output", metavar="FILE", help="the file (model.onnx in the model's directory)")
    parser.add_argument(
        "--size", default="dynamic", metavar="H,W", help="height and width of the images; `dynamic`: any (the default)"
    )
    parser.add_argument(
        "--full_size", "--full-size", action="store_true", help="logits at the size of the image, not smaller"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, overrides: dict[str, str]) -> dict:
    from hf_fst.prediction.export import export_onnx

    result = export_onnx(
        arguments.model,
        arguments.output,
        which=which(arguments),
        size=None if arguments.size == "dynamic" else numbers(arguments.size, "size", int, 2),
        full_size=arguments.full_size,
        overwrite=arguments.overwrite,
    )
    print(
        f"{result['output']} ({result['bytes'] / 1e6:.1f} MB) gives PyTorch's logits to {result['max_difference']:.1g}; "
        f"{100 * result['argmax_agreement']:.4g} % of pixels of noise have the same class."
    )
    return result
