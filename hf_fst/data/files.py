"""Shared by the loaders: walking folders, matching files, names of splits, building the dataset dictionary."""

from __future__ import annotations

import codecs
import os
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from hf_fst.data.labels import LabelMap
from hf_fst.errors import MissingError, UserError, printable

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # masks need a lossless format
# names of splits in folders and on the Hub, in lower or upper case
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}

NO_DATA = ("@eaDir", "__MACOSX")  # folders of thumbnails and attributes that a NAS or an archive brings

Row = tuple[Path, Path | None]
OTHER_KIND = "a file of another kind"  # the harmless reason why a file is not used; any other is an error


def split_of(name: str) -> str | None:
    """The split that a name means; None if it is not the name of a split."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


@dataclass
class Walk:
    """The files found in a folder, and in `unused` everything else with the reason."""

    files: list[Path] = field(default_factory=list)
    unused: dict[Path, str] = field(default_factory=dict)


def walk(root: Path, endings: Sequence[str] = SUFFIXES, skip: Iterable[Path] = (), nested: bool = True) -> Walk:
    """Finds files in a folder and its subfolders, sorted by path, without hidden ones.

    Each folder is visited once, however many links lead to it, under its own name if it is inside `root`; so loops of
    links end. Only regular files count.

    Args:
        root: the folder.
        endings: of wanted files, in lower case; "" takes all.
        skip: folders to leave out.
        nested: whether to search subfolders; if not, they are `unused`.
    """
    found = Walk()
    skipped = {folder.resolve() for folder in skip}
    seen: set[Path] = set()
    links = [root]
    while links:  # a folder's own name comes before the links to it
        waiting, links = links, []
        for start in waiting:
            for place, folders, names in os.walk(start, onerror=lambda error: found.unused.update(_unread(error))):
                here = Path(place).resolve()
                if here in seen or here in skipped:
                    folders.clear()
                    continue
                seen.add(here)
                folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in NO_DATA)
                inside = [Path(place, name) for name in folders]
                around = [path for path in inside if path.is_symlink() and here.is_relative_to(path.resolve())]
                found.unused |= dict.fromkeys(around, "a link to a folder that contains it")
                folders[:] = [path.name for path in inside if path not in around]
                links += [path for path in inside if path.is_symlink() and path not in around] if nested else []
                if not nested:
                    found.unused |= dict.fromkeys(inside, "a subfolder, but nested is false")
                    folders.clear()
                for name in sorted(name for name in names if not name.startswith(".")):
                    _sort_in(found, Path(place, name), endings, root)
    found.files.sort()
    return found


def _unread(error: OSError) -> dict[Path, str]:
    return {Path(error.filename): f"it cannot be read: {error.strerror}"}


def _sort_in(found: Walk, path: Path, endings: Sequence[str], root: Path) -> None:
    if not path.name.lower().endswith(tuple(endings)):
        found.unused[path] = OTHER_KIND
    elif not path.is_file():
        found.unused[path] = "a broken link" if path.is_symlink() else "not a regular file"
    else:
        try:
            path.relative_to(root).as_posix().encode()
        except UnicodeEncodeError:  # bytes that are not text cannot be stored in a table
            found.unused[path] = "its name is not valid text"
        else:
            found.files.append(path)


def tell_unused(unused: dict[Path, str], root: Path) -> None:
    """Warns about files in a dataset's folder that are not used, with the first few names for each reason."""
    reasons: dict[str, list[str]] = {}
    for path, reason in unused.items():
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        warnings.warn(printable(f"Not used in {root}: {shown} ({reason})."), stacklevel=3)


def read_text(path: str | Path) -> str:
    """Reads text in UTF-8 or UTF-16, with or without a byte order mark. Raises `UserError` for other encodings."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise MissingError(f"{path} cannot be read ({error.strerror}); give the path of a text file.") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in content[:4]:
        encoding = "utf-16-be" if content[0] == 0 else "utf-16-le"
    else:
        encoding = "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 or UTF-16 ({error.reason}); save it as UTF-8.") from error


def find_root(data_dir: str | Path | None, layout: str) -> Path:
    """The folder of a dataset. Raises `UserError` if none is given or it is missing."""
    if not data_dir:  # "" would be the current directory
        raise UserError(f"data_dir is missing; name the folder that holds {layout}.")
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        but = " (it is a file; unpack it if it is an archive)" if root.is_file() else ""
        raise MissingError(f"There is no folder {root}{but}; data_dir must hold {layout}.")
    return root.absolute()


def find_folder(root: Path, relative: str, layout: str) -> Path:
    """A folder inside `root` (`in_any_case`). Raises `MissingError`, with the expected layout, if there is none."""
    folder = in_any_case(root, relative)
    if not folder.is_dir():
        raise MissingError(f"There is no folder {folder}; {root} must hold {layout}.")
    return folder


def in_any_case(root: Path, relative: str) -> Path:
    """A folder in `root`; a part of its path matches in any case if no folder has exactly that name."""
    folder = root
    for part in Path(relative).parts:
        alike = []
        if folder.is_dir() and not (folder / part).is_dir():
            alike = [path for path in folder.iterdir() if path.name.lower() == part.lower() and path.is_dir()]
        folder = alike[0] if len(alike) == 1 else folder / part
    return folder


def list_files(
    folder: Path,
    layout: str,
    ending: str = "",
    suffixes: Sequence[str] = SUFFIXES,
    nested: bool = True,
    skip: Iterable[Path] = (),
    but: str = "",
    unused: dict[Path, str] | None = None,
) -> dict[str, Path]:
    """Lists files by id, sorted. An id is the path under `folder` without `ending` and suffix, in Unicode form NFC.

    Args:
        folder: where to look.
        layout: what is expected there, for errors.
        ending: of the names, before the suffix.
        suffixes, nested, skip: as for `walk`.
        but: leaves out names with this ending, such as masks stored beside their images.
        unused: if given, collects what is not used.

    Raises:
        MissingError: there are no such files.
        UserError: two files have the same id.
    """
    endings = [f"{ending.lower()}{suffix}" for suffix in suffixes]
    walked = walk(folder, endings, skip, nested)
    if unused is not None:
        unused |= walked.unused
    found: dict[str, Path] = {}
    for path in walked.files:
        if but and path.name.lower().endswith(but.lower()):
            continue
        name = path.relative_to(folder).as_posix()
        cut = max(len(end) for end in endings if name.lower().endswith(end))
        name = unicodedata.normalize("NFC", name[: len(name) - cut])
        if name in found:
            raise UserError(f"{found[name]} and {path.name} have the same name without suffix; keep one of them.")
        found[name] = path
    if not found:
        kinds = ", ".join(f"*{ending}{suffix}" for suffix in suffixes)
        others = sorted({path.suffix for path in walked.unused if path.suffix})
        there = f" (it holds {', '.join('*' + suffix for suffix in others[:5])})" if others else ""
        raise MissingError(f"{folder} holds no files {kinds}{there}; {layout} is expected.")
    return found


def match(images: dict[str, Path], masks: dict[str, Path], layout: str) -> dict[str, Row]:
    """Pairs images and masks of the same id. Raises `UserError`, naming the first of both, where one has no partner."""
    faults = []
    for ours, theirs, what, partner in ((images, masks, "images", "mask"), (masks, images, "masks", "image")):
        if alone := [name for name in ours if name not in theirs]:
            faults.append(f"{len(alone)} of {len(ours)} {what} have no {partner}, the first is {ours[alone[0]]}")
    if faults:
        raise UserError(f"{', and '.join(faults)}; give each a partner, or remove it: {layout}.")
    return {name: (path, masks[name]) for name, path in images.items()}


def paired(
    root: Path, images: str, masks: str, layout: str, suffixes: Sequence[str] = (".png",), skip: Iterable[str] = ()
) -> dict[str, Row]:
    """The images and masks of two folders by id, without those to `skip`. Raises as `list_files` and `match`."""
    pictures = list_files(find_folder(root, images, layout), layout)
    labels = list_files(find_folder(root, masks, layout), layout, suffixes=suffixes)
    return match(without(pictures, skip), without(labels, skip), layout)


def pick(rows: dict[str, Row], ids: Iterable[str], source: str) -> list[Row]:
    """Picks rows by id, in the order of `ids`. Raises `UserError`, naming the first that is missing and its list."""
    picked = []
    for name in ids:
        if name not in rows:
            raise UserError(f"{source} names {name!r}, but the dataset has no such image with its mask.")
        picked.append(rows[name])
    return picked


def build(
    splits: Mapping[str, Iterable[Row]], label_map: LabelMap | None, streaming: bool = False
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Makes the dataset dictionary with lazy columns `image` and `label`; splits without masks have no `label`. Raises
    `UserError` for a split without images."""
    made = {}
    for split, rows in splits.items():
        rows = list(rows)
        if not rows:
            raise UserError(f"The split {split!r} is empty; it needs at least one image.")
        features = datasets.Features(image=datasets.Image())
        columns = {"image": [str(image) for image, _ in rows]}
        if label_map is not None and rows[0][1] is not None:
            features["label"] = label_map
            columns["label"] = [str(mask) for _, mask in rows]
        dataset = datasets.Dataset.from_dict(columns, features=features, split=datasets.NamedSplit(split))
        made[split] = dataset.to_iterable_dataset() if streaming else dataset
    return (datasets.IterableDatasetDict if streaming else datasets.DatasetDict)(made)


def without(files: dict[str, Path], skip: Iterable[str]) -> dict[str, Path]:
    """Leaves out the ids in `skip`. Raises `UserError`, naming it, for one that does not exist."""
    skip = {skip} if isinstance(skip, str) else set(skip)
    unknown = sorted(skip - set(files))
    if unknown:
        folder = next(iter(files.values())).parent
        raise UserError(f"{unknown[0]!r} is in skip, but {folder} has no such file; give names without suffix.")
    return {name: path for name, path in files.items() if name not in skip}
