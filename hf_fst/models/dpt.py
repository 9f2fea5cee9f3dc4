"""DPT (Ranftl et al., ICCV 2021) on a plain vision transformer; on DINOv2 it is the network of UniMatch V2."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig
from transformers.models.dpt.modeling_dpt import DPTPreActResidualLayer, DPTReassembleLayer

from .segmentation import SegmentationConfig, SegmentationModel, SubConfigSpec, classifier


class DPTSegmenterConfig(SegmentationConfig):
    """Configuration of DPT for segmentation, without readout token and auxiliary head.

    Args:
        backbone_config: of a transformers backbone with four feature levels of the same stride (DINOv2, DINOv3, ...).
        neck_hidden_sizes: channels of each level.
        reassemble_factors: by which each level is resized.
        fusion_hidden_size: channels of the fusion blocks and of the head.
    """

    model_type = "dpt-segmenter"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig, model_type="dinov2", init_kwargs={"out_indices": [3, 6, 9, 12]}
        )
    }

    backbone_config: dict | PreTrainedConfig | None = None
    neck_hidden_sizes: list[int] | tuple[int, ...] = (96, 192, 384, 768)
    reassemble_factors: list[float] | tuple[float, ...] = (4, 2, 1, 0.5)
    fusion_hidden_size: int = 128
    use_batch_norm_in_fusion_residual: bool = False
    use_bias_in_fusion_residual: bool | None = None
    classifier_dropout_prob: float = 0.0
    align_corners: bool = True


class FusionBlock(nn.Module):
    """Adds the next finer level to the coarser ones and resizes the sum to `size`; the coarsest block adds nothing."""

    def __init__(self, config: DPTSegmenterConfig, coarsest: bool) -> None:
        super().__init__()
        self.residual_layer1 = None if coarsest else DPTPreActResidualLayer(config)
        self.residual_layer2 = DPTPreActResidualLayer(config)
        self.projection = nn.Conv2d(config.fusion_hidden_size, config.fusion_hidden_size, 1)

    def forward(self, coarser: torch.Tensor | None, level: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        fused = level if coarser is None else coarser + self.residual_layer1(level)
        fused = self.residual_layer2(fused)
        return self.projection(F.interpolate(fused, size=size, mode="bilinear", align_corners=True))


class DPTHead(nn.Module):
    """Four maps (B,C,h,w) of one stride to logits (B,num_labels,8h,8w)."""

    def __init__(self, config: DPTSegmenterConfig) -> None:
        super().__init__()
        width = config.fusion_hidden_size
        self.reassemble = nn.ModuleList(
            DPTReassembleLayer(config, channels=channels, factor=factor)
            for channels, factor in zip(config.neck_hidden_sizes, config.reassemble_factors, strict=True)
        )
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, width, 3, padding=1, bias=False) for channels in config.neck_hidden_sizes
        )
        levels = len(config.neck_hidden_sizes)
        self.fusion = nn.ModuleList(FusionBlock(config, coarsest=level == levels - 1) for level in range(levels))
        self.output = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Dropout2d(config.classifier_dropout_prob),
            classifier(width, config.num_labels),
        )

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        levels = [
            conv(reassemble(level))
            for conv, reassemble, level in zip(self.convs, self.reassemble, features, strict=True)
        ]
        height, width = levels[0].shape[-2:]
        sizes = [(2 * height, 2 * width), *[level.shape[-2:] for level in levels[:-1]]]
        fused = None
        for block, level, size in list(zip(self.fusion, levels, sizes, strict=True))[::-1]:
            fused = block(fused, level, size)
        return self.output(fused)


class DPTSegmenter(SegmentationModel):
    """DPT: logits (B,C,8H/p,8W/p) for patch size p; H and W should be divisible by p."""

    config_class = DPTSegmenterConfig
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["Dinov2Layer", "DINOv3ViTLayer"]

    def __init__(self, config: DPTSegmenterConfig) -> None:
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        for name, parameter in self.backbone.named_parameters():
            if name.endswith("mask_token"):
                parameter.requires_grad_(False)  # only masked pretraining uses it
        self.decode_head = DPTHead(config)
        self.auxiliary_head = None
        self.post_init()

    def features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        return list(self.backbone(pixel_values).feature_maps)
