"""`hub`: any dataset that `datasets.load_dataset` reads and that has columns of images and index masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import HFValidationError, HTTPError

from hf_fst.data.files import split_of
from hf_fst.data.folders import read_id2label, read_json
from hf_fst.data.labels import LabelMap, are_colors
from hf_fst.errors import MissingError, UserError, in_a_line
from hf_fst.hub import asked_once

# The first one present is used; jpg and png are the columns of WebDataset shards of 0001.jpg, 0001.png.
IMAGE_COLUMNS = ("image", "pixel_values", "img", "jpg", "jpeg")
LABEL_COLUMNS = ("label", "labels", "annotation", "mask", "segmentation", "label.png", "seg.png", "mask.png", "png")

BYTES, TEXT = ("binary", "large_binary"), ("string", "large_string")  # Arrow's types
LONGEST = 4096  # characters of a path


def hub(
    data_dir: str | None,
    *,
    config: str | None = None,
    revision: str | None = None,
    image: str | None = None,
    label: str | None = None,
    names: list[str] | dict | str | None = None,
    id_map: list[int] | dict | None = None,
    colors: list[list[int]] | str | None = None,
    mask_orientation: str | None = None,
    streaming: bool = False,
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Loads a dataset by Hub id or local path: Parquet, ImageFolder with `*_file_name` metadata, WebDataset, ...

    Args:
        data_dir: Hub id ("user/name") or path.
        config: name of the dataset's configuration.
        revision: branch, tag or commit on the Hub.
        image: column of the images; None for the first of `IMAGE_COLUMNS`.
        label: column of the masks; None for the first of `LABEL_COLUMNS`. Without any, the images are unlabeled.
        names: class names by train id: a list, an `{id: name}`, or a JSON file of either. Not needed where the masks
            are a `LabelMap` already, or for unlabeled images, or where a local path holds `id2label.json`.
        id_map, colors, mask_orientation: as for `folder`; id_map is [255, 0, 1, ...] where raw 0 means ignored.
        streaming: gives iterable datasets.

    Raises:
        MissingError: there is no such dataset.
        UserError: columns or class names are missing.
    """
    if not data_dir:
        raise UserError("data_dir is missing; give the id of a dataset on the Hub or a local path.")
    with loading(str(data_dir)):
        loaded = datasets.load_dataset(str(data_dir), config, revision=revision, streaming=streaming)
    colors = read_json(colors) if isinstance(colors, str) else colors
    way = {"id_map": id_map, "colors": colors, "orientation": mask_orientation}
    made = {}
    for split, dataset in loaded.items():
        usual = split_of(split)
        taken = usual is None or usual in loaded or usual in made
        made[split if taken else usual] = _columns(dataset, image, label, names, way, data_dir)
    return type(loaded)(made)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Inside, a dataset is loaded by Hub id or path; failures become one sentence.

    Raises:
        MissingError: there is no such dataset, or the Hub does not answer.
        UserError: it has no such split or configuration.
    """
    try:
        with asked_once(name) as fault:
            yield
    except (FileNotFoundError, ConnectionError, HTTPError, HFValidationError) as error:  # HTTPError: no network, too
        reason = str(error).strip().partition("\n")[0] if fault is None else f"the Hub does not answer: {fault}"
        raise MissingError(f"There is no dataset {name!r} on the Hub or in a folder ({reason}).") from error
    except DatasetGenerationError as error:
        raise UserError(f"The files of {name} cannot be read ({in_a_line(error.__cause__ or error)}).") from error
    except ValueError as error:  # `datasets` lists the splits and configurations that there are
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"The dataset {name} cannot be read as given: {reason}") from error


def _columns(dataset, image, label, names, way: dict, data_dir):
    if dataset.features is None:
        dataset = dataset._resolve_features()  # a streamed dataset may know its columns only from its first row
    features = dataset.features
    image = _find(image, IMAGE_COLUMNS, features, "images")
    label = _find(
        label, LABEL_COLUMNS, {name: f for name, f in features.items() if name != image}, "masks", needed=False
    )
    renamed = {image: "image"} if label is None else {image: "image", label: "label"}
    dataset = dataset.select_columns(list(renamed))
    dataset = dataset.rename_columns({old: new for old, new in renamed.items() if old != new})
    final = {"image": datasets.Image()}
    if label is not None:
        kept = isinstance(features[label], LabelMap) and names is None and all(value is None for value in way.values())
        if kept:
            final["label"] = features[label]
        else:
            names = _names(names, features[label], data_dir)
            final["label"] = LabelMap(names=names, palette=_palette(len(names), data_dir), **way)
    for column, stored in zip(final, renamed, strict=True):
        if isinstance(features[stored], datasets.Value) and "string" in features[stored].dtype:
            dataset = dataset.map(_beside, fn_kwargs={"column": column, "folder": str(data_dir)})
    if isinstance(dataset, datasets.IterableDataset):  # a stream forgets its features in a map
        return dataset.cast(datasets.Features(final))
    for column, feature in final.items():
        dataset = dataset.cast_column(column, feature)
    return dataset


def _beside(row: dict, column: str, folder: str) -> dict:
    """The path of a file, which may be relative to the folder of the table that names it."""
    path = row[column]
    if path is not None and len(path) > LONGEST:
        raise UserError(
            f"The column {column!r} holds a text of {len(path)} characters, which is no path; turn base64 into bytes "
            "first, as dataset.map(lambda row: {'" + column + "': base64.b64decode(row['" + column + "'])})."
        )
    return {column: path if path is None or "://" in path else str(Path(folder, path))}


def holds_images(feature, paths: bool = True) -> bool:
    """Whether a column holds images or what can be cast to them: bytes, `paths`, or both in a struct."""
    if isinstance(feature, dict):
        return "bytes" in feature or (paths and set(feature) == {"path"})
    if isinstance(feature, datasets.Value):
        return feature.dtype in (BYTES + TEXT if paths else BYTES)
    return isinstance(feature, datasets.Image)


def _palette(count: int, data_dir: str) -> list[list[int]] | None:
    """The colors in the `palette.json` of a local dataset; None if there are none for `count` classes."""
    path = Path(data_dir) / "palette.json"
    if not path.is_file():
        return None
    colors = read_json(path)
    if not are_colors(colors):
        raise UserError(f"{path} must hold an [r, g, b] of 0 to 255 for each class; correct it or remove it.")
    return colors if len(colors) == count else None


def _find(given: str | None, usual: tuple[str, ...], features: dict, what: str, needed: bool = True) -> str | None:
    found = given if given is not None else next((name for name in usual if name in features), None)
    if found is None and not needed:
        return None
    if found not in features:
        asked = f"no column {given!r}" if given is not None else f"no column of {what} ({', '.join(usual)})"
        raise UserError(f"The dataset has {asked}; its columns are {', '.join(features)}.")
    feature = features[found]
    if isinstance(feature, datasets.Value) and feature.dtype == "null":
        raise UserError(f"The column {found!r} should hold {what}, but it is empty in every row; name another.")
    if not holds_images(feature):
        kind = type(feature).__name__
        raise UserError(
            f"The column {found!r} should hold {what} (feature Image, or their bytes or paths), but it holds {kind}; "
            "name another."
        )
    return found


def _names(names: list[str] | dict | str | None, feature: datasets.Image, data_dir: str) -> list[str]:
    if names is None and isinstance(feature, LabelMap) and feature.names:
        return feature.names
    if names is None and (Path(data_dir) / "id2label.json").is_file():
        names = str(Path(data_dir) / "id2label.json")
    if names is None:
        raise UserError("The masks have no class names; give names as a list or as the path of an id2label.json.")
    return read_id2label(names, "names")
