"""A light head on any backbone: the top-down sum of a feature pyramid (Lin et al., CVPR 2017) and one 3x3 convolution."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig

from .segmentation import ConvBNReLU, SegmentationConfig, SegmentationModel, SubConfigSpec, classifier


class FPNConfig(SegmentationConfig):
    """Configuration of the network.

    Args:
        backbone_config: of a transformers backbone, or of timm's, with feature levels of falling resolution.
        hidden_size: channels of the head.
    """

    model_type = "semantic-fpn"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="timm_backbone",
            init_kwargs={"backbone": "tf_efficientnet_lite0", "out_indices": [1, 2, 3, 4]},
        )
    }

    backbone_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 64


class FPNHead(nn.Module):
    """Each level gets `hidden_size` channels; from the coarsest on they are resized and added to the next finer one."""

    def __init__(self, config: FPNConfig, in_channels: list[int]) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(ConvBNReLU(channels, config.hidden_size) for channels in in_channels)
        self.smooth = ConvBNReLU(config.hidden_size, config.hidden_size, 3)
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = classifier(config.hidden_size, config.num_labels)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        *finer, total = [lateral(level) for lateral, level in zip(self.laterals, features, strict=True)]
        for level in reversed(finer):
            total = level + F.interpolate(total, size=level.shape[-2:], mode="bilinear", align_corners=False)
        return self.classifier(self.dropout(self.smooth(total)))


class FPNForSemanticSegmentation(SegmentationModel):
    """Backbone and `FPNHead`: logits (B,C,h,w) at the stride of the finest level, without an auxiliary head."""

    config_class = FPNConfig
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: FPNConfig) -> None:
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        self.decode_head = FPNHead(config, self.backbone.channels)
        self.auxiliary_head = None
        self.post_init()

    def features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        return list(self.backbone(pixel_values).feature_maps)
