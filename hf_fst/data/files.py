"""What the loaders share: finding folders, listing and matching files, building the dataset dictionary."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import datasets

from hf_fst.data.labels import LabelMap
from hf_fst.errors import MissingError, UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # masks need a lossless format

Row = tuple[Path, Path | None]


def find_root(data_dir: str | Path | None, layout: str) -> Path:
    """Gives the folder of a dataset. Raises `ValueError` where none is named, `FileNotFoundError` where it is missing."""
    if data_dir is None:
        raise UserError(f"data_dir is missing; name the folder that holds {layout}.")
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise MissingError(f"There is no folder {root}; data_dir must hold {layout}.")
    return root.absolute()


def find_folder(root: Path, relative: str, layout: str) -> Path:
    """Gives a folder inside `root`. Raises `FileNotFoundError`, naming the expected layout, where it is missing."""
    folder = root / relative
    if not folder.is_dir():
        raise MissingError(f"There is no folder {folder}; {root} must hold {layout}.")
    return folder


def list_files(
    folder: Path, layout: str, ending: str = "", suffixes: tuple[str, ...] = SUFFIXES, nested: bool = False
) -> dict[str, Path]:
    """Lists files by id: the name (with `nested` the path under `folder`) without `ending` and suffix, sorted.

    Raises `FileNotFoundError` where there is none, `ValueError` where two files have the same id.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*") if nested else folder.iterdir()):
        if path.suffix.lower() not in suffixes or not path.stem.endswith(ending) or path.name.startswith("."):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix().removesuffix(ending)
        if name in found:
            raise UserError(f"{found[name]} and {path.name} have the same stem; keep one of them.")
        found[name] = path
    if not found:
        kinds = ", ".join(f"*{ending}{suffix}" for suffix in suffixes)
        raise MissingError(f"{folder} holds no files {kinds}; {layout} is expected.")
    return found


def match(images: dict[str, Path], masks: dict[str, Path], layout: str) -> list[Row]:
    """Pairs images and masks of the same id. Raises `ValueError`, naming the first, where one has no partner."""
    for ours, theirs, what, partner in ((images, masks, "images", "mask"), (masks, images, "masks", "image")):
        alone = [name for name in ours if name not in theirs]
        if alone:
            raise UserError(
                f"{len(alone)} of {len(ours)} {what} have no {partner}, the first is {ours[alone[0]]}; "
                f"{layout} is expected."
            )
    return [(path, masks[name]) for name, path in images.items()]


def pick(rows: dict[str, Row], ids: Iterable[str], source: str) -> list[Row]:
    """Picks rows by id, in the order of `ids`. Raises `ValueError`, naming the first that is missing and its list."""
    picked = []
    for name in ids:
        if name not in rows:
            raise UserError(f"{source} names {name!r}, but the dataset has no such image with its mask.")
        picked.append(rows[name])
    return picked


def build(
    splits: dict[str, list[Row]], label_map: LabelMap | None, streaming: bool = False
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Makes the dataset dictionary with lazy columns `image` and `label`; splits without masks have no `label`.

    Raises `ValueError` for a split without images.
    """
    made = {}
    for split, rows in splits.items():
        if not rows:
            raise UserError(f"The split {split!r} is empty; it needs at least one image.")
        features = datasets.Features(image=datasets.Image(mode="RGB"))
        columns = {"image": [str(image) for image, _ in rows]}
        if label_map is not None and rows[0][1] is not None:
            features["label"] = label_map
            columns["label"] = [str(mask) for _, mask in rows]
        dataset = datasets.Dataset.from_dict(columns, features=features, split=datasets.NamedSplit(split))
        made[split] = dataset.to_iterable_dataset() if streaming else dataset
    return (datasets.IterableDatasetDict if streaming else datasets.DatasetDict)(made)


def default_palette(count: int) -> list[list[int]]:
    """The color table of PASCAL VOC for `count` classes, 0..255: bit by bit, ids are spread over red, green and blue."""
    palette = []
    for index in range(count):
        color = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                color[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
        palette.append(color)
    return palette


def without(files: dict[str, Path], skip: Iterable[str]) -> dict[str, Path]:
    """Leaves out the ids in `skip`. Raises `ValueError`, naming it, for one that does not exist."""
    skip = {skip} if isinstance(skip, str) else set(skip)
    unknown = sorted(skip - set(files))
    if unknown:
        folder = next(iter(files.values())).parent
        raise UserError(f"{unknown[0]!r} is to be skipped, but {folder} has no such file; give names without suffix.")
    return {name: path for name, path in files.items() if name not in skip}
