"""A segmentation network of a few hundred weights, images to go with it, and a config that leaves nothing to chance."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_fst.models import AuxiliaryDecoders, TwoBranches
from hf_fst.models.auxiliary_decoders import PUBLISHED
from hf_fst.training.config import FSTConfig
from hf_fst.training.trainer import FSTTrainer
from tests.device import DEVICE, USE_CPU

CLASSES = 3


class TinyConfig(PreTrainedConfig):
    model_type = "tiny_segmenter"

    def __init__(self, width=4, batch_norm=False, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.width, self.batch_norm, self.dropout = width, batch_norm, dropout


class TinySegmenter(PreTrainedModel):
    """conv, (batch norm), tanh, (dropout), conv: logits at half the size of the image."""

    config_class = TinyConfig
    main_input_name = "pixel_values"

    def __init__(self, config: TinyConfig):
        super().__init__(config)
        # no bias under a batch norm: its gradient is rounding noise, which AdamW would blow up
        self.stem = nn.Conv2d(3, config.width, 3, stride=2, padding=1, bias=not config.batch_norm)
        self.norm = nn.BatchNorm2d(config.width) if config.batch_norm else nn.Identity()
        self.drop = nn.Dropout(config.dropout)
        self.head = nn.Conv2d(config.width, config.num_labels, 1)
        self.post_init()

    def _init_weights(self, module):
        """Keep torch's own initialisation."""

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.drop(torch.tanh(self.norm(self.stem(pixel_values.to(self.stem.weight.device))))))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(F.interpolate(logits, labels.shape[-2:], mode="bilinear"), labels, ignore_index=255)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


AutoConfig.register(TinyConfig.model_type, TinyConfig)
AutoModelForSemanticSegmentation.register(TinyConfig, TinySegmenter)


def model(seed: int = 0, dtype=torch.float64, **options) -> TinySegmenter:
    """The tiny network with weights by a seed."""
    torch.manual_seed(seed)
    return TinySegmenter(TinyConfig(num_labels=CLASSES, **options)).to(DEVICE, dtype)


def branches(**options) -> TwoBranches:
    """Two branches of the tiny network, which differ in their heads."""
    return TwoBranches.of(model(**options))


def network_of(objective: str, **options) -> PreTrainedModel:
    """A tiny network that the objective can train."""
    kinds = {"cps": TwoBranches.of, "gct": partial(TwoBranches.of, flaw_detector=2)}
    kinds["cct"] = partial(AuxiliaryDecoders.of, decoders=dict.fromkeys(PUBLISHED, 1))
    return kinds.get(objective, lambda network: network)(model(**options))


def images(
    count: int,
    seed: int = 1,
    size: tuple[int, int] = (8, 8),
    labels: bool = True,
    dtype=torch.float64,
    classes: int = CLASSES,
) -> list[dict]:
    """Images (3,H,W) whose labels (H,W) depend on their colours; a tenth of the pixels is ignored."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for _ in range(count):
        pixels = torch.randn(3, *size, generator=generator, dtype=torch.float64)
        item = {"pixel_values": pixels.to(dtype)}
        if labels:
            truth = pixels.repeat(-(-classes // 3), 1, 1)[:classes].argmax(dim=0)
            item["labels"] = truth.masked_fill(torch.rand(size, generator=generator) < 0.1, 255)
        items.append(item)
    return items


def config(output_dir, **options) -> FSTConfig:
    """A run of a few quiet steps on the CPU; plain pseudo-labels without augmentation unless told otherwise."""
    quiet = {
        "use_cpu": USE_CPU,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "report": False,
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "seed": 7,
    }
    objective = {} if options.get("rule") == "supervised" else {"objective": "pseudo_label"}
    return FSTConfig(output_dir=str(output_dir), **{**quiet, **objective, **options})


def trainer(output_dir, network=None, *, sets=None, callbacks=(), trainer_options=None, **options) -> FSTTrainer:
    """A trainer of the tiny network, or of `network`, on six labelled and eight unlabelled images."""
    labeled, unlabeled = sets if sets is not None else (images(6, 1), images(8, 2, labels=False))
    return FSTTrainer(
        model() if network is None else network,
        config(output_dir, **options),
        train_dataset=labeled,
        unlabeled_dataset=unlabeled,
        callbacks=list(callbacks),
        **(trainer_options or {}),
    )


def weights(network: nn.Module) -> list[torch.Tensor]:
    """Copies of all parameters and buffers, on the CPU."""
    return [tensor.detach().cpu().clone() for tensor in (*network.parameters(), *network.buffers())]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    """Whether two lists of tensors are bitwise equal."""
    return len(first) == len(second) and all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(first, second, strict=True))


def distance(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    """Largest absolute difference."""
    return max((a.double().cpu() - b.double().cpu()).abs().max().item() for a, b in zip(first, second, strict=True))
