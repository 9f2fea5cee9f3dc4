"""DeepLabV2 (Chen et al., TPAMI 2018) on a dilated ResNet: the head is a sum of dilated 3x3 classifiers."""

from __future__ import annotations

import torch
from torch import nn

from .resnet import ResNetSegmentationConfig, ResNetSegmentationModel
from .segmentation import classifier


class DeepLabV2Config(ResNetSegmentationConfig):
    """Configuration of DeepLabV2.

    Args:
        dilations: of the parallel classifiers: (6, 12) in the paper's domain adaptation experiments, (6, 12, 18, 24) in
            its semi-supervised ones.
    """

    model_type = "deeplabv2"

    dilations: list[int] | tuple[int, ...] = (6, 12)


class DeepLabV2Head(nn.Module):
    """Sum of dilated 3x3 classifiers on the last feature level: (B,C,h,w) to (B,num_labels,h,w)."""

    def __init__(self, config: DeepLabV2Config, in_channels: int) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(
            classifier(in_channels, config.num_labels, 3, dilation) for dilation in config.dilations
        )

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        return sum(layer(features[-1]) for layer in self.classifiers)


class DeepLabV2ForSemanticSegmentation(ResNetSegmentationModel):
    """DeepLabV2: logits (B,C,H/8,W/8)."""

    config_class = DeepLabV2Config

    def __init__(self, config: DeepLabV2Config) -> None:
        super().__init__(config)
        self.decode_head = DeepLabV2Head(config, self.backbone.channels[-1])
        self.post_init()
