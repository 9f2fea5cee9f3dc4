"""Two networks of one build that label each other, as one model (cross pseudo supervision, Chen et al., CVPR 2021)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .daformer import DAFormerConfig, DAFormerForSemanticSegmentation
from .deeplabv2 import DeepLabV2Config, DeepLabV2ForSemanticSegmentation
from .deeplabv3plus import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
from .dpt import DPTSegmenter, DPTSegmenterConfig
from .pspnet import PSPNetConfig, PSPNetForSemanticSegmentation
from .segmentation import SegmentationConfig, SegmentationModel, SegmentationOutput, segmentation_loss
from .upernet import UPerNetWithAuxiliary, UPerNetWithAuxiliaryConfig

# networks of this package, which the Auto classes do not know where only the code beside a checkpoint is at hand
OWN = {
    config.model_type: (config, model)
    for config, model in (
        (DAFormerConfig, DAFormerForSemanticSegmentation),
        (DeepLabV2Config, DeepLabV2ForSemanticSegmentation),
        (DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation),
        (DPTSegmenterConfig, DPTSegmenter),
        (PSPNetConfig, PSPNetForSemanticSegmentation),
        (UPerNetWithAuxiliaryConfig, UPerNetWithAuxiliary),
    )
}


@dataclass
class TwoBranchesOutput(SegmentationOutput):
    """`SegmentationOutput` of the branch that answers, and `branches`, the outputs of both where they are asked for."""

    branches: tuple[ModelOutput, ...] | None = None


class TwoBranchesConfig(SegmentationConfig):
    """Configuration of two branches.

    branch_config: of the network that each branch is: of this package, or of `AutoModelForSemanticSegmentation`. Its
        classes are those of the pair.
    answer: number of the branch that answers, 0 or 1.
    """

    model_type = "two-branches"
    sub_configs = {"branch_config": AutoConfig}

    branch_config: dict | PreTrainedConfig | None = None
    answer: int = 0

    def __post_init__(self, **kwargs):
        if isinstance(self.branch_config, dict):
            options = dict(self.branch_config)
            kind = options.pop("model_type")
            made = OWN[kind][0] if kind in OWN else type(AutoConfig.for_model(kind))
            self.branch_config = made.from_dict(options)
        super().__post_init__(**kwargs)
        self.align_corners = getattr(
            self.branch_config, "align_corners", False
        )  # networks of transformers have no such


class TwoBranches(SegmentationModel):
    """`branches`, two networks of one build; `logits` are those of the branch `config.answer`, which alone runs unless
    `forward` gets `all_branches=True`."""

    config_class = TwoBranchesConfig
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: TwoBranchesConfig) -> None:
        super().__init__(config)
        branch = config.branch_config
        branch.id2label, branch.label2id = dict(config.id2label), dict(config.label2id)
        own = OWN.get(branch.model_type)
        make = AutoModelForSemanticSegmentation.from_config if own is None else own[1]
        self.branches = nn.ModuleList(make(copy.deepcopy(branch)) for _ in range(2))
        self.post_init()

    @classmethod
    def of(cls, network: PreTrainedModel) -> TwoBranches:
        """Two branches of a network: the first has its weights, the second too, but for its heads (weights with `head` in
        their names), which start at random."""
        names = {"id2label": dict(network.config.id2label), "label2id": dict(network.config.label2id)}
        pair = cls(TwoBranchesConfig(branch_config=copy.deepcopy(network.config), **names))
        pair = pair.to(network.device, network.dtype).train(network.training)
        weights = network.state_dict()
        pair.branches[0].load_state_dict(weights)
        shared = {name: weight for name, weight in weights.items() if "head" not in name}
        pair.branches[1].load_state_dict(shared, strict=False)
        return pair

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        all_branches: bool = False,
        return_dict: bool | None = None,
    ) -> TwoBranchesOutput | tuple:
        answer = self.config.answer
        ran = self.branches if all_branches else [self.branches[answer]]
        outputs = tuple(branch(pixel_values=pixel_values) for branch in ran)
        own = outputs[answer] if all_branches else outputs[0]
        loss = None
        if labels is not None:
            ignore_index, align_corners = self.config.semantic_loss_ignore_index, self.config.align_corners
            loss = sum(segmentation_loss(output.logits, labels, ignore_index, align_corners) for output in outputs)
        output = TwoBranchesOutput(
            loss=loss,
            logits=own.logits,
            auxiliary_logits=own.get("auxiliary_logits"),
            branches=outputs if all_branches else None,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()
