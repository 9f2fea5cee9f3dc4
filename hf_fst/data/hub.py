"""`hub`: any dataset that `datasets.load_dataset` reads and that has columns of images and index masks."""

from __future__ import annotations

import json
from pathlib import Path

import datasets

from hf_fst.data.files import default_palette
from hf_fst.data.folders import read_id2label
from hf_fst.data.labels import LabelMap
from hf_fst.errors import MissingError, UserError

# The first that is there is taken; jpg and png are the columns of WebDataset shards with 0001.jpg, 0001.png.
IMAGE_COLUMNS = ("image", "pixel_values", "img", "jpg", "jpeg")
LABEL_COLUMNS = ("label", "labels", "annotation", "mask", "segmentation", "label.png", "seg.png", "mask.png", "png")
SPLITS = {"val": "validation", "valid": "validation", "dev": "validation"}


def hub(
    data_dir: str | None,
    *,
    config: str | None = None,
    revision: str | None = None,
    image: str | None = None,
    label: str | None = None,
    names: list[str] | dict | str | None = None,
    id_map: list[int] | None = None,
    streaming: bool = False,
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Loads a dataset by Hub id or local path: parquet, ImageFolder with `*_file_name` metadata, WebDataset, ...

    Args:
        data_dir: Hub id ("user/name") or path.
        config: name of the dataset's configuration.
        revision: branch, tag or commit on the Hub.
        image: column of the images; None takes the first of `IMAGE_COLUMNS`.
        label: column of the masks; None takes the first of `LABEL_COLUMNS`, and none where there is none (unlabeled
            images).
        names: class names by train id: a list, an `{id: name}`, or a JSON file of either. Not needed where the masks
            are a `LabelMap` already, or for unlabeled images, or where a local path holds `id2label.json`.
        id_map: train id (or 255) of each raw id, as in `LabelMap`; [255, 0, 1, ...] where raw 0 means ignored.
        streaming: gives iterable datasets.

    Raises `FileNotFoundError` where there is no such dataset, `ValueError` for missing columns or class names.
    """
    if data_dir is None:
        raise UserError("data_dir is missing; give the id of a dataset on the Hub or a local path.")
    try:
        loaded = datasets.load_dataset(str(data_dir), config, revision=revision, streaming=streaming)
    except (FileNotFoundError, ConnectionError) as error:
        reason = str(error).partition("\n")[0]
        raise MissingError(f"There is no dataset {str(data_dir)!r} on the Hub or in a folder ({reason}).") from error
    except ValueError as error:  # such as a configuration that it does not have; `datasets` lists those it has
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"The dataset {data_dir} cannot be read so: {reason}") from error
    made = {
        SPLITS.get(split, split): _columns(dataset, image, label, names, id_map, data_dir)
        for split, dataset in loaded.items()
    }
    return type(loaded)(made)


def _columns(dataset, image, label, names, id_map, data_dir):
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
    dataset = dataset.cast_column("image", datasets.Image(mode="RGB"))
    if label is None or (isinstance(features[label], LabelMap) and names is None and id_map is None):
        return dataset
    names = _names(names, features[label], data_dir)
    return dataset.cast_column("label", LabelMap(names=names, palette=_palette(len(names), data_dir), id_map=id_map))


def _palette(count: int, data_dir: str) -> list[list[int]]:
    """The colors that `palette.json` beside a local dataset has, where it is of as many classes, or VOC's."""
    path = Path(data_dir) / "palette.json"
    colors = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return colors if len(colors) == count else default_palette(count)


def _find(given: str | None, usual: tuple[str, ...], features: dict, what: str, needed: bool = True) -> str | None:
    found = given if given is not None else next((name for name in usual if name in features), None)
    if found is None and not needed:
        return None
    if found not in features:
        asked = f"no column {given!r}" if given is not None else f"no column of {what} ({', '.join(usual)})"
        raise UserError(f"The dataset has {asked}; its columns are {', '.join(features)}.")
    if not isinstance(features[found], datasets.Image):
        kind = type(features[found]).__name__
        raise UserError(f"The column {found!r} should hold {what} (feature Image), but it holds {kind}; name another.")
    return found


def _names(names: list[str] | dict | str | None, feature: datasets.Image, data_dir: str) -> list[str]:
    if names is None and isinstance(feature, LabelMap) and feature.names:
        return feature.names
    if names is None and (Path(data_dir) / "id2label.json").is_file():
        names = str(Path(data_dir) / "id2label.json")
    if names is None:
        raise UserError("The masks have no class names; give names as a list or as the path of an id2label.json.")
    if isinstance(names, str):
        return read_id2label(names)
    if isinstance(names, dict):
        by_id = {int(key): name for key, name in names.items()}
        if set(by_id) != set(range(len(by_id))):
            raise UserError(f"names has the ids {sorted(by_id)}, but it must have 0 to {len(by_id) - 1}.")
        return [by_id[i] for i in range(len(by_id))]
    return list(names)
