"""`folder`: plain folders of images and index masks, or of unlabeled images."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np

from hf_fst.data.files import MASK_SUFFIXES, Row, build, default_palette, find_folder, find_root, list_files, match
from hf_fst.data.labels import IGNORED, LabelMap
from hf_fst.errors import MissingError, UserError

SPLITS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


def read_id2label(path: str | Path) -> list[str]:
    """Reads the class names, by id, from a JSON file: `{"0": "road", "1": "car"}` or `["road", "car"]`.

    Raises `FileNotFoundError` or `ValueError` in one sentence.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(
            f'There is no file {path}; it must hold the class names, {{"0": "road", "1": "car"}} or ["road", "car"].'
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from error
    if isinstance(content, dict) and set(content) == {str(i) for i in range(len(content))}:
        content = [content[str(i)] for i in range(len(content))]
    if not isinstance(content, list) or not content or not all(isinstance(name, str) for name in content):
        raise UserError(f'{path} must name the ids 0 to n-1, like {{"0": "road", "1": "car"}} or ["road", "car"].')
    if len(content) > IGNORED:
        raise UserError(f"{path} names {len(content)} classes, but {IGNORED} is the most ({IGNORED} means ignored).")
    return content


def folder(
    data_dir: str | None,
    *,
    images: str = "images",
    masks: str | None = "masks",
    id2label: str = "id2label.json",
    validation_share: float = 0.0,
    seed: int = 0,
    streaming: bool = False,
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Loads a folder of images and index masks with the same stems, or of images alone.

    `data_dir` holds `images/`, `masks/` and `id2label.json`, which all become `train`; or `train/`, `val/`
    (`validation/`) and `test/` with such folders each. A mask is lossless (PNG, BMP, TIFF), gray or with a palette
    whose *indices* are the ids; 255 is ignored.

    Args:
        data_dir: the folder.
        images: the folder of images inside it; "." for `data_dir` itself.
        masks: the folder of masks inside it; None for unlabeled images, which need no `id2label`.
        id2label: the file with the class names, inside `data_dir` or anywhere.
        validation_share: share of the images, in [0, 1), that become `validation` where the folder has none.
        seed: of the choice of those.
        streaming: gives iterable datasets.

    Raises `FileNotFoundError` for a missing part, `ValueError` for files without a partner and numbers out of range.
    """
    parts = f"{images}/" if masks is None else f"{images}/ and {masks}/ with files of the same stems"
    root = find_root(data_dir, parts)
    label_map = None
    if masks is not None:
        names = read_id2label(root / id2label)
        label_map = LabelMap(names=names, palette=default_palette(len(names)))

    def rows(place: Path) -> list[Row]:
        pictures = list_files(find_folder(place, images, parts), parts)
        if masks is None:
            return [(path, None) for path in pictures.values()]
        return match(pictures, list_files(find_folder(place, masks, parts), parts, suffixes=MASK_SUFFIXES), parts)

    if (root / "train").is_dir():
        places = {split: [root / name for name in names if (root / name).is_dir()] for split, names in SPLITS.items()}
        splits = {split: rows(place[0]) for split, place in places.items() if place}
    else:
        splits = {"train": rows(root)}
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
    return build(splits, label_map, streaming)
