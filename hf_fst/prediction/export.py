"""Exports a network as an ONNX file that is compared with PyTorch first."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_fst.data.images import MAX_SIDE
from hf_fst.data.transforms import Normalization
from hf_fst.errors import RunError, UserError, refuse_unwritable
from hf_fst.evaluation.inference import aligns_corners, fixed_size, resize_logits
from hf_fst.models.loading import class_names, load, locate
from hf_fst.prediction.segmenter import palette_of, revision_of

TOLERANCE = 1e-3  # between the logits of PyTorch and those of onnxruntime
ONE_FILE = 1_800_000_000  # bytes of weights; a file of more than 2 GB is not possible, they go into a second one
TRACED = (2, 128, 160)  # batch, height, width; all different, so that no two are confused
TRIED = ((1, 128, 160), (2, 96, 224), (1, 160, 96), (1, 100, 150))


class Logits(nn.Module):
    """pixel_values (B, 3, H, W), red first, to logits: (B, C, h, w) at the head's stride, or (B, C, H, W)."""

    def __init__(self, network: PreTrainedModel, full_size: bool, bgr: bool = False):
        super().__init__()
        self.network, self.full_size, self.bgr = network, full_size, bgr

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.bgr:
            pixel_values = pixel_values.flip(1)
        logits = self.network(pixel_values=pixel_values).logits
        if not self.full_size:
            return logits
        return resize_logits(logits, pixel_values.shape[-2:], aligns_corners(self.network))


def export_onnx(
    model: str | Path,
    output: str | Path | None = None,
    *,
    which: str = "teacher",
    size: Sequence[int] | None = None,
    full_size: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Writes a network as an ONNX file with the input `pixel_values` (B, 3, H, W) and the output `logits`.

    The input is normalized as the image processor does; mean and deviation, class names and colors stand in the file's
    metadata (see `metadata`). Before the file appears, it is run by onnxruntime on noise of several sizes and must give
    PyTorch's logits to 1e-3.

    Args:
        model: directory or Hub id.
        output: the file; by default `model.onnx` in the model's directory, or in the working directory for a Hub id.
        which, trust_remote_code: see `hf_fst.models.loading.load_network`.
        size: (height, width) of the images; None for any size, which networks with pyramid pooling do not allow, or
            for the only one that the network takes. The batch is of any size in both cases.
        full_size: give logits (B, C, H, W) at the size of the input, not at the head's stride.
        overwrite: replace a file that is there.

    Returns:
        the file, its size, the largest difference to PyTorch, and the share of pixels with the same argmax.

    Raises:
        UserError: for a model that is not there, a file that is, a size out of range, and a network
            that cannot be exported so.
        RunError: the extra `onnx` is not installed.
    """
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript")):
        raise RunError('Export needs onnx, onnxruntime and onnxscript: pip install "hf_fst[onnx]".')
    if size is not None and (len(size) != 2 or not 1 <= min(size) <= max(size) <= MAX_SIDE):
        raise UserError(
            f"size is {tuple(size)}, but (height, width) in pixels is needed, {MAX_SIDE} at most, or None for any size."
        )
    if output is None:
        name, subfolder = locate(model, which)
        output = Path(name, subfolder) / "model.onnx" if Path(name).is_dir() else Path("model.onnx")
    output = Path(output)
    if output.exists() and not overwrite:
        raise UserError(f"{output} is there already; give another file, or --overwrite to replace it.")
    if output.is_dir():
        raise UserError(f"{output} is a folder; give a file.")
    refuse_unwritable(output.parent)
    network, processor = load(model, which, trust_remote_code=trust_remote_code)
    normalization, size = Normalization.of(processor), size or fixed_size(network.config)
    if size is None and any(type(part).__name__.endswith("2dSame") for part in network.modules()):  # of timm
        raise UserError(
            f"The backbone of {type(network).__name__} pads by the size of its input, as TensorFlow does, and tracing "
            "that for any size does not end; give --size HEIGHT,WIDTH to export it for one size."
        )
    module = Logits(network.float().eval(), full_size, normalization.bgr).eval()
    program = _trace(module, size)
    _forget_traces(program.model)
    program.model.metadata_props.update(
        metadata(network, normalization, palette_of(model, class_names(network.config)), full_size)
    )
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as folder:
        made = Path(folder, output.name)
        program.save(made, external_data=weights > ONE_FILE)
        difference, agreement = compare(module, made, size)
        if difference > TOLERANCE:
            raise UserError(
                f"The exported network differs from PyTorch by up to {difference:.2g}, more than {TOLERANCE}; "
                + ("give --size HEIGHT,WIDTH to export it for one size." if size is None else "it is not written.")
            )
        for path in sorted(Path(folder).iterdir(), key=lambda path: path == made):  # the weights first
            os.replace(path, output.parent / path.name)
    return {
        "output": str(output),
        "model_type": network.config.model_type,
        "which": which,
        "size": None if size is None else list(size),
        "full_size": full_size,
        "bytes": output.stat().st_size,
        "max_difference": difference,
        "argmax_agreement": agreement,
    }


def _forget_traces(model) -> None:
    """Drops torch's notes at nodes and values: they hold this machine's paths and up to a third of a small file."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _trace(module: Logits, size: Sequence[int] | None):
    batch, height, width = TRACED
    free = {0: torch.export.Dim.DYNAMIC}
    if size is None:
        free |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    else:
        height, width = size
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with torch.no_grad():  # with gradients, torch's own decomposition of Swin's attention fails
            return torch.onnx.export(
                module,
                (torch.zeros(batch, 3, height, width),),
                input_names=["pixel_values"],
                output_names=["logits"],
                dynamic_shapes=(free,),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        hint = "give --size HEIGHT,WIDTH to export it for one size" if size is None else "ONNX cannot express it so"
        raise UserError(f"{type(module.network).__name__} cannot be exported ({reason}); {hint}.") from error
    finally:
        exporter.setLevel(level)


def compare(module: nn.Module, file: Path, size: Sequence[int] | None) -> tuple[float, float]:
    """The largest difference between the logits of PyTorch and onnxruntime, and the share of pixels with the same
    argmax, on noise. An input that onnxruntime does not take makes an infinite difference."""
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # we report failures ourselves
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    shapes = TRIED if size is None else ((1, *size), (2, *size))
    generator = torch.Generator().manual_seed(0)
    difference, same, pixels = 0.0, 0, 0
    for batch, height, width in shapes:
        pixel_values = torch.randn(batch, 3, height, width, generator=generator)
        try:
            with torch.no_grad():
                expected = module(pixel_values).numpy()
        except (RuntimeError, ValueError):  # the network itself does not take this size
            if size is not None:
                raise
            continue
        try:
            found = session.run(["logits"], {"pixel_values": pixel_values.numpy()})[0]
        except (Fail, InvalidArgument, RuntimeException):
            return float("inf"), 0.0
        difference = max(difference, float(np.abs(found - expected).max()))
        equal = found.argmax(1) == expected.argmax(1)
        same, pixels = same + int(equal.sum()), pixels + equal.size
    return difference, same / max(pixels, 1)


def metadata(
    network: PreTrainedModel, normalization: Normalization, palette: np.ndarray, full_size: bool
) -> dict[str, str]:
    """What whoever runs the file must know, as JSON values: `classes`, `palette`, `image_mean` and `image_std` of
    RGB in 0..1 (pixel_values = (rgb / 255 - mean) / std), `align_corners` (how to resize logits), `full_size`,
    `model_type`, `revision` (of the weights)."""
    order = slice(None, None, -1 if normalization.bgr else 1)
    values = {
        "classes": class_names(network.config),
        "palette": palette.tolist(),
        "image_mean": normalization.mean[order],
        "image_std": normalization.std[order],
        "align_corners": aligns_corners(network),
        "full_size": full_size,
        "model_type": network.config.model_type,
        "revision": revision_of(network),
    }
    return {key: json.dumps(value) for key, value in values.items()}
