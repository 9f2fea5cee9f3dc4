"""`View`: model inputs from a `datasets.Dataset`."""

from __future__ import annotations

from collections.abc import Callable

import datasets
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from hf_fst.data.geometry import brought_together
from hf_fst.data.images import decode_pixels, file_of
from hf_fst.data.labels import IGNORED, LabelMap
from hf_fst.data.transforms import Padding
from hf_fst.errors import DataError, UserError


def check_columns(dataset: datasets.Dataset) -> None:
    """Checks that a dataset has the columns `image` and, if any, `label` as a `LabelMap`. Raises `UserError`."""
    if dataset.features is None or "image" not in dataset.features:
        found = ", ".join(dataset.column_names or []) or "none"
        raise UserError(f"The dataset has no column `image` (its columns: {found}); rename the one with the images.")
    image, label = dataset.features["image"], dataset.features.get("label")
    if not isinstance(image, datasets.Image):
        raise UserError(
            f"The column `image` is of type {type(image).__name__}, but images are expected; cast it with "
            "dataset.cast_column('image', datasets.Image())."
        )
    if label is not None and not isinstance(label, LabelMap):
        raise UserError(
            f"The column `label` is of type {type(label).__name__}, but masks are expected; cast it with "
            "dataset.cast_column('label', hf_fst.data.LabelMap(names=[...]))."
        )


def check_rows(dataset: datasets.Dataset, columns: list[str]) -> None:
    """Checks that every row of the stored columns has an image or a mask. Raises `UserError` with the first row."""
    for column in columns:
        if dataset.data.column(column).null_count == 0:
            continue
        empty = [i for i, value in enumerate(dataset.select_columns([column])[column]) if value is None]
        if empty:
            what = "image" if column == "image" else "mask"
            raise DataError(
                f"{len(empty)} of {len(dataset)} rows have no {what}, the first is row {empty[0]}; leave them out with "
                f"dataset.filter(lambda row: row['{column}'] is not None)"
                + (", and give those without a mask as unlabeled images." if column == "label" else ".")
            )


class View(Dataset):
    """Model inputs from a dataset with the columns `image` and perhaps `label`: one dict for each row.

    `pixel_values` is float32 (3,H,W), normalized by `transform`; `labels` is int64 (H,W) with train ids and 255 where
    ignored, given only if the dataset has labels and `with_labels` is true (otherwise masks are not read); `valid` is
    bool (H,W), False on padding, which has no label; given if the transform returns it.

    Args:
        dataset: a `datasets.Dataset`; kept as `.dataset`, and its columns that are read, not decoded, as `.stored`.
        transform: takes a `tv_tensors.Image` (3,H,W) uint8 and a `tv_tensors.Mask` (H,W) uint8 or None, and gives the
            pair (pixel_values, labels); see `hf_fst.data.transforms`. It uses only torch's global CPU
            generator. A torchvision v2 transform also gets a `Padding`; others may return `valid` (H,W) as a third value.
        with_labels: whether to return labels.

    Raises:
        UserError: the dataset is streamed, has wrong columns, rows without an image or a mask, or its own transform.
        DataError: for an item, an image or a mask cannot be read, or their sizes differ; names the file.
    """

    def __init__(self, dataset: datasets.Dataset, transform: Callable, with_labels: bool = True):
        if isinstance(dataset, datasets.IterableDataset):
            raise UserError("A streamed dataset cannot be drawn by index; load it with streaming=False.")
        if isinstance(dataset, dict):
            raise UserError(
                f"A View needs one split, but this dataset has {', '.join(dataset)}; give one, as dataset['train']."
            )
        if dataset.format["type"] == "custom":
            raise UserError(
                "The dataset has a transform of its own (set_transform or with_transform), which a View would bypass; "
                "use View(dataset.with_format(None), transform), with a transform of image and mask."
            )
        check_columns(dataset)
        self.dataset, self.transform = dataset, transform
        self.with_labels = with_labels and "label" in dataset.features
        self.label_map: LabelMap | None = dataset.features.get("label")
        # datasets would decode without naming the file in an error, so the stored form is read here.
        columns = ["image", "label"] if self.with_labels else ["image"]
        stored = dataset.with_format(None).select_columns(columns)
        for column in columns:
            stored = stored.cast_column(column, datasets.Image(decode=False))
        check_rows(stored, columns)
        self.stored = stored

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.finish(*self.read(index))

    def read(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask | None]:
        """Reads image (3,H,W) and mask (H,W) of a row, both uint8 and of full size. Raises `DataError`."""
        row = named_row(self.stored[int(index)], int(index))
        return decode_pair(row["image"], row.get("label"), self.label_map)

    def finish(self, image: tv_tensors.Image, mask: tv_tensors.Mask | None) -> dict[str, torch.Tensor]:
        """Makes model inputs from what `read` returned, with one draw of the transform."""
        if isinstance(self.transform, v2.Transform):
            inside = Padding(torch.full(image.shape[-2:], Padding.INSIDE, dtype=torch.uint8))
            pixel_values, labels, inside = self.transform(image, mask, inside)
            more = [inside.as_subclass(torch.Tensor) == Padding.INSIDE]
        else:
            pixel_values, labels, *more = self.transform(image, mask)
        item = {"pixel_values": pixel_values.as_subclass(torch.Tensor).contiguous()}
        if labels is not None:
            item["labels"] = labels.as_subclass(torch.Tensor).long()
        if more:
            item["valid"] = valid = torch.as_tensor(more[0]).bool()
            if labels is not None:  # torchvision's own transforms fill masks with 0, a class
                item["labels"] = item["labels"].masked_fill(~valid, IGNORED)
        return item


def named_row(row: dict[str, dict], index: int) -> dict[str, dict]:
    """A stored row with the origin of each value in `path`. Raises `DataError` for a value without content."""
    for column, value in row.items():
        if value["bytes"] is not None:  # then the path is a name alone
            value["path"] = f"row {index} ({value['path'] or column})"
        elif value["path"] is None:
            raise DataError(f"Row {index} has neither a path nor bytes in its column `{column}`; leave it out.")
    return row


def decode_pair(
    image: dict, mask: dict | None, label_map: LabelMap | None
) -> tuple[tv_tensors.Image, tv_tensors.Mask | None]:
    """Reads an image (3,H,W) and its mask (H,W), both uint8 and upright, from their stored forms. Raises `DataError`,
    naming the files, where one cannot be read or their sizes differ."""
    pixels, turned = decode_pixels(image)
    if mask is None:
        return tv_tensors.Image(pixels), None
    labels, stored_as = label_map.read(mask)
    names = (file_of(mask), file_of(image))
    labels = brought_together(labels, stored_as, pixels, turned, label_map.orientation, names)
    return tv_tensors.Image(pixels), tv_tensors.Mask(F.pil_to_tensor(labels)[0])
