"""The head of `fpn-*`: with identities for its convolutions, the sum of all levels at the size of the finest."""

import torch
from torch import nn
from torch.nn import functional as F

from hf_fst.models.fpn import FPNConfig, FPNHead


def plain_head(levels: int) -> FPNHead:
    """A head whose convolutions pass on what they take: one class a channel."""
    head = FPNHead(FPNConfig(hidden_size=3, num_labels=3), [3] * levels).eval()
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight)
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.0
    nn.init.zeros_(head.classifier.bias)
    return head


def test_levels_are_resized_and_summed_from_the_coarsest_on():
    generator = torch.Generator().manual_seed(0)
    levels = [torch.rand(2, 3, *size, generator=generator) for size in ((8, 12), (4, 6), (2, 3))]
    fine, middle, coarse = levels
    expected = middle + F.interpolate(coarse, size=(4, 6), mode="bilinear", align_corners=False)
    expected = fine + F.interpolate(expected, size=(8, 12), mode="bilinear", align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(plain_head(3)(levels), expected)


def test_each_level_is_rectified_before_the_sum():
    with torch.no_grad():
        logits = plain_head(2)([torch.full((1, 3, 2, 2), 5.0), torch.full((1, 3, 1, 1), -2.0)])
    assert logits.unique().tolist() == [5.0]
