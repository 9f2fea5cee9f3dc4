"""DAFormer (Hoyer et al., CVPR 2022): Mix Transformer encoder and context-aware multi-level fusion head."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, PreTrainedConfig, SegformerModel

from .segmentation import ConvBNReLU, SegmentationConfig, SegmentationModel, SubConfigSpec, classifier


class DAFormerConfig(SegmentationConfig):
    """Configuration of DAFormer.

    Args:
        backbone_config: a `SegformerConfig`; its `layer_norm_eps` (1e-6) is applied to block and stage norms, as in the
            original MiT (transformers' own SegFormer leaves these at 1e-5).
        hidden_size: channels of the head.
        dilations: of the four branches of its separable ASPP; 1 is a 1x1 convolution.
    """

    model_type = "daformer"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="segformer")}

    backbone_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 256
    dilations: list[int] | tuple[int, ...] = (1, 6, 12, 18)


class LevelEmbedding(nn.Module):
    """Linear map of the channels of one feature level, (B,C,h,w) to (B,hidden_size,h,w); no norm, no activation."""

    def __init__(self, in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.proj(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SeparableConv(nn.Module):
    """Depthwise 3x3 and pointwise convolution, each followed by batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__()
        self.depthwise_conv = ConvBNReLU(in_channels, in_channels, 3, dilation, groups=in_channels)
        self.pointwise_conv = ConvBNReLU(in_channels, out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.pointwise_conv(self.depthwise_conv(hidden_states))


class SeparableASPP(nn.Module):
    """Parallel dilated separable convolutions, concatenated and fused by a 3x3 convolution; no image pooling."""

    def __init__(self, in_channels: int, out_channels: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.aspp_modules = nn.ModuleList(
            ConvBNReLU(in_channels, out_channels)
            if dilation == 1
            else SeparableConv(in_channels, out_channels, dilation)
            for dilation in dilations
        )
        self.bottleneck = ConvBNReLU(len(dilations) * out_channels, out_channels, 3)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.bottleneck(torch.cat([branch(hidden_states) for branch in self.aspp_modules], dim=1))


class DAFormerHead(nn.Module):
    """Context-aware feature fusion (DAFormer, section 3.2): four levels (B,C_i,h_i,w_i) to logits at stride 4."""

    def __init__(self, config: DAFormerConfig, in_channels: list[int]) -> None:
        super().__init__()
        width = config.hidden_size
        self.embed_layers = nn.ModuleList(LevelEmbedding(channels, width) for channels in in_channels)
        self.fuse_layer = SeparableASPP(len(in_channels) * width, width, tuple(config.dilations))
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = classifier(width, config.num_labels)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        size = features[0].shape[-2:]
        levels = [
            F.interpolate(embed(level), size=size, mode="bilinear", align_corners=False)
            for embed, level in zip(self.embed_layers, features, strict=True)
        ]
        return self.classifier(self.dropout(self.fuse_layer(torch.cat(levels, dim=1))))


class DAFormerForSemanticSegmentation(SegmentationModel):
    """DAFormer: logits (B,C,H/4,W/4)."""

    config_class = DAFormerConfig
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["SegformerStage"]

    def __init__(self, config: DAFormerConfig) -> None:
        super().__init__(config)
        self.backbone = SegformerModel(config.backbone_config)
        eps = config.backbone_config.layer_norm_eps
        for stage in self.backbone.stages:
            stage.layer_norm.eps = eps
            for block in stage.blocks:
                block.layernorm_before.eps = block.layernorm_after.eps = eps
        self.decode_head = DAFormerHead(config, list(config.backbone_config.hidden_sizes))
        self.auxiliary_head = None
        self.post_init()

    def features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        features = []
        for stage in self.backbone.stages:
            pixel_values = stage(pixel_values)
            features.append(pixel_values)
        return features
