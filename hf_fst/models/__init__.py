"""The networks of the paper as Hub models.

Importing this package registers them with `AutoConfig` and `AutoModelForSemanticSegmentation`; `build` makes one by
name, `convert` reads the authors' checkpoints.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForSemanticSegmentation
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from .auxiliary_decoders import AuxiliaryDecoders, AuxiliaryDecodersConfig
from .builds import BUILDS, Build, build
from .convert import convert
from .daformer import DAFormerConfig, DAFormerForSemanticSegmentation
from .deeplabv2 import DeepLabV2Config, DeepLabV2ForSemanticSegmentation
from .deeplabv3plus import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
from .dpt import DPTSegmenter, DPTSegmenterConfig
from .fpn import FPNConfig, FPNForSemanticSegmentation
from .pspnet import PSPNetConfig, PSPNetForSemanticSegmentation
from .segmentation import SegmentationOutput
from .two_branches import TwoBranches, TwoBranchesConfig
from .universal import UniversalSegmenter, UniversalSegmenterConfig
from .upernet import UPerNetWithAuxiliary, UPerNetWithAuxiliaryConfig

MODELS = {
    AuxiliaryDecodersConfig: AuxiliaryDecoders,
    DAFormerConfig: DAFormerForSemanticSegmentation,
    DeepLabV2Config: DeepLabV2ForSemanticSegmentation,
    DeepLabV3PlusConfig: DeepLabV3PlusForSemanticSegmentation,
    DPTSegmenterConfig: DPTSegmenter,
    FPNConfig: FPNForSemanticSegmentation,
    PSPNetConfig: PSPNetForSemanticSegmentation,
    TwoBranchesConfig: TwoBranches,
    UniversalSegmenterConfig: UniversalSegmenter,
    UPerNetWithAuxiliaryConfig: UPerNetWithAuxiliary,
}

for _config, _model in MODELS.items():
    AutoConfig.register(_config.model_type, _config)
    AutoModelForSemanticSegmentation.register(_config, _model)
    # The pipeline goes by this table alone, and calls a network that is not in it unsupported.
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[_config.model_type] = _model.__name__
    # Saving copies the modelling files, so that an upload works with `trust_remote_code=True` without this package.
    _config.register_for_auto_class()
    _model.register_for_auto_class("AutoModelForSemanticSegmentation")

__all__ = [
    "BUILDS",
    "MODELS",
    "Build",
    "SegmentationOutput",
    "build",
    "convert",
    *sorted(item.__name__ for pair in MODELS.items() for item in pair),
]
