"""Universal segmenters (Mask2Former, OneFormer, EoMT) as per-pixel classifiers."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForUniversalSegmentation, PreTrainedConfig, PreTrainedModel
from transformers.utils import can_return_tuple

from .segmentation import SegmentationConfig, SegmentationModel, SegmentationOutput, SubConfigSpec, segmentation_loss


class UniversalSegmenterConfig(SegmentationConfig):
    """Configuration of the adapter.

    Args:
        segmenter_config: of a model of `AutoModelForUniversalSegmentation`; its classes are those of the adapter,
            unless the adapter is given others.
        task_inputs: token ids of OneFormer's task text, one list of numbers, as its processor gives them for
            "semantic"; None for the other models.
    """

    model_type = "universal-segmenter"
    sub_configs_defaults = {"segmenter_config": SubConfigSpec(config_class=AutoConfig, model_type="mask2former")}

    segmenter_config: dict | PreTrainedConfig | None = None
    task_inputs: list[int] | None = None

    def __post_init__(self, **kwargs):
        named = self.id2label is not None or "num_labels" in kwargs
        super().__post_init__(**kwargs)
        if not named:
            self.id2label = dict(self.segmenter_config.id2label)
            self.label2id = {name: index for index, name in self.id2label.items()}


def per_pixel_log_probabilities(class_queries: torch.Tensor, mask_queries: torch.Tensor) -> torch.Tensor:
    """log sum_q p_q(c) m_q(x), as semantic inference of MaskFormer (Cheng et al., NeurIPS 2021, section 3.4).

    Args:
        class_queries: logits (B,Q,C+1), the last class being "no object".
        mask_queries: logits (B,Q,h,w).

    Returns:
        (B,C,h,w) in float32. p_q is the softmax over C+1 classes without its last entry, m_q the sigmoid.
    """
    probabilities = class_queries.float().softmax(dim=-1)[..., :-1]
    masks = mask_queries.float().sigmoid()
    scores = torch.einsum("bqc,bqhw->bchw", probabilities, masks)
    # Below the smallest normal number a logarithm has no usable gradient.
    return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()


class UniversalSegmenter(SegmentationModel):
    """A universal segmenter whose `logits` are per-pixel log-probabilities (B,C,h,w), for any rule and objective.

    `loss` is the cross entropy of these, not the set loss of the wrapped model, which `segmenter` still offers.
    """

    config_class = UniversalSegmenterConfig
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: UniversalSegmenterConfig) -> None:
        super().__init__(config)
        if config.segmenter_config.model_type == "videomt":
            raise ValueError("VidEoMT segments videos; give a segmenter of images, such as eomt.")
        if config.segmenter_config.model_type == "oneformer" and config.task_inputs is None:
            raise ValueError(
                "OneFormer needs the tokens of its task text: give task_inputs, e.g. "
                'processor(images, task_inputs=["semantic"])["task_inputs"][0].tolist().'
            )
        config.segmenter_config.id2label = dict(config.id2label)
        config.segmenter_config.label2id = {name: index for index, name in config.id2label.items()}
        self.segmenter = AutoModelForUniversalSegmentation.from_config(config.segmenter_config)
        self.post_init()

    @classmethod
    def wrap(cls, segmenter: PreTrainedModel, task_inputs: list[int] | None = None) -> UniversalSegmenter:
        """The adapter around an existing model, whose weights it shares."""
        config = UniversalSegmenterConfig(segmenter_config=segmenter.config, task_inputs=task_inputs)
        with torch.device("meta"):
            adapter = cls(config)
        adapter.segmenter = segmenter
        return adapter.train(segmenter.training)

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> SegmentationOutput | tuple:
        inputs = {"pixel_values": pixel_values}
        if self.config.task_inputs is not None:
            task = torch.tensor(self.config.task_inputs, device=pixel_values.device)
            inputs["task_inputs"] = task.expand(pixel_values.shape[0], -1)
        queries = self.segmenter(**inputs)
        logits = per_pixel_log_probabilities(queries.class_queries_logits, queries.masks_queries_logits)
        loss = None
        if labels is not None:
            # The logarithm follows the resizing, as probabilities, not their logarithms, are what one averages.
            resized = F.interpolate(logits.exp(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
            resized = resized.clamp(min=torch.finfo(resized.dtype).tiny).log()
            loss = segmentation_loss(resized, labels, self.config.semantic_loss_ignore_index)
        return SegmentationOutput(loss=loss, logits=logits)
