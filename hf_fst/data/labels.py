"""`LabelMap`, the dataset feature of an index mask: class names, palette and ids travel with the data."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
from datasets.features.features import register_feature

from hf_fst.data.images import file_of
from hf_fst.data.masks import decode_mask, png
from hf_fst.errors import DataError, UserError

IGNORED = 255
ORIENTATIONS = (None, "upright", "stored")
# In the `info` of a decoded mask, and in the tRNS chunk of its PNG: ignored pixels are transparent. Pillow keeps it
# through resize, crop, copy and the like, so that train ids are not taken for raw ids.
MARK = {"transparency": IGNORED}
STORED_AS = "mask.png"  # name of a mask that was given as pixels


def check_names(names: Sequence[str], source: str) -> None:
    """Checks that class names are unique, also after blanks become underscores as in logs. Raises `UserError`."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{source} has the class names {names!r}; give a list of names, in the order of the train ids."
        )
    if len(names) > IGNORED:
        raise UserError(f"{source} names {len(names)} classes, but {IGNORED} is the most ({IGNORED} means ignored).")
    spelled: dict[str, str] = {}
    for name in names:
        plain = unicodedata.normalize("NFC", "_".join(name.split()))
        if not plain or plain in spelled:
            twice = f"names classes {spelled[plain]!r} and {name!r}, which are one name in logs" if plain else ""
            raise UserError(f"{source} {twice or 'has an empty class name'}; every class needs a name of its own.")
        spelled[plain] = name


def plain_names(names: Sequence[str]) -> list[str]:
    """Class names as they are compared: case, blanks and underscores do not matter."""
    return ["".join(str(name).casefold().replace("_", " ").split()) for name in names]


def id_list(id_map: Sequence[int] | dict | None) -> list[int] | None:
    """An id map as a list by raw id, from a list or a dict `{raw id: train id}`; raw ids that it leaves out are
    unknown. Raises `UserError` for ids that are no whole numbers from 0 to 255."""
    if id_map is None:
        return None
    try:
        pairs = {
            _whole(raw): None if train is None else _whole(train)
            for raw, train in (id_map.items() if isinstance(id_map, dict) else enumerate(id_map))
        }
    except (TypeError, ValueError):
        pairs = {-1: None}
    wrong = [n for n in (*pairs, *(train for train in pairs.values() if train is not None)) if not 0 <= n <= IGNORED]
    if wrong or not pairs:
        raise UserError(
            f"id_map is {id_map!r}; give the train id (or {IGNORED}) of each raw id, as a list or as "
            f"{{raw id: train id}}, all of 0 to {IGNORED}."
        )
    return [pairs.get(raw) for raw in range(max(pairs) + 1)]


def _whole(number: Any) -> int:
    """A whole number, also as text or as 1.0. `int()` alone would turn 0.5 into 0 and True into 1."""
    return int(f"{number}".removesuffix(".0"))


def filled(labels: Any) -> Any:
    """`labels` with 255 where a masked array, as of rasterio, has no value; anything else as it is."""
    if not isinstance(labels, np.ma.MaskedArray):
        return labels
    return np.where(np.ma.getmaskarray(labels), np.int64(IGNORED), labels.data)


def plain(value: Any) -> Any:
    """Tuples, numpy arrays and what is in them as plain lists and numbers, which are stored with a dataset."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def are_colors(colors: Any) -> bool:
    """Whether these are an [r, g, b] of 0 to 255 or more of them, in a list."""
    try:
        values = np.asarray(colors)
    except ValueError:  # lists of different lengths
        return False
    whole = values.ndim == 2 and values.shape[1] == 3 and values.dtype.kind in "iu"
    return whole and values.min() >= 0 and values.max() <= 255


@dataclass
class LabelMap(datasets.Image):
    """A column of index masks: decodes to a PIL image of mode "L" that holds train ids, 255 where ignored.

    A file may be gray (1 to 16 bits), binary, a palette image whose *indices* are the ids, or gray stored as RGB.
    Files of colors are accepted only with `colors` or `first_channel`. A file or bytes hold raw ids; an array or a PIL
    image that `Dataset.map` gives back holds train ids, as decoding gave them, and is stored with the raw ids of these.

    Args:
        names: class names, by train id.
        palette: an `[r, g, b]` for each train id, 0..255, for drawing.
        id_map: the train id (or 255) of each raw id, by raw id; None where raw ids are train ids. Raw 255 is ignored
            unless the map has 256 entries.
        colors: an `[r, g, b]` for each *raw* id; with it RGB(A) files are read by color, and palette images whose palette
            has these colors in another order.
        first_channel: the raw id is the first channel of an RGB file of 8 or 16 bits (SYNTHIA).
        orientation: of masks of images that EXIF rotates: "upright" as the image is shown, "stored" as its pixels are
            stored, None to go by the sizes, or by the edges where the sizes agree.

    Decoding raises `DataError`, naming the file, for an unreadable file, a kind of file not listed here, or an id or
    color that is not known.
    """

    names: list[str] | None = None
    palette: list[list[int]] | None = None
    id_map: list[int] | None = None
    colors: list[list[int]] | None = None
    first_channel: bool = False
    orientation: str | None = None
    _type: str = field(default="LabelMap", init=False, repr=False)

    def __post_init__(self):
        self.names, self.palette, self.colors = plain(self.names), plain(self.palette), plain(self.colors)
        self.id_map = id_list(self.id_map)
        if self.orientation not in ORIENTATIONS:
            raise UserError(f"orientation is {self.orientation!r}; give 'upright', 'stored' or None.")
        for name, value, of in (("colors", self.colors, "raw id"), ("palette", self.palette, "class")):
            if value is not None and not are_colors(value):
                raise UserError(
                    f"{name} is {value!r}; give an [r, g, b] of 0 to 255 for each {of}, as [[0, 0, 0], [255, 0, 0]]."
                )
        if self.names is None:
            return
        check_names(self.names, "The dataset")
        if self.palette is not None and len(self.palette) < len(self.names):
            raise UserError(
                f"palette has {len(self.palette)} colors for {len(self.names)} classes; give one for each."
            )
        beyond = [train for train in self.id_map or () if train not in (None, IGNORED) and train >= len(self.names)]
        if beyond:
            raise UserError(
                f"id_map has the train id {beyond[0]}, but the {len(self.names)} class names have 0 to "
                f"{len(self.names) - 1}; correct either."
            )

    def onto(self, names: Sequence[str], classes: dict[str, str]) -> LabelMap:
        """The same masks with the classes `names`, each in the color of the first old class that becomes it.

        Args:
            names: the new class names, by train id.
            classes: the new name of each own class; one that it leaves out is ignored. Each of `names` is in it.
        """
        to_new = [names.index(classes[name]) if name in classes else IGNORED for name in self.names]
        raw = range(len(self.names)) if self.id_map is None else self.id_map
        id_map = [train if train in (None, IGNORED) else to_new[train] for train in raw]
        palette = self.palette and [self.palette[to_new.index(new)] for new in range(len(names))]
        return replace(self, names=list(names), palette=palette, id_map=id_map)

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        """Decodes a stored mask to train ids, PIL mode "L" (H,W). Raises `DataError` (see the class)."""
        if not self.decode:
            raise RuntimeError("Decoding is switched off for this column; cast it to LabelMap(decode=True) first.")
        if not isinstance(value, dict):  # the features of datasets decode twice in places, so decoding is idempotent
            return value if isinstance(value, PIL.Image.Image) else self._picture(self._checked(np.asarray(value)))
        return self.read(value, token_per_repo_id)[0]

    def read(self, value: dict, token_per_repo_id: dict | None = None) -> tuple[PIL.Image.Image, int]:
        """Decodes as `decode_example`; also gives the EXIF orientation (1 to 8) in which the mask is stored."""
        ids, orientation = decode_mask(value, self.colors, self.first_channel, token_per_repo_id)
        return self._picture(self.train_ids(ids, value)), orientation

    def _picture(self, labels: PIL.Image.Image | np.ndarray) -> PIL.Image.Image:
        image = PIL.Image.fromarray(labels) if isinstance(labels, np.ndarray) else labels
        if not self._is_plain:
            image.info.update(MARK)
        return image

    def known(self) -> list[int | None]:
        """The train id of each raw id from 0 to 255, None where it is unknown."""
        train_ids = self.id_map if self.id_map is not None else range(len(self.names) if self.names else IGNORED)
        return [*train_ids, *[None] * (IGNORED - len(train_ids)), IGNORED][: IGNORED + 1]

    def train_ids(self, ids: np.ndarray, value: dict) -> PIL.Image.Image:
        """Raw ids (H,W) of the mask `value` as train ids, mode "L". Raises `DataError` for unknown ones."""
        known = self.known()
        unknown = np.unique(ids[(ids < 0) | (ids > IGNORED)]).tolist() if ids.dtype != np.uint8 else []
        image = PIL.Image.fromarray(ids.astype(np.uint8, copy=False))
        if not unknown:
            unknown = [raw for raw, n in enumerate(image.histogram()) if n and known[raw] is None]
        if unknown:
            shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            most = (len(self.id_map) if self.id_map is not None else len(self.names or range(IGNORED))) - 1
            accepted = "those of id_map" if None in (self.id_map or ()) else f"0 to {most}"
            raise DataError(
                f"{file_of(value)} has label ids out of range ({shown}): {accepted} and {IGNORED} (ignored) are "
                "accepted; correct the mask or the class names, or give an id_map, the train id or 255 of each raw id."
            )
        if self.id_map is None:
            return image
        return image.point([IGNORED if train_id is None else train_id for train_id in known])

    # What follows is the way back. `datasets` turns PIL images into bytes before it asks the feature, in `encode_example`
    # (from_dict, from_list, generators) or in `cast_storage` alone (map).

    @property
    def _is_plain(self) -> bool:
        return self.id_map is None and not self.first_channel

    def encode_example(self, value: Any) -> dict:
        """The stored form: of a file or its bytes as they are, of train ids (H,W) with their raw ids. Raises
        `DataError` for train ids out of range or without a raw id, and for bytes that could hold raw ids or train
        ids."""
        if isinstance(value, list | np.ndarray):
            return self._store(self._checked(np.asarray(filled(value))))
        stored = super().encode_example(value)
        # `datasets` makes {path, bytes}, in this order, of a PIL image
        may_be_pixels = isinstance(value, PIL.Image.Image) or (isinstance(value, dict) and next(iter(value)) == "path")
        if self._is_plain or not may_be_pixels or stored["bytes"] is None or stored["path"] is not None:
            return {"bytes": stored["bytes"], "path": stored["path"]}  # in the order of what is stored
        return self._store_bytes(stored["bytes"])

    def _store_bytes(self, content: bytes) -> dict:
        """The stored form of bytes that come without a path: an image that was decoded before, or what a file held."""
        value = {"bytes": content, "path": None}
        readings = []
        if PIL.Image.open(BytesIO(content)).info.get("transparency") != IGNORED:
            readings.append(lambda: (self.read(value)[0], {"bytes": content, "path": STORED_AS}))
        readings.append(lambda: self._labels_and_store(value))
        done, failed = [], None
        for reading in readings:
            try:
                done.append(reading())
            except DataError as error:
                failed = failed or error
        if not done:
            raise failed
        if len(done) == 2 and np.any(np.asarray(done[0][0]) != np.asarray(done[1][0])):
            raise DataError(
                "A mask given without a path may hold the ids of a file or train ids, which differ by its id map; give "
                "train ids as an array (H,W), and the ids of a file as its path or as {'path': name, 'bytes': content}."
            )
        return done[0][1]

    def _labels_and_store(self, value: dict) -> tuple[np.ndarray, dict]:
        labels = self._checked(decode_mask(value)[0])
        return labels, self._store(labels)

    def _checked(self, labels: np.ndarray) -> np.ndarray:
        """Train ids as uint8 (H,W), from whole numbers (H,W) or (1,H,W) of any type; -100 is ignored too."""
        labels = labels[0] if labels.ndim == 3 and labels.shape[0] == 1 else labels
        count = len(self.names) if self.names else IGNORED
        whole = labels.ndim == 2 and labels.dtype.kind in "buif" and bool((labels == np.rint(labels)).all())
        ids = np.where(labels == -100, IGNORED, labels) if whole else labels
        if not whole or not ((ids >= 0) & ((ids < count) | (ids == IGNORED))).all():
            found = (
                f"{labels.min()} to {labels.max()}" if labels.size and labels.dtype.kind in "buif" else labels.dtype
            )
            raise DataError(
                f"A mask given as pixels of shape {labels.shape} holds {found}, but train ids (H,W) from 0 to "
                f"{count - 1}, and {IGNORED}, are expected."
            )
        return np.ascontiguousarray(ids.astype(np.uint8))

    def _store(self, labels: np.ndarray) -> dict:
        """The stored form of train ids, with a raw id for each."""
        raw = labels
        if self.id_map is not None:
            back = {train: raw for raw, train in reversed(list(enumerate(self.known()))) if train is not None}
            table = np.zeros(IGNORED + 1, dtype=np.uint8)
            for train in np.unique(labels).tolist():
                if train not in back:
                    raise DataError(
                        f"A mask holds train id {train}, which no raw id of the column's id map stands for; give the "
                        "column another feature, as in dataset.map(..., features=...), with LabelMap(names=...) alone."
                    )
                table[train] = back[train]
            raw = table[labels]
        if self.first_channel:
            raw = np.stack([raw, np.zeros_like(raw), np.zeros_like(raw)], axis=-1)
        return {"bytes": png(raw), "path": STORED_AS}

    def cast_storage(self, storage: pa.Array) -> pa.StructArray:
        """Casts an Arrow array to the stored form. Pixels that `Dataset.map` gives back are train ids."""
        if self.decode and pa.types.is_list(storage.type):
            rows = [None if row is None else self._store(self._checked(np.array(row))) for row in storage.to_pylist()]
            return pa.array(rows, type=self.pa_type)
        # `datasets` writes a PIL image as {path, bytes}, in this order; what is stored already has the other.
        if self.decode and pa.types.is_struct(storage.type) and storage.type[0].name == "path" and not self._is_plain:
            rows = storage.to_pylist()
            pixels = [row is not None and row["path"] is None and row["bytes"] is not None for row in rows]
            if any(pixels):
                rows = [
                    self._labels_and_store(row)[1] if is_new else row for row, is_new in zip(rows, pixels, strict=True)
                ]
                return pa.array(rows, type=self.pa_type)
        return super().cast_storage(storage)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # datasets calls registering a feature experimental, at every import
    register_feature(LabelMap, "LabelMap")
