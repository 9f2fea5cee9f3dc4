"""The authors' checkpoints, and those of DAFormer and UniMatch, as models of this package."""

from __future__ import annotations

import encodings
import io
import os
import pickle
import pickletools
import pkgutil
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from encodings import aliases

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_fst.errors import MissingError, UserError

from . import convert_keys
from .builds import BUILDS, build
from .convert_keys import State
from .loading import refuse_nonfinite


@dataclass(frozen=True)
class Family:
    """A kind of published network.

    Args:
        title: for messages.
        marks: names (or their beginnings) that all occur in its checkpoints and nowhere else together.
        keys: to our names.
        classifier: the weight, in their names, whose rows are the classes.
        builds: the names of `BUILDS` it converts to.
        unused: pattern of entries that no forward pass reads, or that are recomputed.
    """

    title: str
    marks: tuple[str, ...]
    keys: Callable[[State], State]
    classifier: str
    builds: tuple[str, ...]
    unused: str | None = None


FAMILIES = (
    Family(
        "DAFormer",
        ("backbone.patch_embed1.", "decode_head.fuse_layer."),
        convert_keys.daformer,
        "decode_head.conv_seg.weight",
        tuple(name for name in BUILDS if name.startswith("daformer-")),
    ),
    Family(
        "DeepLabV2",
        ("backbone.stem.", "decode_head.aspp_modules."),
        convert_keys.deeplabv2,
        "decode_head.aspp_modules.0.conv.weight",
        ("deeplabv2-resnet50", "deeplabv2-resnet101"),
        # mmsegmentation's base class may build a classifier that is no part of this head.
        unused=r"^decode_head\.conv_seg\.",
    ),
    Family(
        "PSPNet",
        ("backbone.stem.", "decode_head.psp_modules."),
        convert_keys.pspnet,
        "decode_head.conv_seg.weight",
        ("pspnet-resnet101",),
    ),
    Family(
        "UPerNet on Swin",
        ("backbone.stages.0.blocks.", "decode_head.fpn_bottleneck."),
        convert_keys.upernet_swin,
        "decode_head.conv_seg.weight",
        ("upernet-swin-base",),
        unused=r"relative_position_index$",
    ),
    Family(
        "UPerNet on BEiT",
        ("backbone.layers.", "neck.", "decode_head.fpn_bottleneck."),
        convert_keys.upernet_beit,
        "decode_head.conv_seg.weight",
        ("upernet-beit-base",),
        unused=r"relative_position_index$",
    ),
    Family(
        "semi-supervised DeepLabV2",
        ("encoder.", "decoder.classifier.conv2d_list."),
        convert_keys.semi_deeplabv2,
        "decoder.classifier.conv2d_list.0.weight",
        ("deeplabv2-resnet101-semi",),
    ),
    Family(
        "semi-supervised PSPNet",
        ("encoder.", "decoder.psp."),
        convert_keys.semi_pspnet,
        "decoder.decoder.0.weight",
        ("pspnet-resnet101-semi",),
    ),
    Family(
        "semi-supervised DeepLabV3+",
        ("encoder.", "decoder.low_conv.", "decoder.aspp."),
        convert_keys.semi_deeplabv3plus,
        "decoder.classifier.8.weight",
        ("deeplabv3plus-resnet101", "deeplabv3plus-resnet101-cityscapes"),
        unused=r"^decoder\.representation\.",  # U2PL's pixel embedding head, which the paper's training never uses
    ),
    Family(
        "UniMatch's DeepLabV3+",
        ("backbone.conv1.0.", "head.b0.", "reduce.", "fuse."),
        convert_keys.unimatch_deeplabv3plus,
        "classifier.weight",
        ("deeplabv3plus-resnet101-unimatch", "deeplabv3plus-resnet101-unimatch-cityscapes"),
        unused=r"^backbone\.fc\.",
    ),
    Family(
        "UniMatch V2's DPT on DINOv2",
        ("backbone.blocks.0.", "head.scratch."),
        convert_keys.unimatch_v2_dpt,
        "head.scratch.output_conv.2.weight",
        tuple(name for name in BUILDS if name.startswith("dpt-dinov2-")),
        # The coarsest refinement block has nothing to add; the mask token serves pretraining only.
        unused=r"^backbone\.mask_token$|^head\.scratch\.refinenet4\.resConfUnit1\.",
    ),
)

# What NumPy scalars in a checkpoint (such as the best mIoU so far) unpickle with; none of them runs code of the file.
_NUMPY_SCALARS = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np._core.multiarray.scalar,
    np.dtype,
    *[type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")],
]

# names that a checkpoint of tensors unpickles with
_TENSORS = re.compile(
    r"collections\.OrderedDict|torch\.(_utils\._rebuild_\w+|\w+Storage|storage\.\w+|Size|device|Tensor|b?float\d*|u?int\d+)"
    r"|torch\.(nn\.parameter\.Parameter|serialization\._get_layout|_tensor\._rebuild_\w+)|_codecs\.encode"
    r"|numpy\.(_core|core)\.multiarray\.scalar|numpy\.dtype(s\.(Float|Int)\d+DType|s\.BoolDType)?"
)
# of bytes that Python 2 wrote; torch lets it take any codec, to compress or to import modules
ENCODE = "_codecs.encode"
PLAIN_CODECS = ("latin_1", "utf_8", "ascii")
# what torch raises for files in another format, or for what it does not unpickle
UNREADABLE = (
    *(OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, EOFError, MemoryError, OverflowError),
    *(struct.error, pickle.UnpicklingError, zipfile.BadZipFile),
)
HEAD = 1 << 28  # bytes that are searched for names in a file that is not an archive


def convert(
    path: str | os.PathLike,
    model: str | PreTrainedModel,
    which: str = "teacher",
    num_labels: int | None = None,
    report: Callable[[str], None] = print,
    **overrides,
) -> PreTrainedModel:
    """The network whose weights are in `path`, a published `.pth` file, in evaluation mode. Only tensors, numbers
    and containers are unpickled.

    Args:
        model: a name of `BUILDS`, or a model of this package to fill.
        which: "teacher" or "student"; a file with a single set of weights has only a student. The authors report
            the student in domain adaptation and the teacher in semi-supervised learning.
        num_labels: classes of the checkpoint, where they are not those of the paper's experiments with `model`.
        report: called with each line about what was done.
        overrides: as in `build`.

    Raises:
        MissingError: there is no such file.
        UserError: the file is no such checkpoint, holds another network than `model` or another number of classes, or a
            weight is missing, unexpected or of another shape.
    """
    if which not in ("teacher", "student"):
        raise UserError(f"which={which!r} is not known: choose teacher or student.")
    path = os.fspath(path)
    state = _weights_of(_load(path), which, path)
    family = _recognize(state, path)
    name, classes = (model, num_labels) if isinstance(model, str) else (type(model).__name__, model.config.num_labels)
    if isinstance(model, str):
        if model not in family.builds and model in BUILDS:
            raise UserError(
                f"{path} holds a {family.title} network, not {model}: choose {' or '.join(family.builds)}."
            )
        if classes is None and model in BUILDS:
            classes = BUILDS[model].num_labels
    elif not any(isinstance(model, BUILDS[known].model) for known in family.builds):
        raise UserError(f"{path} holds a {family.title} network, not a {name}: choose the model of this network.")
    weight = state.get(family.classifier)
    if weight is not None and classes is not None and len(weight) != classes:
        raise UserError(
            f"The head in {path} has {len(weight)} classes, but the model has {classes}: ask for "
            f"num_labels={len(weight)}."
        )
    model = build(model, classes, **overrides) if isinstance(model, str) else model

    unused = [key for key in state if family.unused and re.search(family.unused, key)]
    converted = family.keys({key: tensor for key, tensor in state.items() if key not in unused})
    _check_fit(converted, model, path, name)
    refuse_nonfinite(converted.items(), path)
    model.load_state_dict(converted)
    report(f"{path}: {family.title}, {which} weights of {len(state)} entries")
    if unused:
        report(f"left out {len(unused)} entries that the network does not use ({', '.join(unused[:3])})")
    report(f"filled all {len(converted)} weights and buffers of {name} with {model.config.num_labels} classes")
    return model.eval()


def _load(path: str) -> object:
    """The content of the file, with no code in it run."""
    if not os.path.isfile(path):
        raise MissingError(f"There is no file {path}: give the path of a .pth checkpoint.")
    foreign, codecs = _looked_up(path)
    if not codecs:
        try:
            with torch.serialization.safe_globals(_NUMPY_SCALARS):
                return torch.load(path, map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            if type(error) is LookupError:  # of a codec that Python does not know
                foreign = [*foreign, ENCODE]
            if not foreign:
                raise UserError(f"{path} is truncated or not a PyTorch checkpoint: download it again.") from error
    raise UserError(
        f"{path} holds objects besides tensors ({', '.join([*codecs, *foreign][:3])}), whose loading could run code, and "
        "is refused: give a checkpoint of tensors, numbers and containers."
    )


def _looked_up(path: str) -> tuple[list[str], list[str]]:
    """What unpickling a checkpoint would look up, found without unpickling it and whatever torch says.

    Returns:
        names that are not those of tensors, and if `ENCODE` is looked up, the codecs it is asked for.
    """
    names: dict[str, None] = {}
    texts: set[str] = set()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                pickles = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
        else:
            with open(path, "rb") as file:
                pickles = [file.read(HEAD)]
        for content in map(io.BytesIO, pickles):
            for _ in range(5):  # the old format holds four pickles before the tensors
                for kind, text in _strings(content):
                    if kind == "name":
                        names[text] = None
                    else:
                        texts.add(text)
    except UNREADABLE:  # truncated, or not a pickle
        pass
    known = {*aliases.aliases, *(module.name for module in pkgutil.iter_modules(encodings.__path__))}
    asked = {text: encodings.normalize_encoding(text).lower() for text in texts} if ENCODE in names else {}
    codecs = [
        f"the codec {text!r}"
        for text, name in asked.items()
        # digits are names of tensors, and as codecs mere tables of characters
        if name in known and aliases.aliases.get(name, name) not in PLAIN_CODECS and not text.isdecimal()
    ]
    return [name for name in names if re.fullmatch(r"[\w.]+", name) and not _TENSORS.fullmatch(name)], codecs


def _strings(file: io.BytesIO) -> Iterator[tuple[str, str]]:
    """Each name ("name") that one pickle looks up, and each other text ("text") in it."""
    pushed: list[str | None] = []
    memo: dict[int, str | None] = {}
    for code, value, _ in pickletools.genops(file):
        if code.name in ("GLOBAL", "INST"):
            yield "name", value.replace(" ", ".")
        elif code.name == "STACK_GLOBAL":
            yield "name", ".".join(map(str, pushed[-2:]))
        elif code.name.startswith("EXT"):
            yield "name", f"copyreg.{code.name}"
        elif code.name == "MEMOIZE" or "PUT" in code.name:
            memo[len(memo) if value is None else int(value)] = pushed[-1] if pushed else None
        elif "GET" in code.name:
            pushed.append(memo.get(int(value)))
        else:
            pushed.append(value if isinstance(value, str) else None)
            if isinstance(value, str):
                yield "text", value


def _tensors(container: object, prefix: str = "") -> State:
    """The tensors of a dictionary under `prefix`, without it and without `module.`, which DDP puts in front."""
    if not isinstance(container, dict):
        return {}
    plain = {key.removeprefix("module."): value for key, value in container.items() if isinstance(key, str)}
    return {
        key.removeprefix(prefix): value
        for key, value in plain.items()
        if key.startswith(prefix) and isinstance(value, torch.Tensor)
    }


def _weights_of(checkpoint: object, which: str, path: str) -> State:
    """The weights of teacher or student, by the containers of mmsegmentation, U2PL and UniMatch."""
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint: give a dictionary of weights.")
    content = checkpoint.get("state_dict", checkpoint)
    candidates = {
        "teacher": [
            _tensors(content, "ema_model."),
            _tensors(checkpoint.get("teacher_state")),
            _tensors(checkpoint.get("model_ema")),
        ],
        "student": [
            _tensors(content, "model."),
            _tensors(checkpoint.get("model_state")),
            _tensors(checkpoint.get("model")),
            _tensors(content),
        ],
    }
    found = next((state for state in candidates[which] if state), None)
    if found is None:
        if which == "teacher" and any(candidates["student"]):
            raise UserError(f"{path} holds no teacher, only one network: ask for the student.")
        raise UserError(f"{path} holds no weights of a {which}: give a checkpoint of a published network.")
    return found


def _recognize(state: State, path: str) -> Family:
    for family in FAMILIES:
        if all(any(key.startswith(mark) for key in state) for mark in family.marks):
            return family
    known = ", ".join(family.title for family in FAMILIES)
    first = ", ".join(list(state)[:3])
    raise UserError(f"{path} holds none of the networks known here ({known}); its weights begin with {first}.")


def _check_fit(converted: State, model: PreTrainedModel, path: str, name: str) -> None:
    """Every weight of the model is there once, and nothing else."""
    expected = model.state_dict()
    problems = {
        "missing": [key for key in expected if key not in converted],
        "unexpected": [key for key in converted if key not in expected],
        "of another shape": [
            f"{key} {tuple(converted[key].shape)} for {tuple(expected[key].shape)}"
            for key in expected
            if key in converted and converted[key].shape != expected[key].shape
        ],
    }
    found = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in problems.items()
        if keys
    ]
    if found:
        raise UserError(f"{path} does not fit {name}: {'; '.join(found)}.")
