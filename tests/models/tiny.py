"""Every network of `BUILDS` at a width that runs in milliseconds."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from hf_fst.models import build

RESNET = {"backbone_kwargs": {"layers": [1, 1, 1, 3], "channels": [4, 8, 16, 32], "stem_width": 4}}
DPT = {"neck_hidden_sizes": [4, 8, 12, 16], "fusion_hidden_size": 8}
VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "out_indices": [1, 2, 3, 4]}

TINY = {
    "daformer-mit-b0": {
        "hidden_size": 16,
        "backbone_config": {
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
        },
    },
    "deeplabv2-resnet50": RESNET,
    "deeplabv2-resnet101-semi": RESNET,
    "pspnet-resnet101": {**RESNET, "hidden_size": 8},
    "pspnet-resnet101-semi": {**RESNET, "hidden_size": 8},
    "deeplabv3plus-resnet101-cityscapes": {**RESNET, "hidden_size": 8, "low_level_size": 8},
    "deeplabv3plus-resnet101-unimatch": {**RESNET, "hidden_size": 8, "low_level_size": 4},
    "upernet-swin-base": {
        "hidden_size": 16,
        "auxiliary_channels": 8,
        "backbone_config": {"embed_dim": 8, "depths": [2, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 4},
    },
    "upernet-beit-base": {
        "hidden_size": 16,
        "auxiliary_channels": 8,
        "backbone_config": {**VIT, "intermediate_size": 32, "image_size": 64},
    },
    "upernet-efficientnet-lite0": {"hidden_size": 16},
    "fpn-efficientnet-lite0": {"hidden_size": 16},
    "dpt-dinov2-small": {**DPT, "backbone_config": {**VIT, "image_size": 56}},
    "dpt-dinov3-small": {**DPT, "backbone_config": {**VIT, "intermediate_size": 32}},
}


def tiny(name: str, num_labels: int = 5, seed: int = 0, **overrides) -> PreTrainedModel:
    """The tiny network in evaluation mode, its batch norms away from identity so that their statistics matter."""
    torch.manual_seed(seed)
    model = build(name, num_labels, **{**TINY[name], **overrides})
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif buffer_name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def image(name: str, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Random pixel values (batch,3,H,W) of a size the network takes; not square where it may."""
    height, width = (56, 70) if "dinov2" in name else (64, 64) if "beit" in name else (64, 96)
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def labels_for(pixel_values: torch.Tensor) -> torch.Tensor:
    """Labels (B,H,W): class 1 on the left, 2 on the right, and a stripe of ignored pixels on top."""
    batch, _, height, width = pixel_values.shape
    labels = torch.ones(batch, height, width, dtype=torch.long)
    labels[:, :, width // 2 :] = 2
    labels[:, :8] = 255
    return labels
