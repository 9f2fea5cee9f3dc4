"""UPerNet (Xiao et al., ECCV 2018) on Swin or BEiT, as in the paper's experiments, from transformers' modules.

What differs from `transformers.UperNetForSemanticSegmentation`: logits stay at the head's stride, the auxiliary
logits are returned, classifiers have channel dropout, and nothing in the network is without a gradient.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, SwinBackbone
from transformers.models.swin.modeling_swin import SwinMLP
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from .segmentation import PooledBatchNorm2d, SegmentationConfig, SegmentationModel, SubConfigSpec


class UPerNetWithAuxiliaryConfig(SegmentationConfig):
    """Configuration of UPerNet.

    Args:
        backbone_config: of a transformers backbone with four feature levels. For BEiT: `add_fpn=True` and
            `out_indices=[4, 6, 8, 12]`, the outputs of layers 3, 5, 7 and 11 counted from 0.
        hidden_size: channels of the head.
        pool_scales: sizes of the pooled grids on the last level.
        auxiliary_*: the FCN head on the third level.
    """

    model_type = "upernet-with-auxiliary"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="swin",
            init_kwargs={"out_features": ["stage1", "stage2", "stage3", "stage4"]},
        )
    }

    backbone_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 512
    pool_scales: list[int] | tuple[int, ...] = (1, 2, 3, 6)
    use_auxiliary_head: bool = True
    auxiliary_in_channels: int | None = None
    auxiliary_channels: int = 256
    auxiliary_num_convs: int = 1
    auxiliary_concat_input: bool = False


class SwinMLPWithDropPath(SwinMLP):
    """Swin's MLP with the stochastic depth of its block, which transformers applies to the attention branch only."""

    def __init__(self, config: PreTrainedConfig, dim: int, drop_path: nn.Module) -> None:
        super().__init__(config, dim)
        self.drop_path = drop_path

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.drop_path(super().forward(hidden_states))


def _complete_swin(backbone: SwinBackbone) -> None:
    """Stochastic depth on both branches, and no final norm: it feeds no feature level and would get no gradient."""
    backbone.swin.layernorm = nn.Identity()
    for stage in backbone.swin.encoder.layers:
        for block in stage.blocks:
            dim = block.layernorm_after.normalized_shape[0]
            block.mlp = SwinMLPWithDropPath(backbone.config, dim, block.drop_path)


class UPerNetWithAuxiliary(SegmentationModel):
    """UPerNet: logits (B,C,H/4,W/4), and `auxiliary_logits["auxiliary_head"]` (B,C,H/16,W/16)."""

    config_class = UPerNetWithAuxiliaryConfig
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["SwinStage", "BeitLayer"]

    def __init__(self, config: UPerNetWithAuxiliaryConfig) -> None:
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        if isinstance(self.backbone, SwinBackbone):
            _complete_swin(self.backbone)
        channels = self.backbone.channels
        self.decode_head = UperNetHead(config, in_channels=channels)
        for block in self.decode_head.psp_modules.blocks:
            block.layers[1].batch_norm = PooledBatchNorm2d(config.hidden_size)
        # Dropout behind the activation in front of the classifier keeps the parameter names of transformers' heads.
        self._add_dropout(self.decode_head.fpn_bottleneck)
        self.decode_head.classifier.is_classifier = True
        self.auxiliary_head = None
        if config.use_auxiliary_head:
            self.auxiliary_head = UperNetFCNHead(config, in_channels=channels)
            self._add_dropout(self.auxiliary_head.convs[-1])
            self.auxiliary_head.classifier.is_classifier = True
        self.post_init()

    def _add_dropout(self, conv_module: nn.Module) -> None:
        conv_module.activation = nn.Sequential(
            conv_module.activation, nn.Dropout2d(self.config.classifier_dropout_prob)
        )

    def features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        return list(self.backbone(pixel_values).feature_maps)
