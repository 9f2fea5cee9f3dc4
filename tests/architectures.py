"""Segmentation models of transformers, each from a tiny config with three classes and random weights."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    ConvNextConfig,
    Data2VecVisionConfig,
    Data2VecVisionForSemanticSegmentation,
    DPTConfig,
    DPTForSemanticSegmentation,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from tests.device import DEVICE

VIT = {
    "image_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
BEIT = {**VIT, "patch_size": 4, "pool_scales": [1, 2], "auxiliary_channels": 8, "use_relative_position_bias": True}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
UPERNET = {"hidden_size": 8, "pool_scales": [1, 2], "auxiliary_channels": 8}


def segformer():
    config = SegformerConfig(
        num_labels=3,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        sr_ratios=[4, 2, 1, 1],
        decoder_hidden_size=8,
    )
    return SegformerForSemanticSegmentation(config)


def beit():
    return BeitForSemanticSegmentation(BeitConfig(num_labels=3, out_indices=[1, 2, 3, 4], **BEIT))


def data2vec():
    return Data2VecVisionForSemanticSegmentation(Data2VecVisionConfig(num_labels=3, out_indices=[0, 1, 2, 3], **BEIT))


def upernet_swin():
    backbone = SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=4,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=2,
        out_features=STAGES,
    )
    return UperNetForSemanticSegmentation(
        UperNetConfig(num_labels=3, backbone_config=backbone, auxiliary_in_channels=16, **UPERNET)
    )


def upernet_convnext():
    backbone = ConvNextConfig(hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 1, 1], out_features=STAGES)
    return UperNetForSemanticSegmentation(
        UperNetConfig(num_labels=3, backbone_config=backbone, auxiliary_in_channels=8, **UPERNET)
    )


def dpt():
    config = DPTConfig(
        num_labels=3,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[4, 4, 8, 8],
        fusion_hidden_size=8,
        **VIT,
    )
    return DPTForSemanticSegmentation(config)


def mobilevit():
    config = MobileViTConfig(
        num_labels=3,
        image_size=32,
        hidden_sizes=[8, 8, 8],
        neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 16],
        num_attention_heads=2,
        aspp_out_channels=8,
        atrous_rates=[1, 2, 3],
    )
    return MobileViTForSemanticSegmentation(config)


def mobilenetv2():
    return MobileNetV2ForSemanticSegmentation(MobileNetV2Config(num_labels=3, image_size=32, depth_multiplier=0.25))


ARCHITECTURES = {
    maker.__name__: maker
    for maker in (segformer, beit, data2vec, upernet_swin, upernet_convnext, dpt, mobilevit, mobilenetv2)
}


#: all, of which the default suite takes one with a decoder of each kind
FEW = [
    name if name in ("segformer", "beit", "upernet_convnext") else pytest.param(name, marks=pytest.mark.slow)
    for name in ARCHITECTURES
]


def make(name: str, seed: int = 0):
    """The model called `name`, with weights by a seed; takes images of 32 by 32 pixels.

    The classifier's weights are large, so that all classes occur in what it predicts.
    """
    torch.manual_seed(seed)
    model = ARCHITECTURES[name]()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "classifier" in parameter_name and parameter.dim() == 4:
                parameter.normal_()
    return model.to(DEVICE)
