"""`hf-fst export`."""

from __future__ import annotations

from typing import Annotated, Literal

from typer import Option

from hf_fst.commands.common import Model, Student, Trust, numbers, which


def export(
    model: Model,
    student: Student = False,
    to: Annotated[Literal["onnx"], Option(help="The format.")] = "onnx",
    output: Annotated[
        str | None,
        Option("--output", "-o", metavar="FILE", help="The file; default: model.onnx in the model's directory."),
    ] = None,
    size: Annotated[
        str, Option(metavar="H,W", help="Height, then width of the images the file takes; `dynamic`: any.")
    ] = "dynamic",
    full_size: Annotated[bool, Option("--full_size", help="Logits at the full size of the image.")] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an existing file.")] = False,
    trust_remote_code: Trust = False,
) -> dict:
    """Write a model as an ONNX file.

    Input pixel_values (B, 3, H, W), output logits (B, C, h, w). Class names, colors, mean and deviation are in the file's
    metadata. The file is compared with PyTorch before it is written.

    Examples:
      hf-fst export runs/street_da --to onnx -o street.onnx
      hf-fst export runs/upernet --to onnx --size 512,1024 --full_size
    """
    from hf_fst.prediction.export import export_onnx

    result = export_onnx(
        model,
        output,
        which=which(student),
        size=None if size == "dynamic" else numbers(size, "size", int, 2),
        full_size=full_size,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
    print(
        f"{result['output']} ({result['bytes'] / 1e6:.1f} MB) gives PyTorch's logits to {result['max_difference']:.1g}; "
        f"{100 * result['argmax_agreement']:.4g} % of pixels of noise have the same class."
    )
    return result
