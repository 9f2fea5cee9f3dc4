"""The dilated deep-stem ResNet of the paper's convolutional networks, built from timm's."""

from __future__ import annotations

import contextlib

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .segmentation import SegmentationConfig, SegmentationModel


class ResNetSegmentationConfig(SegmentationConfig):
    """Fields of a network on timm's ResNet.

    Args:
        backbone: name of a timm ResNet: `resnet101c` has the stem 32-32-64 of the paper's domain adaptation networks,
            `resnet101s` the stem 64-64-128 of its semi-supervised ones.
        backbone_kwargs: passed on to timm, such as `{"layers": [1, 1, 1, 1], "channels": [4, 8, 16, 32]}` for a tiny one.
        output_stride: 8, or 16.
        layer4_dilations: dilation of each block of the last stage in place of timm's (2, 4, 4): (4, 8, 16) in the
            semi-supervised networks (multi-grid).
        stem_pool_ceil_mode: whether max pooling rounds the size up, as in the semi-supervised networks.
    """

    backbone: str = "resnet101c"
    backbone_kwargs: dict | None = None
    output_stride: int = 8
    layer4_dilations: list[int] | tuple[int, ...] | None = None
    stem_pool_ceil_mode: bool = False


class ResNetBackbone(nn.Module):
    """timm's ResNet returning the outputs of its four stages; the parameters keep timm's names under `body`."""

    # HF switches checkpointing on by this attribute.
    gradient_checkpointing = False

    def __init__(self, config: ResNetSegmentationConfig) -> None:
        super().__init__()
        import timm  # it takes 2 s, which importing the trainer need not wait for

        self.body = timm.create_model(
            config.backbone,
            pretrained=False,
            num_classes=0,
            global_pool="",
            output_stride=config.output_stride,
            **(config.backbone_kwargs or {}),
        )
        self.channels = [stage["num_chs"] for stage in self.body.feature_info[1:]]
        self.body.maxpool.ceil_mode = config.stem_pool_ceil_mode
        if config.layer4_dilations is not None:
            if len(config.layer4_dilations) != len(self.body.layer4):
                raise ValueError(
                    f"layer4_dilations has {len(config.layer4_dilations)} entries, but the last stage of "
                    f"{config.backbone!r} has {len(self.body.layer4)} blocks: give one dilation a block."
                )
            for block, dilation in zip(self.body.layer4, config.layer4_dilations, strict=True):
                block.conv2.dilation = block.conv2.padding = (dilation, dilation)

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """pixel_values (B,3,H,W) to four maps, at strides 4, 8, 8, 8 for output stride 8."""
        body = self.body
        hidden_states = body.maxpool(body.act1(body.bn1(body.conv1(pixel_values))))
        features = []
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            for block in stage:
                if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                    hidden_states = checkpoint(
                        block,
                        hidden_states,
                        use_reentrant=False,
                        context_fn=lambda block=block: (contextlib.nullcontext(), _keep_statistics(block)),
                    )
                else:
                    hidden_states = block(hidden_states)
            features.append(hidden_states)
        return features


@contextlib.contextmanager
def _keep_statistics(block: nn.Module):
    """The second run of a checkpointed block must not count the batch twice in the running statistics."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


class ResNetSegmentationModel(SegmentationModel):
    """A segmentation network whose features are the four stages of a `ResNetBackbone`."""

    _no_split_modules = ["Bottleneck"]

    def __init__(self, config: ResNetSegmentationConfig) -> None:
        super().__init__(config)
        self.backbone = ResNetBackbone(config)
        self.auxiliary_head = None

    def features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        return self.backbone(pixel_values)
