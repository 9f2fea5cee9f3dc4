"""Two networks of one build that teach each other, as one model (cross pseudo supervision, Chen et al., CVPR 2021; with a
flaw detector guided collaborative training, Ke et al., ECCV 2020)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from .daformer import DAFormerConfig, DAFormerForSemanticSegmentation
from .deeplabv2 import DeepLabV2Config, DeepLabV2ForSemanticSegmentation
from .deeplabv3plus import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
from .dpt import DPTSegmenter, DPTSegmenterConfig
from .flaw_detector import FlawDetector
from .fpn import FPNConfig, FPNForSemanticSegmentation
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
        (FPNConfig, FPNForSemanticSegmentation),
        (PSPNetConfig, PSPNetForSemanticSegmentation),
        (UPerNetWithAuxiliaryConfig, UPerNetWithAuxiliary),
    )
}


@dataclass
class TwoBranchesOutput(SegmentationOutput):
    """`SegmentationOutput` of the branch that answers, and `branches`, the outputs of all where they are asked for.

    With a flaw detector also what it says of both, each (B,1,H,W): `flaw_maps`, through which gradient reaches the
    branches alone, and `detected`, where it reaches the detector alone (None where no gradient is taken: the same).
    """

    branches: tuple[ModelOutput, ...] | None = None
    flaw_maps: tuple[torch.Tensor, ...] | None = None
    detected: tuple[torch.Tensor, ...] | None = None


class BranchConfig(SegmentationConfig):
    """Configuration of a model around others.

    Args:
        branch_config: of the network that each branch is: of this package, or of `AutoModelForSemanticSegmentation`.
            Its classes are those of the whole.
    """

    sub_configs = {"branch_config": AutoConfig}

    branch_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.branch_config, dict):
            options = dict(self.branch_config)
            kind = options.pop("model_type")
            made = OWN[kind][0] if kind in OWN else type(AutoConfig.for_model(kind))
            self.branch_config = made.from_dict(options)
        super().__post_init__(**kwargs)
        # networks of transformers have no such field
        self.align_corners = getattr(self.branch_config, "align_corners", False)


def network_from(config: BranchConfig) -> PreTrainedModel:
    """A network of `config.branch_config`, with the classes of the whole."""
    branch = config.branch_config
    branch.id2label, branch.label2id = dict(config.id2label), dict(config.label2id)
    own = OWN.get(branch.model_type)
    make = AutoModelForSemanticSegmentation.from_config if own is None else own[1]
    return make(copy.deepcopy(branch))


def named_alike(network: PreTrainedModel) -> dict[str, dict]:
    """The class names of a network, as fields of a configuration."""
    return {"id2label": dict(network.config.id2label), "label2id": dict(network.config.label2id)}


class TwoBranchesConfig(BranchConfig):
    """Configuration of two branches.

    Args:
        answer: number of the branch that answers, 0 or 1.
        flaw_detector: width of a flaw detector beside them (`FlawDetector`); 0 for none.
    """

    model_type = "two-branches"

    answer: int = 0
    flaw_detector: int = 0


class TwoBranches(SegmentationModel):
    """`branches`, two networks of one build; `logits` are those of the branch `config.answer`, which alone runs unless
    `forward` gets `all_branches=True`."""

    config_class = TwoBranchesConfig
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: TwoBranchesConfig) -> None:
        super().__init__(config)
        self.branches = nn.ModuleList(network_from(config) for _ in range(2))
        self.flaw_detector = FlawDetector(config.num_labels, config.flaw_detector) if config.flaw_detector else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """As in the base class, except for the flaw detector."""
        if getattr(module, "starts_as_in_torch", False):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    @property
    def trained_by(self) -> str:
        """Name of the objective that trains it."""
        return "cps" if self.flaw_detector is None else "gct"

    @classmethod
    def of(cls, network: PreTrainedModel, flaw_detector: int = 0) -> TwoBranches:
        """Two branches of a network: the first has its weights, the second too, except in its heads (weights with `head`
        in their names), which start at random. `flaw_detector` is the width of a flaw detector (`gct`; its authors'
        have 64)."""
        more = {"flaw_detector": flaw_detector, **named_alike(network)}
        pair = cls(TwoBranchesConfig(branch_config=copy.deepcopy(network.config), **more))
        pair = pair.to(network.device, network.dtype).train(network.training)
        weights = network.state_dict()
        pair.branches[0].load_state_dict(weights)
        shared = {name: weight for name, weight in weights.items() if "head" not in name}
        pair.branches[1].load_state_dict(shared, strict=False)
        return pair

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        all_branches: bool = False,
    ) -> TwoBranchesOutput | tuple:
        answer = self.config.answer
        ran = self.branches if all_branches else [self.branches[answer]]
        outputs = tuple(branch(pixel_values=pixel_values) for branch in ran)
        own = outputs[answer] if all_branches else outputs[0]
        loss = None
        if labels is not None:
            ignore_index, align_corners = self.config.semantic_loss_ignore_index, self.config.align_corners
            loss = sum(segmentation_loss(output.logits, labels, ignore_index, align_corners) for output in outputs)
        flaw_maps = detected = None
        if all_branches and self.flaw_detector is not None:
            flaw_maps, detected = self.flaws(pixel_values, outputs)
        return TwoBranchesOutput(
            loss=loss,
            logits=own.logits,
            auxiliary_logits=own.get("auxiliary_logits"),
            branches=outputs if all_branches else None,
            flaw_maps=flaw_maps,
            detected=detected,
        )

    def flaws(
        self, pixel_values: torch.Tensor, outputs: tuple[ModelOutput, ...]
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...] | None]:
        """`flaw_maps` and `detected` of the outputs for images (B,3,H,W)."""
        sizes = {"size": pixel_values.shape[-2:], "mode": "bilinear", "align_corners": self.config.align_corners}
        both = [F.interpolate(output.logits, **sizes).softmax(dim=1) for output in outputs]
        fixed = {name: weight.detach() for name, weight in self.flaw_detector.named_parameters()}
        flaw_maps = tuple(functional_call(self.flaw_detector, fixed, (pixel_values, p)) for p in both)
        if not torch.is_grad_enabled():
            return flaw_maps, None
        return flaw_maps, tuple(self.flaw_detector(pixel_values, p.detach()) for p in both)
