"""PSPNet (Zhao et al., CVPR 2017) on a dilated ResNet, with a 1x1 classifier or pixel-shuffle upsampling."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .resnet import ResNetSegmentationConfig, ResNetSegmentationModel
from .segmentation import ConvBNReLU, PooledBatchNorm2d, classifier


class PSPNetConfig(ResNetSegmentationConfig):
    """Configuration of PSPNet.

    Args:
        hidden_size: channels of each pooled branch and of the fused map.
        pool_scales: sizes of the pooled grids.
        pixel_shuffle_steps: 0 for dropout and a 1x1 classifier at stride 8 (the paper's domain adaptation experiments);
            3 for three learned 2x upsamplings to stride 1 (its semi-supervised ones), which end in a ReLU before the
            last shuffle, so that all logits are >= 0.
    """

    model_type = "pspnet"

    hidden_size: int = 512
    pool_scales: list[int] | tuple[int, ...] = (1, 2, 3, 6)
    pixel_shuffle_steps: int = 0


class PyramidPooling(nn.Module):
    """Pooled context at several scales, concatenated with the input and fused: (B,C,h,w) to (B,hidden_size,h,w)."""

    def __init__(self, in_channels: int, hidden_size: int, pool_scales: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvBNReLU(in_channels, hidden_size, norm=PooledBatchNorm2d))
            for scale in pool_scales
        )
        self.bottleneck = ConvBNReLU(in_channels + len(pool_scales) * hidden_size, hidden_size, 3)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        size = hidden_states.shape[-2:]
        pooled = [
            F.interpolate(stage(hidden_states), size=size, mode="bilinear", align_corners=False)
            for stage in self.stages
        ]
        return self.bottleneck(torch.cat([hidden_states, *pooled], dim=1))


class PixelShuffleUp(nn.Module):
    """1x1 convolution to 4 times the channels, ReLU, and shuffle to twice the size (Shi et al., CVPR 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 1)
        self.conv.is_pixel_shuffle = True

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(F.relu(self.conv(hidden_states)), 2)


class PSPHead(nn.Module):
    """Pyramid pooling on the last feature level, then the classifier or the pixel-shuffle upsampling."""

    def __init__(self, config: PSPNetConfig, in_channels: int) -> None:
        super().__init__()
        self.pyramid = PyramidPooling(in_channels, config.hidden_size, tuple(config.pool_scales))
        if config.pixel_shuffle_steps == 0:
            self.classifier = nn.Sequential(
                nn.Dropout2d(config.classifier_dropout_prob), classifier(config.hidden_size, config.num_labels)
            )
        else:
            self.classifier = nn.Sequential(
                nn.Conv2d(config.hidden_size, config.num_labels, 1, bias=False),
                *[PixelShuffleUp(config.num_labels) for _ in range(config.pixel_shuffle_steps)],
            )

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.classifier(self.pyramid(features[-1]))


class PSPNetForSemanticSegmentation(ResNetSegmentationModel):
    """PSPNet: logits (B,C,H/8,W/8), or 8 times that with three pixel-shuffle steps."""

    config_class = PSPNetConfig

    def __init__(self, config: PSPNetConfig) -> None:
        super().__init__(config)
        self.decode_head = PSPHead(config, self.backbone.channels[-1])
        self.post_init()
