"""A network with further decoders of its perturbed features (cross-consistency training, Ouali et al., CVPR 2020)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import can_return_tuple

from .pspnet import PixelShuffleUp
from .segmentation import SegmentationModel, classifier, classifier_of
from .two_branches import BranchConfig, TwoBranchesOutput, named_alike, network_from

#: how many decoders see which perturbation, in the authors' recipe
PUBLISHED = {
    **{"vat": 2, "dropout": 6, "guided_cutout": 6, "context_masking": 2, "object_masking": 2},
    **{"feature_drop": 6, "feature_noise": 6},
}


class AuxiliaryDecodersConfig(BranchConfig):
    """Configuration of a network with auxiliary decoders.

    Args:
        branch_config: of the network.
        perturbations: name of what each decoder sees of the features, as the objective calls it.
        pixel_shuffle_steps: learned 2x upsamplings of each decoder, as in `PSPNetConfig`.
    """

    model_type = "auxiliary-decoders"

    perturbations: list[str] | tuple[str, ...] = ()
    pixel_shuffle_steps: int = 0


class AuxiliaryDecoders(SegmentationModel):
    """`network`, and `auxiliary_heads`, 1x1 classifiers of what the classifier of the network reads.

    `logits` are the network's, which alone runs unless `forward` gets `all_branches=True`; then `branches` are its output
    and those of the decoders. What each decoder reads is `perturb(name, features, decoder)`, or the features as they are.
    """

    config_class = AuxiliaryDecodersConfig
    trained_by = "cct"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: AuxiliaryDecodersConfig) -> None:
        super().__init__(config)
        self.network = network_from(config)
        width = classifier_of(self.network).in_channels
        self.auxiliary_heads = nn.ModuleList(
            nn.Sequential(
                classifier(width, config.num_labels),
                *[PixelShuffleUp(config.num_labels) for _ in range(config.pixel_shuffle_steps)],
            )
            for _ in config.perturbations
        )
        self.post_init()

    @classmethod
    def of(cls, network: PreTrainedModel, decoders: Mapping[str, int] = PUBLISHED) -> AuxiliaryDecoders:
        """A network with its weights, and as many new decoders as are to see each perturbation."""
        config = AuxiliaryDecodersConfig(
            branch_config=copy.deepcopy(network.config),
            perturbations=[name for name, count in decoders.items() for _ in range(count)],
            pixel_shuffle_steps=getattr(network.config, "pixel_shuffle_steps", 0),
            **named_alike(network),
        )
        whole = cls(config).to(network.device, network.dtype).train(network.training)
        whole.network.load_state_dict(network.state_dict())
        return whole

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        all_branches: bool = False,
        perturb: Callable[[str, torch.Tensor, nn.Module], torch.Tensor] | None = None,
    ) -> TwoBranchesOutput | tuple:
        kept: list[torch.Tensor] = []
        hook = classifier_of(self.network).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        try:
            output = self.network(pixel_values=pixel_values, labels=labels)
        finally:
            hook.remove()
        branches = None
        if all_branches:
            branches = [output]
            for name, decoder in zip(self.config.perturbations, self.auxiliary_heads, strict=True):
                seen = kept[0] if perturb is None else perturb(name, kept[0], decoder)
                branches.append(TwoBranchesOutput(logits=decoder(seen)))
        return TwoBranchesOutput(
            loss=output.loss,
            logits=output.logits,
            auxiliary_logits=output.get("auxiliary_logits"),
            branches=branches and tuple(branches),
        )
