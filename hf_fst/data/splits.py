"""Chooses the labeled images of a dataset: split lists from files, or a seeded choice."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Container, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from hf_fst.data.files import SUFFIXES, Row, build, pick, read_text
from hf_fst.data.labels import LabelMap
from hf_fst.data.sampling import class_pixels
from hf_fst.errors import MissingError, UserError

FOLDER = Path(__file__).parent / "splits"


def read_list(path: str | Path) -> list[str]:
    """Reads a split list: one id or relative path per line, or, as published, the paths of an image and its mask.

    Empty lines and masks are skipped. Files are UTF-8 or UTF-16; names become Unicode form NFC.

    Raises:
        MissingError: there is no such file.
        UserError: the list is empty, or has an absolute path, `..` or a repeated line.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"There is no split list {path}; it must hold one id or path per line.")
    text = unicodedata.normalize("NFC", read_text(path))
    lines = [_first_column(line.strip()) for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"The split list {path} is empty; it must hold one id or path per line.")
    seen = set()
    for line in lines:
        parts = PurePosixPath(line.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or (parts.parts and parts.parts[0].endswith(":")):
            raise UserError(
                f"The split list {path} names {line!r}; paths must be relative to the dataset and must not contain `..`."
            )
        if line in seen:
            raise UserError(f"The split list {path} names {line!r} twice; keep one of them.")
        seen.add(line)
    return lines


def _first_column(line: str) -> str:
    """The image of a line "image mask"; the whole line if its blank is part of a name."""
    first, _, second = line.partition("\t")
    if not second:
        first, *others = line.split()
        second = others[0] if len(others) == 1 else ""
    first, second = first.strip(), second.strip()
    suffixes = {PurePosixPath(name).suffix.lower() for name in (first, second)}
    both_are_files = suffixes <= {*SUFFIXES} and (len(suffixes) > 1 or "/" in first)
    return first if second and ("\t" in line or first == second or both_are_files) else line


def find_id(line: str, ids: Container[str]) -> str:
    """The id that ends a line's path, with or without its suffix; the line itself if there is none."""
    parts = PurePosixPath(line.replace("\\", "/")).parts
    for start in range(len(parts)):
        path = PurePosixPath(*parts[start:])
        for name in (str(path), str(path.with_suffix(""))):
            if name in ids:
                return name
    return line


def nested_order(ids: Sequence[str], presence: np.ndarray, seed: int, smallest: int) -> list[str]:
    """Orders ids so that each prefix is a split: seeded, nested, and with every class from `smallest` ids on.

    The order is a seeded permutation in which one image of each class not yet seen, rarest class first, is moved to
    the front. `presence` (N,C) says whether an image has a class (bool, or counts of pixels). Warns if `smallest`
    images cannot cover all classes.
    """
    presence = np.asarray(presence) > 0
    permutation = np.random.default_rng([seed, len(ids)]).permutation(len(ids))
    front: list[int] = []
    covered = np.zeros(presence.shape[1], dtype=bool)
    for category in np.argsort(presence.sum(0), kind="stable"):
        if not covered[category] and presence[:, category].any():
            first = int(permutation[np.argmax(presence[permutation, category])])
            front.append(first)
            covered |= presence[first]
    if len(front) > smallest:
        warnings.warn(
            f"{smallest} labeled images cannot hold every class, {len(front)} are needed; some classes have no label.",
            stacklevel=2,
        )
    chosen = set(front)
    return [ids[i] for i in [*front, *(int(i) for i in permutation if int(i) not in chosen)]]


def semi_supervised(
    rows: dict[str, Row],
    count: int,
    folder: str | Path | None,
    seed: int,
    label_map: LabelMap,
    on_bad_image: str = "stop",
    to_id: Callable[[str], str] | None = None,
    pool: Sequence[str] | None = None,
) -> tuple[list[Row], list[Row]]:
    """Splits rows into (labeled, unlabeled) by lists in a folder, or by a seed.

    Args:
        rows: all rows by id.
        count: number of labeled images.
        folder: holds `<count>/labeled.txt` and `<count>/unlabeled.txt` (or the two themselves); None makes a nested,
            class-covering split instead.
        seed: of the split that is made.
        label_map: of the masks, which are read only to make a split.
        on_bad_image: "stop" or "skip", where the mask of an image that may be chosen cannot be read.
        to_id: turns a line of a list into an id; None for `find_id`.
        pool: ids from which labeled images are chosen; None for all. The others are unlabeled.

    Raises:
        UserError: a list or a number is wrong.
    """
    if folder is not None:
        folder = Path(folder).expanduser()
        place = folder if (folder / "labeled.txt").is_file() else folder / str(count)
        to_id = to_id or (lambda line: find_id(line, rows))
        labeled, unlabeled = ([to_id(line) for line in lines] for lines in read_pair(place))
        if len(labeled) != count:
            raise UserError(f"{place} lists {len(labeled)} labeled images, but {count} are asked for; correct either.")
        return pick(rows, labeled, str(place / "labeled.txt")), pick(rows, unlabeled, str(place / "unlabeled.txt"))
    pool = list(rows if pool is None else pool)
    most = len(pool) if len(pool) < len(rows) else len(pool) - 1
    if not 1 <= count <= most:
        raise UserError(f"{count} labeled images are asked for, but 1 to {most} can be chosen here.")
    if count < len(pool):
        chosen = pick(rows, pool, "The list of images to choose from")
        presence = class_pixels(build({"train": chosen}, label_map)["train"], on_bad_image=on_bad_image)
        pool = nested_order(pool, presence, seed, count)[:count]
    labeled = set(pool)
    return (
        [row for name, row in rows.items() if name in labeled],
        [row for name, row in rows.items() if name not in labeled],
    )


def read_pair(folder: str | Path) -> tuple[list[str], list[str]]:
    """Reads `labeled.txt` and `unlabeled.txt` of a split folder. Raises as `read_list`, and where they overlap."""
    labeled, unlabeled = (read_list(Path(folder) / f"{name}.txt") for name in ("labeled", "unlabeled"))
    both = set(labeled) & set(unlabeled)
    if both:
        raise UserError(f"{folder} names {min(both)!r} as labeled and as unlabeled; keep it in one of the two lists.")
    return labeled, unlabeled
