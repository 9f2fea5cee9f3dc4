"""DeepLabV3+ (Chen et al., ECCV 2018) on a dilated ResNet, in the two forms that semi-supervised work uses."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .resnet import ResNetSegmentationConfig, ResNetSegmentationModel
from .segmentation import ConvBNReLU, PooledBatchNorm2d, classifier


class DeepLabV3PlusConfig(ResNetSegmentationConfig):
    """Configuration of DeepLabV3+. The defaults are the decoder of the paper's semi-supervised experiments (U2PL's).

    Args:
        hidden_size: channels of each ASPP branch and of the decoder.
        dilations: of the 3x3 branches.
        projection_kernel_size: of the convolution that fuses the branches: 3, or 1 as in the DeepLabV3+ paper.
        low_level_size: channels of the stride-4 features: 256, or 48 as in the DeepLabV3+ paper.
        decoder_bias: whether the decoder's convolutions have a bias in front of their batch norm.
        use_auxiliary_head: a second classifier on the third stage (the paper's Cityscapes experiments).
        representation_size: channels of a head beside the classifier, whose output is `features` (U2PL: 256); 0 for
            none.
    """

    model_type = "deeplabv3plus"

    hidden_size: int = 256
    dilations: list[int] | tuple[int, ...] = (12, 24, 36)
    projection_kernel_size: int = 3
    low_level_size: int = 256
    decoder_bias: bool = True
    use_auxiliary_head: bool = False
    representation_size: int = 0
    align_corners: bool = True


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: image pooling, 1x1 and dilated 3x3 branches, concatenated in this order."""

    def __init__(self, in_channels: int, out_channels: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.image_pool = ConvBNReLU(in_channels, out_channels, norm=PooledBatchNorm2d)
        self.branches = nn.ModuleList(
            [ConvBNReLU(in_channels, out_channels)]
            + [ConvBNReLU(in_channels, out_channels, 3, dilation) for dilation in dilations]
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # Pooled to 1x1, so that resizing it is repeating it.
        pooled = self.image_pool(F.adaptive_avg_pool2d(hidden_states, 1)).expand(-1, -1, *hidden_states.shape[-2:])
        return torch.cat([pooled, *[branch(hidden_states) for branch in self.branches]], dim=1)


class DeepLabV3PlusHead(nn.Module):
    """ASPP on the last level, joined with the first level: four levels to logits (B,num_labels,H/4,W/4)."""

    def __init__(self, config: DeepLabV3PlusConfig, in_channels: list[int]) -> None:
        super().__init__()
        width = config.hidden_size
        self.aspp = ASPP(in_channels[-1], width, tuple(config.dilations))
        self.projection = ConvBNReLU((2 + len(config.dilations)) * width, width, config.projection_kernel_size)
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.low_level = ConvBNReLU(in_channels[0], config.low_level_size, bias=config.decoder_bias)
        joined = config.low_level_size + width
        self.classifier = nn.Sequential(*self._convolutions(config, joined), classifier(width, config.num_labels))
        self.representation = None
        if config.representation_size:
            self.representation = nn.Sequential(
                *self._convolutions(config, joined), nn.Conv2d(width, config.representation_size, 1)
            )

    @staticmethod
    def _convolutions(config: DeepLabV3PlusConfig, in_channels: int) -> list[nn.Module]:
        """Two 3x3 convolutions, each followed by channel dropout."""
        width, dropout, bias = config.hidden_size, config.classifier_dropout_prob, config.decoder_bias
        first, second = (ConvBNReLU(channels, width, 3, bias=bias) for channels in (in_channels, width))
        return [first, nn.Dropout2d(dropout), second, nn.Dropout2d(dropout)]

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        low_level = self.low_level(features[0])
        context = self.dropout(self.projection(self.aspp(features[-1])))
        context = F.interpolate(context, size=low_level.shape[-2:], mode="bilinear", align_corners=True)
        joined = torch.cat([low_level, context], dim=1)
        if self.representation is None:
            return self.classifier(joined)
        return self.classifier(joined), self.representation(joined)


class AuxiliaryHead(nn.Module):
    """3x3 convolution, dropout and classifier on the third level: (B,num_labels,H/8,W/8)."""

    def __init__(self, config: DeepLabV3PlusConfig, in_channels: list[int]) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_channels[2], config.hidden_size, 3, bias=config.decoder_bias)
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = classifier(config.hidden_size, config.num_labels)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.classifier(self.dropout(self.conv(features[2])))


class DeepLabV3PlusForSemanticSegmentation(ResNetSegmentationModel):
    """DeepLabV3+: logits (B,C,H/4,W/4); resize them with `align_corners=config.align_corners`."""

    config_class = DeepLabV3PlusConfig
    # U2PL's pixel embedding head, which never ran; checkpoints of version 0.1 hold it
    _keys_to_ignore_on_load_unexpected = [r"^decode_head\.representation\."]

    def __init__(self, config: DeepLabV3PlusConfig) -> None:
        super().__init__(config)
        self.decode_head = DeepLabV3PlusHead(config, self.backbone.channels)
        if config.use_auxiliary_head:
            self.auxiliary_head = AuxiliaryHead(config, self.backbone.channels)
        self.post_init()
