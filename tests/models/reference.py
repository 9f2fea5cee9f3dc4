"""The published networks at tiny widths, written functionally over a state dict of their own names.

Each function takes `Weights` and pixel values (B,3,H,W) and returns logits and auxiliary logits (or None) in evaluation
mode. A weight comes into being, seeded by its name, when it is first used, so that `Weights` ends up as the state dict
that the authors would have saved.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .seeded import seeded_weight


class Weights(dict):
    """A state dict that makes what it lacks; `salt` gives another set of weights."""

    def __init__(self, salt: float = 1.0) -> None:
        super().__init__()
        self.salt = salt

    def get_or_make(self, name: str, *shape: int) -> torch.Tensor:
        if name not in self:
            self[name] = seeded_weight(name, shape) * self.salt
        return self[name]

    def conv(self, name, x, out, kernel=1, stride=1, dilation=1, bias=False, groups=1, padding=None):
        weight = self.get_or_make(f"{name}.weight", out, x.shape[1] // groups, kernel, kernel)
        offset = self.get_or_make(f"{name}.bias", out) if bias else None
        padding = dilation * (kernel // 2) if padding is None else padding
        return F.conv2d(x, weight, offset, stride, padding, dilation, groups)

    def up_conv(self, name, x, out, factor):
        weight = self.get_or_make(f"{name}.weight", x.shape[1], out, factor, factor)
        return F.conv_transpose2d(x, weight, self.get_or_make(f"{name}.bias", out), stride=factor)

    def norm(self, name, x):
        channels = x.shape[1]
        self.setdefault(f"{name}.num_batches_tracked", torch.tensor(7))
        return F.batch_norm(
            x,
            self.get_or_make(f"{name}.running_mean", channels),
            self.get_or_make(f"{name}.running_var", channels).abs(),
            self.get_or_make(f"{name}.weight", channels),
            self.get_or_make(f"{name}.bias", channels),
        )

    def linear(self, name, x, out, bias=True):
        weight = self.get_or_make(f"{name}.weight", out, x.shape[-1])
        return F.linear(x, weight, self.get_or_make(f"{name}.bias", out) if bias else None)

    def layer_norm(self, name, x, eps):
        size = x.shape[-1]
        weight, bias = self.get_or_make(f"{name}.weight", size), self.get_or_make(f"{name}.bias", size)
        return F.layer_norm(x, (size,), weight, bias, eps)


def resize(x, size, align_corners=False):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def conv_norm(w, conv, norm, x, out, kernel=1, stride=1, dilation=1, bias=False, groups=1):
    return w.norm(norm, w.conv(conv, x, out, kernel, stride, dilation, bias, groups)).relu()


def conv_module(w, name, x, out, kernel=1, dilation=1, groups=1):
    """mmcv's ConvModule."""
    return conv_norm(w, f"{name}.conv", f"{name}.bn", x, out, kernel, 1, dilation, groups=groups)


# ResNet-D8 with deep stem: widths 4, 8, 16, 32; blocks 1, 1, 1, 3.


def stem_v1c(w, x, ceil_mode):
    x = conv_norm(w, "backbone.stem.0", "backbone.stem.1", x, 4, 3, 2)
    x = conv_norm(w, "backbone.stem.3", "backbone.stem.4", x, 4, 3)
    return conv_norm(w, "backbone.stem.6", "backbone.stem.7", x, 8, 3)


def stem_wide(prefix):
    def stem(w, x, ceil_mode):
        x = conv_norm(w, f"{prefix}.conv1.0", f"{prefix}.conv1.1", x, 4, 3, 2)
        x = conv_norm(w, f"{prefix}.conv1.3", f"{prefix}.conv1.4", x, 4, 3)
        return conv_norm(w, f"{prefix}.conv1.6", f"{prefix}.bn1", x, 8, 3)

    return stem


def bottleneck(w, name, x, width, stride, dilation, project):
    y = conv_norm(w, f"{name}.conv1", f"{name}.bn1", x, width)
    y = conv_norm(w, f"{name}.conv2", f"{name}.bn2", y, width, 3, stride, dilation)
    y = w.norm(f"{name}.bn3", w.conv(f"{name}.conv3", y, 4 * width))
    if project:
        x = w.norm(f"{name}.downsample.1", w.conv(f"{name}.downsample.0", x, 4 * width, 1, stride))
    return (x + y).relu()


def resnet(w, x, prefix="backbone", stem=stem_v1c, last=(2, 4, 4), ceil_mode=False, strides=(1, 2, 1, 1)):
    """The four stages. `last`: dilations of the last stage's blocks; the one block of the third keeps dilation 1."""
    x = F.max_pool2d(stem(w, x, ceil_mode), 3, 2, 1, ceil_mode=ceil_mode)
    features = []
    dilations = ((1,), (1,), (1,), last)
    for stage, (width, stride, blocks) in enumerate(zip((4, 8, 16, 32), strides, dilations, strict=True), start=1):
        for index, dilation in enumerate(blocks):
            name = f"{prefix}.layer{stage}.{index}"
            x = bottleneck(w, name, x, width, stride if index == 0 else 1, dilation, index == 0)
        features.append(x)
    return features


# Heads of mmsegmentation.


def deeplabv2(w, x):
    x = resnet(w, x)[-1]
    names = [(f"decode_head.aspp_modules.{index}.conv", dilation) for index, dilation in enumerate((6, 12))]
    return sum(w.conv(name, x, 5, 3, dilation=dilation, bias=True) for name, dilation in names), None


def pyramid(w, x, width):
    size = x.shape[-2:]
    pooled = [
        resize(conv_module(w, f"decode_head.psp_modules.{index}.1", F.adaptive_avg_pool2d(x, scale), width), size)
        for index, scale in enumerate((1, 2, 3, 6))
    ]
    return conv_module(w, "decode_head.bottleneck", torch.cat([x, *pooled], 1), width, 3)


def pspnet(w, x):
    return w.conv("decode_head.conv_seg", pyramid(w, resnet(w, x)[-1], 8), 5, bias=True), None


def upernet_heads(w, features, width=16, auxiliary=8):
    laterals = [conv_module(w, f"decode_head.lateral_convs.{index}", features[index], width) for index in range(3)]
    laterals.append(pyramid(w, features[3], width))
    for index in (3, 2, 1):
        laterals[index - 1] = laterals[index - 1] + resize(laterals[index], laterals[index - 1].shape[-2:])
    outputs = [conv_module(w, f"decode_head.fpn_convs.{index}", laterals[index], width, 3) for index in range(3)]
    outputs = [resize(level, laterals[0].shape[-2:]) for level in (*outputs, laterals[3])]
    fused = conv_module(w, "decode_head.fpn_bottleneck", torch.cat(outputs, 1), width, 3)
    second = conv_module(w, "auxiliary_head.convs.0", features[2], auxiliary, 3)
    return (
        w.conv("decode_head.conv_seg", fused, 5, bias=True),
        w.conv("auxiliary_head.conv_seg", second, 5, bias=True),
    )


# Decoders of the semi-supervised networks: U2PL's, CCT's, AdvSemiSeg's.


def semi_encoder(w, x):
    return resnet(w, x, "encoder", stem_wide("encoder"), last=(4, 8, 16), ceil_mode=True)


def semi_deeplabv2(w, x):
    x = semi_encoder(w, x)[-1]
    names = [(f"decoder.classifier.conv2d_list.{index}", 6 * (index + 1)) for index in range(4)]
    return sum(w.conv(name, x, 5, 3, dilation=dilation, bias=True) for name, dilation in names), None


def semi_pspnet(w, x):
    x = semi_encoder(w, x)[-1]
    pooled = [
        conv_norm(w, f"decoder.psp.stages.{i}.1", f"decoder.psp.stages.{i}.2", F.adaptive_avg_pool2d(x, scale), 8)
        for i, scale in enumerate((1, 2, 3, 6))
    ]
    pooled = [resize(branch, x.shape[-2:]) for branch in pooled]
    x = conv_norm(w, "decoder.psp.bottleneck.0", "decoder.psp.bottleneck.1", torch.cat([x, *pooled], 1), 8, 3)
    x = w.conv("decoder.decoder.0", x, 5)
    for step in (1, 2, 3):
        x = F.pixel_shuffle(w.conv(f"decoder.decoder.{step}.conv", x, 20, bias=True).relu(), 2)
    return x, None


def numbered_convs(w, name, x, out):
    x = conv_norm(w, f"{name}.0", f"{name}.1", x, 8, 3, bias=True)
    x = conv_norm(w, f"{name}.4", f"{name}.5", x, 8, 3, bias=True)
    return w.conv(f"{name}.8", x, out, bias=True)


def semi_deeplabv3plus(w, x):
    first, _, third, last = semi_encoder(w, x)
    size = last.shape[-2:]
    pooled = conv_norm(w, "decoder.aspp.conv1.1", "decoder.aspp.conv1.2", F.adaptive_avg_pool2d(last, 1), 8)
    branches = [resize(pooled, size, align_corners=True)]
    for index, dilation in ((2, 1), (3, 12), (4, 24), (5, 36)):
        name = f"decoder.aspp.conv{index}"
        branches.append(conv_norm(w, f"{name}.0", f"{name}.1", last, 8, 1 if index == 2 else 3, dilation=dilation))
    low = conv_norm(w, "decoder.low_conv.0", "decoder.low_conv.1", first, 8, bias=True)
    x = conv_norm(w, "decoder.head.0", "decoder.head.1", torch.cat(branches, 1), 8, 3)
    x = torch.cat([low, resize(x, low.shape[-2:], align_corners=True)], 1)
    numbered_convs(w, "decoder.representation", x, 8)
    second = conv_norm(w, "auxor.aux.0", "auxor.aux.1", third, 8, 3, bias=True)
    return numbered_convs(w, "decoder.classifier", x, 5), w.conv("auxor.aux.4", second, 5, bias=True)


def unimatch_deeplabv3plus(w, x):
    first, *_, last = resnet(w, x, "backbone", stem_wide("backbone"), last=(1, 2, 2), strides=(1, 2, 2, 1))
    branches = [
        conv_norm(w, f"head.b{i}.0", f"head.b{i}.1", last, 8, 3 if i else 1, dilation=6 * i if i else 1)
        for i in range(4)
    ]
    pooled = conv_norm(w, "head.b4.gap.1", "head.b4.gap.2", F.adaptive_avg_pool2d(last, 1), 8)
    branches.append(resize(pooled, last.shape[-2:], align_corners=True))
    x = conv_norm(w, "head.project.0", "head.project.1", torch.cat(branches, 1), 8)
    low = conv_norm(w, "reduce.0", "reduce.1", first, 4)
    x = torch.cat([low, resize(x, low.shape[-2:], align_corners=True)], 1)
    x = conv_norm(w, "fuse.0", "fuse.1", x, 8, 3)
    x = conv_norm(w, "fuse.3", "fuse.4", x, 8, 3)
    return w.conv("classifier", x, 5, bias=True), None
