"""hf_fst: Learning from Future, look-ahead teachers for self-training in semantic segmentation.

Importing it takes milliseconds: what stands below is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_fst import data, models, objectives, rules
    from hf_fst.method.teacher import EMATeacher
    from hf_fst.training.config import FSTConfig
    from hf_fst.training.trainer import FSTTrainer

__all__ = ["EMATeacher", "FSTConfig", "FSTTrainer", "data", "models", "objectives", "rules"]

_HOMES = {
    "EMATeacher": "hf_fst.method.teacher",
    "FSTConfig": "hf_fst.training.config",
    "FSTTrainer": "hf_fst.training.trainer",
}
# our architectures in `AutoConfig`, by model_type; hf_fst.models has the classes
_CONFIGURATIONS = {
    "auxiliary-decoders": "AuxiliaryDecodersConfig",
    "daformer": "DAFormerConfig",
    "deeplabv2": "DeepLabV2Config",
    "deeplabv3plus": "DeepLabV3PlusConfig",
    "dpt-segmenter": "DPTSegmenterConfig",
    "pspnet": "PSPNetConfig",
    "semantic-fpn": "FPNConfig",
    "two-branches": "TwoBranchesConfig",
    "universal-segmenter": "UniversalSegmenterConfig",
    "upernet-with-auxiliary": "UPerNetWithAuxiliaryConfig",
}
_AUTO = "transformers.models.auto.configuration_auto"


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _HOMES:
        return importlib.import_module(f"{__name__}.{name}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Configuration:
    """Stands for a configuration class of ours in `AutoConfig`'s table and becomes it when anything is asked of it.

    `hf_fst.models`, which this imports, then puts the classes themselves in the table.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> object:
        return getattr(getattr(importlib.import_module("hf_fst.models"), self._name), attribute)

    def __call__(self, *args, **options) -> object:
        return getattr(importlib.import_module("hf_fst.models"), self._name)(*args, **options)

    def __reduce__(self) -> tuple:
        return _Configuration, (self._name,)


class _AutoConfigFinder:
    """Import hook: the module of `AutoConfig` gets our architectures as soon as it is imported, whenever that is.

    transformers has no entry points for architectures, and importing it here to register them would cost every
    `import hf_fst` seconds. The networks themselves cannot be imported by the hook, since `AutoModel` is only half
    imported at that moment; hence the stand-ins. `CONFIG_MAPPING.register` is what `AutoConfig.register` calls.
    """

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == _AUTO else None
        if spec is not None:
            load = spec.loader.exec_module

            def load_and_register(module) -> None:
                load(module)
                _register(module.CONFIG_MAPPING)

            spec.loader.exec_module = load_and_register
        return spec


def _register(mapping) -> None:
    for model_type, name in _CONFIGURATIONS.items():
        if model_type not in mapping:
            mapping.register(model_type, _Configuration(name))


if _AUTO in sys.modules:
    _register(sys.modules[_AUTO].CONFIG_MAPPING)
else:
    sys.meta_path.insert(0, _AutoConfigFinder)
