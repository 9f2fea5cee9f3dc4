"""Networks and image processors by directory or Hub id, and where they lie in the directory of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
    SegformerImageProcessor,
)
from transformers.utils import logging

from hf_fst.errors import MissingError, UserError

logger = logging.get_logger(__name__)

# `output_dir/` is the teacher, with the student in STUDENT_DIR; `checkpoint-N/` is the student, with the teacher in
# TEACHER_DIR, and counts once MARKER, written last, is there
TEACHER_DIR, STUDENT_DIR, MARKER = "teacher", "student", "complete.json"


def default_processor(scale: Sequence[int] | None = None) -> SegformerImageProcessor:
    """Builds the image processor of a model that has none: it normalizes with ImageNet's mean and standard deviation.

    Args:
        scale: (width, height) that images are resized to fit into; None keeps their size.
    """
    if scale is None:
        return SegformerImageProcessor(do_resize=False)
    return SegformerImageProcessor(do_resize=True, size={"max_width": scale[0], "max_height": scale[1]})


def locate(model: str | Path, which: str | None = None) -> tuple[str, str]:
    """Finds where a network lies: (directory or Hub id, subfolder in it). On the Hub it is as in a run's directory.

    Args:
        model: a directory or a Hub id.
        which: "teacher" or "student" of a run or of its `checkpoint-N/`; None for what lies in `model` itself.

    Raises:
        UserError: `which` is neither, or the directory holds adapters only.
        MissingError: there is no such directory, or no such network in it.
    """
    if which not in (None, "teacher", "student"):
        raise UserError(f"which is {which!r}; give 'teacher' or 'student'.")
    advice = "give a directory that save_pretrained or a training run wrote, or a Hub id."
    folder, subfolder = Path(model), STUDENT_DIR if which == "student" else ""
    if not folder.is_dir():
        if str(model).startswith((".", "/", "~")) or str(model).count("/") != 1:  # cannot be a Hub id
            raise MissingError(f"There is no model {str(model)!r}; {advice}")
        return str(model), subfolder
    if which is not None and (folder / TEACHER_DIR / "config.json").is_file():
        subfolder = TEACHER_DIR if which == "teacher" else ""
    place = folder / subfolder
    if (place / "adapter_config.json").is_file() and not (place / "config.json").is_file():
        raise UserError(
            f"{place} holds adapters alone; load them with peft, and give the directory of the model that "
            "merge_and_unload() returns and save_pretrained() has written."
        )
    if not (place / "config.json").is_file():
        raise MissingError(f"{place} has no config.json, so it holds no {which or 'model'}; {advice}")
    return str(model), subfolder


def load_network(
    model: str | Path,
    which: str | None = None,
    id2label: dict[int, str] | None = None,
    replace_head: bool = True,
    **options: Any,
) -> PreTrainedModel:
    """Loads a segmentation network.

    Args:
        model: a directory or a Hub id.
        which: see `locate`.
        id2label: class names to give it; its own by default.
        replace_head: whether a trained head for another number of classes is replaced by a new one, or refused.
        options: fields of the configuration to change.

    Raises:
        UserError: the trained head has another number of classes, or weights are not finite.
        MissingError: there is no such network.
    """
    name, subfolder = locate(model, which)
    where = f"{name}, subfolder {subfolder}" if subfolder else name
    try:
        config = AutoConfig.from_pretrained(name, subfolder=subfolder, **options)
        if id2label is not None:
            trained = any("Segmentation" in architecture for architecture in config.architectures or ())
            if trained and config.num_labels != len(id2label) and not replace_head:
                raise UserError(
                    f"The model {name} has {config.num_labels} classes but the dataset has {len(id2label)}; set "
                    "replace_head: true to give it a new head, or use a dataset with its classes."
                )
            config.id2label, config.label2id = id2label, {label: index for index, label in id2label.items()}
        network = AutoModelForSemanticSegmentation.from_pretrained(
            name, subfolder=subfolder, config=config, ignore_mismatched_sizes=id2label is not None
        )
        refuse_nonfinite(network.state_dict().items(), where)
        return network
    except UserError:
        raise
    except (OSError, ValueError, StrictDataclassError) as error:
        raise MissingError(f"No segmentation model can be loaded from {where}: {words(error)}") from error


def load(
    model: str | Path, which: str | None = None, processor: Any = None, id2label: dict[int, str] | None = None
) -> tuple[PreTrainedModel, Any]:
    """Loads a network and its image processor; where there is none, `default_processor` with a warning.

    Args:
        model: a directory or a Hub id.
        which: see `locate`.
        processor: image processor to use in place of its own.
        id2label: class names to give the network; a head for another number of classes is replaced by a new one.

    Raises:
        UserError: see `load_network`.
    """
    network = load_network(model, which, id2label)
    if processor is not None:
        return network, processor
    name, subfolder = locate(model, which)
    for place in dict.fromkeys((subfolder, "")):  # a student uses the teacher's
        try:
            return network, AutoImageProcessor.from_pretrained(name, subfolder=place)
        except OSError:
            continue
    logger.warning("%s has no image processor; one with ImageNet's mean and deviation is used.", name)
    return network, default_processor()


def refuse_nonfinite(weights: Iterable[tuple[str, torch.Tensor]], where: str | Path) -> None:
    """Refuses weights that are nan or infinite: such a network still gives classes, though wrong ones.

    Args:
        weights: parameters and buffers by name.
        where: where they come from.

    Raises:
        UserError: with how many tensors hold such values, and the first of them.
    """
    bad = [name for name, tensor in weights if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise UserError(
            f"{len(bad)} of the tensors in {where} hold values that are not finite, the first is {bad[0]}: the training "
            "diverged, or the file is damaged; use an earlier checkpoint, or train again with a lower learning rate."
        )


def refuse_broken_files(directory: str | Path) -> None:
    """Refuses a directory whose weights are not finite or cannot be read, without building the network.

    Raises:
        UserError: with the file.
    """
    for path in sorted(Path(directory).glob("model*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                refuse_nonfinite(((name, file.get_tensor(name)) for name in file.keys()), path)
        except SafetensorError as error:
            raise UserError(
                f"{path} cannot be read ({words(error)[:-1]}); download or save the model again."
            ) from error


def words(error: Exception) -> str:
    """The first line of an error, all of it where a field is wrong, as the end of a sentence."""
    text = " ".join(str(error).split()) if isinstance(error, StrictDataclassError) else str(error).strip()
    return text.partition("\n")[0].rstrip(".") + "."
