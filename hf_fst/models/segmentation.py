"""What the segmentation networks of this package share: output, configuration fields, loss and forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import can_return_tuple

try:
    from transformers.configuration_utils import SubConfigSpec
except ImportError:  # transformers 5.17: `SegmentationConfig` makes the configurations within it itself

    @dataclass
    class SubConfigSpec:
        """What a configuration within another is where none is given; the class of that name in later transformers."""

        config_class: type
        model_type: str
        init_kwargs: dict[str, Any] | None = None


@dataclass
class SegmentationOutput(SemanticSegmenterOutput):
    """`SemanticSegmenterOutput` with the logits of the auxiliary heads, and features of pixels.

    `auxiliary_logits` maps the name of each auxiliary head to its logits (B,C,h',w'), so that an objective with its
    own cross entropy can train those heads too; None where the network has none. `features` (B,D,h,w) are what the
    classifier reads, None unless an objective compares them (`features.return_features`).
    """

    auxiliary_logits: dict[str, torch.Tensor] | None = None
    features: torch.Tensor | None = None


class SegmentationConfig(PreTrainedConfig):
    """Fields every network here has.

    Args:
        auxiliary_loss_weight: weight of each auxiliary head in `loss` (0.4 in the paper's networks).
        classifier_dropout_prob: channel dropout (`Dropout2d`) before a classifier.
        align_corners: how logits are resized to the size of the labels (True in the semi-supervised networks).
        semantic_loss_ignore_index: label that `loss` ignores; -100 is ignored as well.
    """

    semantic_loss_ignore_index: int = 255
    auxiliary_loss_weight: float = 0.4
    classifier_dropout_prob: float = 0.1
    align_corners: bool = False

    if SubConfigSpec.__module__ == __name__:
        sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {}

        def __init_subclass__(cls, **kwargs):
            cls.sub_configs = {key: spec.config_class for key, spec in cls.sub_configs_defaults.items()}
            super().__init_subclass__(**kwargs)

        def __post_init__(self, **kwargs):
            for key, spec in self.sub_configs_defaults.items():
                given = getattr(self, key)
                if not isinstance(given, PreTrainedConfig):
                    fields = {"model_type": spec.model_type, **((spec.init_kwargs or {}) if given is None else given)}
                    setattr(self, key, AutoConfig.for_model(**fields))
            super().__post_init__(**kwargs)


def segmentation_loss(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255, align_corners: bool = False
) -> torch.Tensor:
    """Mean cross entropy over the labeled pixels; 0 where there is none.

    logits (B,C,h,w) are resized bilinearly to labels (B,H,W); labels equal to `ignore_index` or -100 do not count.
    """
    logits = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    labels = labels.masked_fill(labels == -100, ignore_index)
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)


class SegmentationModel(PreTrainedModel):
    """Backbone, `decode_head` and, optionally, `auxiliary_head`; subclasses build these and say what `features` are.

    `forward` takes pixel_values (B,3,H,W) and optionally labels (B,H,W) and returns a `SegmentationOutput` whose
    logits (B,C,h,w) stay at the head's stride. Auxiliary heads always run: all parameters get a gradient from an
    objective that uses `logits` and `auxiliary_logits`, whether it passes labels or not.
    """

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    # The loss is a mean; the Trainer must not take it for one that is already divided by the items of a group.
    accepts_loss_kwargs = False

    def features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """The feature maps of the backbone, finest first: a list of (B,C_i,h_i,w_i)."""
        raise NotImplementedError

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> SegmentationOutput | tuple:
        features = self.features(pixel_values)
        logits, pixel_features = self.decode_head(features), None
        if isinstance(logits, tuple):  # a head with a representation of its own beside its classifier
            logits, pixel_features = logits
        auxiliary_logits = None
        if self.auxiliary_head is not None:
            auxiliary_logits = {"auxiliary_head": self.auxiliary_head(features)}

        loss = None
        if labels is not None:
            ignore_index, align_corners = self.config.semantic_loss_ignore_index, self.config.align_corners
            loss = segmentation_loss(logits, labels, ignore_index, align_corners)
            for auxiliary in (auxiliary_logits or {}).values():
                term = segmentation_loss(auxiliary, labels, ignore_index, align_corners)
                loss = loss + self.config.auxiliary_loss_weight * term

        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return SegmentationOutput(
            loss=loss,
            logits=logits,
            hidden_states=tuple(features) if output_hidden_states else None,
            auxiliary_logits=auxiliary_logits,
            features=pixel_features,
        )

    def get_input_embeddings(self) -> None:
        """An image network has no token embeddings; some wrappers (FSDP2 in accelerate) ask all the same."""
        return None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Convolutions and projections as in mmsegmentation: Kaiming (fan out), classifiers N(0, 0.01)."""
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            if getattr(module, "is_classifier", False):
                nn.init.normal_(module.weight, mean=0.0, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if getattr(module, "is_pixel_shuffle", False) and not getattr(module.weight, "_is_hf_initialized", False):
                # ICNR (Aitken et al., 2017): the four sub-pixels of a channel start equal, so no checkerboard.
                nn.init.kaiming_normal_(module.weight[::4], nonlinearity="relu")
                module.weight.copy_(module.weight[::4].repeat_interleave(4, dim=0))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            if module.running_mean is not None:
                nn.init.zeros_(module.running_mean)
                nn.init.ones_(module.running_var)
                nn.init.zeros_(module.num_batches_tracked)


def classifier(in_channels: int, num_labels: int, kernel_size: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution whose weights start at N(0, 0.01), for the last layer of a head."""
    padding = dilation * (kernel_size // 2)
    layer = nn.Conv2d(in_channels, num_labels, kernel_size, padding=padding, dilation=dilation)
    layer.is_classifier = True
    return layer


def classifier_of(network: nn.Module) -> nn.Conv2d | None:
    """The last convolution of a network with `config.num_labels` outputs that belongs to no auxiliary head; None if there
    is none, as in networks that classify masks."""
    found = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.out_channels == network.config.num_labels
        and "auxiliary" not in name
    ]
    return found[-1] if found else None


class PooledBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that falls back to its running statistics where a channel has a single value.

    A map pooled to 1x1 from a batch of one image has no variance, and `nn.BatchNorm2d` refuses it in training mode.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.training and hidden_states.shape[0] * hidden_states.shape[2] * hidden_states.shape[3] == 1:
            return F.batch_norm(
                hidden_states, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(hidden_states)


class ConvBNReLU(nn.Module):
    """Convolution, batch norm, ReLU, under the names `conv` and `bn` of mmsegmentation's checkpoints."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        norm: type[nn.BatchNorm2d] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, groups=groups, bias=bias
        )
        self.bn = norm(out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(hidden_states)))
