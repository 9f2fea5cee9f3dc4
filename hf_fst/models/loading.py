"""Networks and image processors by directory or Hub id, and where they lie in the directory of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    ImageProcessingMixin,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerImageProcessor,
    TimmBackboneConfig,
)
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, logging

from hf_fst.errors import MissingError, RunError, UserError
from hf_fst.hub import asked_once, hub

from .adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_of, merged
from .faults import LOADING, UNREADABLE, reason, refuse_other_weights, words

logger = logging.get_logger(__name__)

# `output_dir/` is the teacher, with the student in STUDENT_DIR; `checkpoint-N/` is the student, with the teacher in
# TEACHER_DIR, and counts once MARKER, written last, is there
TEACHER_DIR, STUDENT_DIR, MARKER = "teacher", "student", "complete.json"


# With which the weights of EfficientNet-Lite were trained; timm rounds them to 0.5.
LITE = [127 / 255] * 3, [128 / 255] * 3
_UNASKED = (
    "{} needs code that comes with it, which is not run unasked; read that code, then give --trust_remote_code (in "
    "Python trust_remote_code=True)."
)


def default_processor(config: PreTrainedConfig | None = None) -> SegformerImageProcessor:
    """Builds the image processor of a network that has none; it leaves the size alone.

    The backbone of `config` says how its weights were trained: with the mean and deviation of timm's checkpoints, of
    EfficientNet-Lite or of BEiT (0.5). All others, and None: those of ImageNet.
    """
    backbone = getattr(config, "backbone_config", None)
    numbers = {}
    if isinstance(backbone, TimmBackboneConfig):
        import timm  # which importing the trainer need not wait for

        about = timm.get_pretrained_cfg(backbone.backbone, allow_unregistered=True)
        lite = "efficientnet_lite" in backbone.backbone
        numbers = dict(zip(("image_mean", "image_std"), LITE if lite else (about.mean, about.std), strict=True))
    elif backbone is not None and backbone.model_type == "beit":
        numbers = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return SegformerImageProcessor(do_resize=False, **numbers)


def class_names(config: PreTrainedConfig, where: str = "The model's config") -> list[str]:
    """The class names of a network, by id.

    Raises:
        UserError: ids are not those from 0 on, or two names are one in logs, where blanks are underscores.
    """
    ids = list(config.id2label)
    if not ids or sorted(ids) != list(range(len(ids))):
        raise UserError(
            f"{where} names the classes {', '.join(map(str, ids[:9])) or 'of no id'} in id2label, but all of 0 to "
            f"{max(len(ids), 1) - 1} are needed; correct it there."
        )
    names = [str(config.id2label[index]) for index in range(len(ids))]
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        first = seen.setdefault("_".join(name.split()), index)
        if first != index:
            raise UserError(
                f"{where} names the classes {first} and {index} {names[first]!r} and {name!r} in id2label, which are one "
                "name in logs; give each class a name of its own, there or as id2label."
            )
    return names


def saved_processor(model: str | Path, subfolder: str = "", trust_remote_code: bool = False) -> Any | None:
    """The image processor saved with a network, or that of the base if an adapter has none; None if there is none.

    Args:
        model: a directory or a Hub id.
        subfolder: of the network in it, which may use that of the whole.
        trust_remote_code: whether code that comes with it may run; it is never asked for.

    Raises:
        UserError: there is one, or there may be, but it cannot be fetched or read.
    """
    name = str(model)
    try:
        with asked_once(name):
            for place in dict.fromkeys((subfolder, "")):
                if any(_file(name, place, file) for file in (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME)):
                    found = AutoImageProcessor.from_pretrained(
                        name, subfolder=place, trust_remote_code=trust_remote_code
                    )
                    if not isinstance(found, ImageProcessingMixin):
                        raise TypeError(f"It is a {type(found).__name__}.")
                    return found
            adapter = _adapter(name, subfolder)
    except UNREADABLE as error:
        if "trust_remote_code=True" in str(error):
            raise UserError(_UNASKED.format(f"The image processor of {name}")) from error
        raise UserError(
            f"The image processor of {name} cannot be read, so the mean and deviation of its images are unknown: "
            f"{words(error)} Try again, fix {IMAGE_PROCESSOR_NAME}, or in Python give an image processor."
        ) from error
    return None if adapter is None else saved_processor(base_of(adapter, name), "", trust_remote_code)


def _file(name: str, subfolder: str, file: str) -> Path | None:
    """A file of a directory or a repository, None if it has none. Raises what the Hub's client raises where that is not
    known."""
    if Path(name).is_dir():
        path = Path(name, subfolder, file)
        return path if os.path.lexists(path) else None  # a link to nowhere is one that cannot be read
    try:
        return Path(hf_hub_download(name, file, subfolder=subfolder or None))
    except LocalEntryNotFoundError:  # the Hub does not answer
        known = try_to_load_from_cache(name, "/".join(filter(None, (subfolder, file))))
        if known is None:
            raise
        return Path(known) if isinstance(known, str) else None
    except EntryNotFoundError:
        return None


def _adapter(name: str, subfolder: str) -> Path | None:
    """The configuration of the adapter in a directory or a repository; None for a whole network."""
    try:
        return _file(name, subfolder, ADAPTER_CONFIG)
    except (LocalEntryNotFoundError, RepositoryNotFoundError):  # which asking for a network says better
        return None


def processor_of(model: str | Path, subfolder: str = "", trust_remote_code: bool = False) -> Any:
    """The image processor that is saved with a network, or one with ImageNet's numbers and a warning.

    Args and raises: see `saved_processor`.
    """
    processor = saved_processor(model, subfolder, trust_remote_code)
    if processor is None:
        logger.warning_once(f"{model} has no image processor; one with ImageNet's mean and deviation is used.")
    return processor or default_processor()


def locate(model: str | Path, which: str | None = None) -> tuple[str, str]:
    """Finds a network: (directory or Hub id, subfolder in it). A repository is laid out as the directory of a run.

    Args:
        model: a directory or a Hub id.
        which: "teacher" or "student" of a run or of its `checkpoint-N/`; None for what is in `model` itself.

    Raises:
        UserError: `which` is neither.
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
    if which is not None and _holds_network(folder / TEACHER_DIR):
        subfolder = TEACHER_DIR if which == "teacher" else ""
    place = folder / subfolder
    if not _holds_network(place):
        raise MissingError(f"{place} has no config.json, so it holds no {which or 'model'}; {advice}")
    return str(model), subfolder


def _holds_network(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG))


def load_network(
    model: str | Path,
    which: str | None = None,
    id2label: dict[int, str] | None = None,
    replace_head: bool = True,
    trust_remote_code: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Loads a segmentation network; `is_whole` of it says whether every weight was found, its head's too.

    Args:
        model: a directory or a Hub id.
        which: see `locate`.
        id2label: class names to give it; its own by default.
        replace_head: whether a trained head for another number of classes is replaced by a new one, or refused.
        trust_remote_code: whether code that comes with the network may run; it is never asked for.
        options: fields of the configuration to change.

    Raises:
        UserError: the trained head has another number of classes, or weights are not finite.
        MissingError: there is no such network.
    """
    name, subfolder = locate(model, which)
    where = f"{name}, subfolder {subfolder}" if subfolder else name

    def named(config: PreTrainedConfig, is_adapter: bool) -> None:
        if id2label is None:
            config.id2label = dict(enumerate(class_names(config, f"config.json of {where}")))
        elif is_adapter and config.num_labels != len(id2label):
            raise UserError(
                f"{where} is an adapter whose network has {config.num_labels} classes, but {len(id2label)} are wanted; "
                "only a whole network gets a new head: save the merged one, as load_network(RUN).save_pretrained(FOLDER) "
                "of hf_fst.models.loading does, and give that."
            )
        else:
            _give_names(config, id2label, replace_head, name)

    network, found = _read((name, subfolder), where, named, trust_remote_code, options)
    network.is_whole = not found["missing_keys"] and not found["mismatched_keys"]
    if not options:
        refuse_other_weights(network, found, id2label is None, where)
    refuse_nonfinite(network.state_dict().items(), where)
    return network


def _read(
    place: tuple[str, str],
    where: str,
    named: Callable[[PreTrainedConfig, bool], None],
    trust_remote_code: bool,
    options: dict[str, Any],
    config: PreTrainedConfig | None = None,
) -> tuple[PreTrainedModel, dict]:
    """A network, an adapter merged into its base, and what transformers found about its weights.

    Args:
        place: directory or Hub id, and subfolder.
        where: the same for people.
        named: gives a configuration its classes; the second argument says whether it is that of an adapter.
        config: of an adapter, for its base.
    """
    name, subfolder = place
    trust = {"subfolder": subfolder, "trust_remote_code": trust_remote_code}
    try:
        with hub(name):
            adapter = _adapter(name, subfolder)
            if config is None and (adapter is None or _file(name, subfolder, CONFIG_NAME)):
                if not trust_remote_code:
                    _refuse_code(name, subfolder, where)
                config = AutoConfig.from_pretrained(name, **trust, **options)
                named(config, adapter is not None)
            if adapter is None:
                return AutoModelForSemanticSegmentation.from_pretrained(
                    name, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **trust
                )
            _file(name, subfolder, ADAPTER_WEIGHTS)  # beside the other
    except UserError:
        raise
    except LOADING as error:
        raise MissingError(f"No segmentation model can be loaded from {where}: {reason(error)}") from error
    base = base_of(adapter, where)
    try:
        with _no_report():  # of weights that the base lacks: the adapter brings them
            network, found = _read(locate(base), base, named, trust_remote_code, options, config)
    except (MissingError, RunError) as error:
        raise type(error)(f"{where} is an adapter, whose base network does not load: {error}") from error
    except RecursionError as error:
        raise UserError(f"{where} is an adapter of itself; name its base network in {ADAPTER_CONFIG}.") from error
    lacking = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    network = merged(network, lacking, adapter.parent, where)
    network.name_or_path = network.config.name_or_path = str(Path(*place)) if Path(name).is_dir() else name
    return network, dict.fromkeys(found, ())


@contextmanager
def _no_report() -> Iterator[None]:
    """Inside, transformers loads without its table of what is new or does not fit."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _refuse_code(name: str, subfolder: str, where: str) -> None:
    """Refuses a network that needs code of its own, before transformers asks on the terminal. Raises `UserError`."""
    config, _ = PreTrainedConfig.get_config_dict(name, subfolder=subfolder)
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        raise UserError(_UNASKED.format(where))


def _give_names(config: PreTrainedConfig, id2label: dict[int, str], replace_head: bool, name: str) -> None:
    """Gives a configuration other classes. Raises `UserError` where the trained head has another number of them."""
    if not id2label:
        raise UserError("id2label is empty; name one class at least.")
    try:  # as JSON has them, too: a list, or text as keys
        pairs = id2label.items() if isinstance(id2label, dict) else enumerate(id2label)
        id2label = {int(index): label for index, label in pairs}
    except (TypeError, ValueError) as error:
        raise UserError(f"id2label is {id2label!r}; give {{0: 'road', 1: 'car'}} or ['road', 'car'].") from error
    trained = any("Segmentation" in architecture for architecture in config.architectures or ())
    if trained and config.num_labels != len(id2label) and not replace_head:
        raise UserError(
            f"The model {name} has {config.num_labels} classes but the dataset has {len(id2label)}; set "
            "replace_head: true to give it a new head, or use a dataset with its classes."
        )
    config.id2label, config.label2id = id2label, {label: index for index, label in id2label.items()}


def load(
    model: str | Path,
    which: str | None = None,
    processor: Any = None,
    id2label: dict[int, str] | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Loads a network and its image processor (`processor_of`, unless one is given).

    Args and raises: see `load_network` and `saved_processor`. A head for another number of classes than `id2label` has
    is replaced by a new one.
    """
    network = load_network(model, which, id2label, trust_remote_code=trust_remote_code)
    if processor is not None:
        return network, processor
    return network, processor_of(*locate(model, which), trust_remote_code)


def refuse_nonfinite(weights: Iterable[tuple[str, torch.Tensor]], where: str | Path) -> None:
    """Raises `UserError` for weights, by name, that are nan or infinite: such a network still gives classes, though
    wrong ones. `where` says where the weights come from."""
    bad = [name for name, tensor in weights if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise UserError(
            f"{len(bad)} of the tensors in {where} hold values that are not finite, the first is {bad[0]}: the training "
            "diverged, or the file is damaged; use an earlier checkpoint, or train again with a lower learning rate."
        )


def refuse_broken_files(directory: str | Path) -> None:
    """Raises `UserError` for weights in a directory that are not finite or cannot be read; builds no network."""
    for path in sorted([*Path(directory).glob("model*.safetensors"), *Path(directory).glob(ADAPTER_WEIGHTS)]):
        try:
            with safe_open(path, "pt") as file:
                refuse_nonfinite(((name, file.get_tensor(name)) for name in file.keys()), path)
        except SafetensorError as error:
            raise UserError(
                f"{path} cannot be read ({words(error)[:-1]}); download or save the model again."
            ) from error
