"""The network that sees where a prediction is wrong (guided collaborative training, Ke et al., ECCV 2020)."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class HalfInstanceNorm(nn.Module):
    """Batch norm of the first half of the channels, instance norm without weights of the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.half = channels // 2
        self.batch_norm = nn.BatchNorm2d(self.half)
        self.instance_norm = nn.InstanceNorm2d(channels - channels // 2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        first, second = hidden_states.tensor_split([self.half], dim=1)
        return torch.cat([self.batch_norm(first), self.instance_norm(second)], dim=1)


class FlawDetector(nn.Module):
    """How wrong a prediction is at each pixel: images (B,3,H,W) and probabilities (B,C,H,W) to a map (B,1,H,W).

    The map has no bounds. Eight convolutions of 4x4, five of stride 2, need 60 pixels a side: less is enlarged.

    Args:
        width: channels of the first one (authors: 64); the later ones have 2, 4 and 8 times as many.
    """

    LAYERS = ((1, 2), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1))  # times the width, and the stride
    LEAST = 60

    def __init__(self, num_labels: int, width: int) -> None:
        super().__init__()
        channels = [3 + num_labels, *(times * width for times, _ in self.LAYERS)]
        self.convs = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], 4, stride, padding=1) for i, (_, stride) in enumerate(self.LAYERS)
        )
        self.norms = nn.ModuleList(HalfInstanceNorm(count) for count in channels[1:])
        self.classifier = nn.Conv2d(channels[-1], 1, 4, 2, padding=1)
        for conv in (*self.convs, self.classifier):
            conv.starts_as_in_torch = True

    def forward(self, pixel_values: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        hidden_states, size = torch.cat([pixel_values, probabilities], dim=1), pixel_values.shape[-2:]
        if min(size) < self.LEAST:
            enlarged = [math.ceil(self.LEAST * side / min(size)) for side in size]
            hidden_states = F.interpolate(hidden_states, size=enlarged, mode="bilinear", align_corners=True)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden_states = F.leaky_relu(norm(conv(hidden_states)), 0.2)
        return F.interpolate(self.classifier(hidden_states), size=size, mode="bilinear", align_corners=True)
