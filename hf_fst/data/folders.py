"""`folder`: plain folders of images and index masks, or of unlabeled images."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np

from hf_fst.data import files
from hf_fst.data.labels import LabelMap, check_names, plain
from hf_fst.data.masks import check_palettes
from hf_fst.errors import Gathered, MissingError, UserError


def read_json(path: str | Path):
    """Reads a JSON file in UTF-8 or UTF-16. Raises `UserError` in one sentence."""

    def once(pairs: list[tuple]) -> dict:
        if len(dict(pairs)) < len(pairs):
            raise UserError(f"{path} has a key twice in {{{', '.join(key for key, _ in pairs)}}}; keep one of them.")
        return dict(pairs)

    try:
        return json.loads(files.read_text(path), object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from error


def read_id2label(given: str | Path | Sequence | dict, source: str = "id2label") -> list[str]:
    """The class names, by id.

    Args:
        given: `{"0": "road", "1": "car"}`, `["road", "car"]`, a JSON file of either, or a text file (`.txt`) with a name
            in each line, where a comment (#) and labelme's `__ignore__`, which has no id, are left out, as is
            what CVAT writes after a name (`road:128,64,128::`).
        source: what errors call names that do not come from a file.

    Raises:
        UserError: the file is missing, or this is not a name for each id from 0 on.
    """
    given = plain(given)
    if isinstance(given, list | dict):
        path = source
        content = {str(key): name for key, name in given.items()} if isinstance(given, dict) else given
        content = content if len(content) == len(given) else None  # 0 and "0"
    elif not isinstance(given, str | Path):
        path, content = f"{source} is {given!r}, but", None
    else:
        path = Path(given)
        if not path.is_file():
            raise MissingError(
                f'There is no file {path}; it must hold the class names, {{"0": "road", "1": "car"}} or ["road", "car"].'
            )
        if path.suffix.lower() == ".txt":
            lines = map(str.strip, files.read_text(path).splitlines())
            named = [line for line in lines if line and line != "__ignore__" and line[0] != "#"]
            content = [re.sub(r":\d+,\d+,\d+:[^:]*:[^:]*$", "", line) for line in named]
        elif path.suffix.lower() in (".csv", ".xml", ".yaml", ".yml"):
            raise UserError(f"{path} is neither JSON nor a .txt file; give the class names in either, or as a list.")
        else:
            content = read_json(path)
    if isinstance(content, dict) and set(content) == {str(i) for i in range(len(content))}:
        content = [content[str(i)] for i in range(len(content))]
    if not isinstance(content, list) or not content or not all(isinstance(name, str) for name in content):
        quotes = ""
        if isinstance(content, list) and any(isinstance(name, bool | int) for name in content):
            quotes = f"; it is {content}, so put names such as no, on and 1 in quotes"
        raise UserError(
            f'{path} must name the ids 0 to n-1, like {{"0": "road", "1": "car"}} or ["road", "car"]{quotes}.'
        )
    check_names(content, str(path))
    return content


def folder(
    data_dir: str | None,
    *,
    images: str = "images",
    masks: str | None = "masks",
    image_suffix: str | None = None,
    mask_suffix: str | None = None,
    nested: bool = True,
    id2label: str | list[str] | dict = "id2label.json",
    id_map: list[int] | dict | None = None,
    colors: list[list[int]] | str | None = None,
    mask_orientation: str | None = None,
    validation_share: float = 0.0,
    seed: int = 0,
    streaming: bool = False,
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Loads a folder of images and index masks with the same stems, or of images alone.

    `data_dir` holds `images/`, `masks/` and `id2label.json`, and everything becomes `train`; or there is one folder per
    split, `train/`, `val/` (`valid/`, `validation/`) and `test/`, above or inside these; `test` may lack masks. Unused
    files are named in a warning. Masks are lossless (PNG, BMP, TIFF), gray or with a palette whose *indices* are the ids;
    255 is ignored.

    Args:
        data_dir: the folder.
        images: the folder of images inside it; "." for `data_dir` itself.
        masks: the folder of masks inside it; None for unlabeled images, which need no `id2label`.
        image_suffix, mask_suffix: how names of images and masks end after the part that a pair shares, such as
            "_leftImg8bit.png" and "_gtFine_labelIds.png", or ".jpg" and "_mask.png"; None for any usual suffix.
        nested: whether to search subfolders of `images` and `masks`, which must be the same in both.
        id2label: a file with the class names, relative to `data_dir`; or the names, as a list or `{id: name}`.
        id_map: train id (or 255) of each raw id, a list or `{raw id: train id}`, as in `LabelMap`.
        colors: an `[r, g, b]` for each raw id, or a JSON file of them, for masks of colors.
        mask_orientation: see `LabelMap`; for masks of images that EXIF rotates.
        validation_share: share of the images, in [0, 1), that become `validation` where the folder has none.
        seed: of the choice of those.
        streaming: gives iterable datasets.

    Raises:
        MissingError: a folder or file is missing.
        UserError: a file has no partner, or a number is out of range.
    """
    alone = "at least one image" if images == "." else f"{images}/"
    parts = alone if masks is None else f"{images}/ and {masks}/ with files of the same stems"
    root = files.find_root(data_dir, parts)
    label_map, faults = None, Gathered()
    if masks is not None:
        with faults:
            names = read_id2label(root / id2label if isinstance(id2label, str | Path) else id2label)
            label_map = LabelMap(
                names=names,
                id_map=id_map,
                colors=read_json(root / colors) if isinstance(colors, str) else colors,
                orientation=mask_orientation,
            )
            if label_map.colors is not None:  # drawings use the colors of the masks
                raw = range(len(names)) if label_map.id_map is None else label_map.id_map
                first = dict(reversed([*zip(raw, label_map.colors, strict=False)]))
                if all(train in first for train in range(len(names))):
                    label_map.palette = [first[train] for train in range(len(names))]
    elif any(option is not None for option in (id_map, colors, mask_suffix, mask_orientation)):
        raise UserError("masks is None, so there are no labels; leave out the options about masks.")
    unused: dict[Path, str] = {}

    def rows(pictures: Path, labels: Path | None) -> list[files.Row]:
        skip = [] if labels in (None, pictures) else [labels]
        found = files.list_files(
            pictures, parts, *_ending(image_suffix, files.SUFFIXES), nested, skip, mask_suffix or "", unused
        )
        if labels is None:
            return [(path, None) for path in found.values()]
        skip = [] if labels == pictures else [pictures]
        masked = files.list_files(
            labels, parts, *_ending(mask_suffix, files.MASK_SUFFIXES), nested, skip, unused=unused
        )
        return [*files.match(found, masked, f"{parts} (unlabeled images have a folder of their own)").values()]

    splits: dict[str, list[files.Row]] = {}
    with faults:
        for split, places in _places(root, images, masks, parts, unused).items():
            with faults:
                splits[split] = rows(*places)
    faults.end()
    used = {
        root / (id2label if isinstance(id2label, str | Path) else "id2label.json"),
        root / "palette.json",
        *(path for found in splits.values() for row in found for path in row),
    }
    files.tell_unused({path: reason for path, reason in unused.items() if path not in used}, root)
    if masks is not None and colors is None:
        check_palettes([mask for found in splits.values() for _, mask in found if mask is not None])
    if not 0 <= validation_share < 1:
        raise UserError(f"validation_share is {validation_share}, but it must be at least 0 and less than 1.")
    if validation_share and "validation" not in splits:
        train = splits["train"]
        held = int(len(train) * validation_share)
        if held == 0:
            raise UserError(
                f"validation_share {validation_share} of {len(train)} images is less than one image; give a larger share."
            )
        chosen = set(np.random.default_rng(seed).permutation(len(train))[:held].tolist())
        splits["train"] = [row for i, row in enumerate(train) if i not in chosen]
        splits["validation"] = [train[i] for i in sorted(chosen)]
    return files.build(splits, label_map, streaming)


def _ending(suffix: str | None, usual: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The ending and the suffixes that `list_files` takes: of `_mask.png`, `_mask` and `.png`."""
    if suffix is None:
        return "", usual
    ending, dot, kind = suffix.rpartition(".")
    if not dot or f".{kind}".lower() not in usual:
        raise UserError(
            f"The suffix {suffix!r} does not end in one of {', '.join(usual)}; give one, like '_mask.png'."
        )
    return ending, (f".{kind}".lower(),)


def _split_folders(place: Path) -> dict[str, Path]:
    """The folders in `place` named after splits. Raises `UserError` if two stand for the same split."""
    found: dict[str, Path] = {}
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        split = files.split_of(path.name)
        if split is None or not path.is_dir():
            continue
        if split in found:
            raise UserError(f"{found[split]} and {path.name} are both {split}; keep one of them.")
        found[split] = path
    return {split: found[split] for split in files.SPLITS if split in found}


def _places(
    root: Path, images: str, masks: str | None, layout: str, unused: dict[Path, str]
) -> dict[str, tuple[Path, Path | None]]:
    """The folders of images and masks of each split; other folders go to `unused`. A test split may lack masks."""

    def labels(split: str, pictures: Path, place: Path, relative: str) -> Path | None:
        if masks is not None and split == "test" and not files.in_any_case(place, relative).is_dir():
            unused[pictures] = "its images have no masks, so they are not scored"
            return None
        return None if masks is None else files.find_folder(place, relative, layout)

    above, inside = _split_folders(root), _split_folders(files.in_any_case(root, images)) if images != "." else {}
    if "train" in above:
        rest = {path: "a folder that is not a split" for path in root.iterdir() if path.is_dir()}
        places = {
            split: (files.find_folder(place, images, layout), labels(split, place, place, masks or ""))
            for split, place in above.items()
        }
    elif "train" in inside:
        beside = [files.in_any_case(root, name) for name in (images, masks) if name is not None]
        rest = {path: "not in the folder of a split" for place in beside if place.is_dir() for path in place.iterdir()}
        rest |= dict.fromkeys(above.values(), f"the splits are in {images}/")
        places = {
            split: (place, labels(split, place, root, f"{masks}/{place.name}")) for split, place in inside.items()
        }
        above = inside
    else:
        rest = dict.fromkeys(above.values(), "a split, but there is no train/ beside it")
        places = {"train": (files.find_folder(root, images, layout), labels("train", root, root, masks or ""))}
        above = {}
    used = {*above.values(), *(place for both in places.values() for place in both)}
    unused |= {path: why for path, why in rest.items() if path not in used and path.name[0] != "."}
    return places
