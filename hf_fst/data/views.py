"""`View`: model inputs from a `datasets.Dataset`."""

from __future__ import annotations

from collections.abc import Callable

import datasets
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from hf_fst.data.labels import LabelMap, file_of, open_image
from hf_fst.errors import DataError, UserError


def check_columns(dataset: datasets.Dataset) -> None:
    """Checks that a dataset has the columns `image` and, if any, `label` as a `LabelMap`. Raises `ValueError`."""
    if dataset.features is None or "image" not in dataset.features:
        found = ", ".join(dataset.column_names or []) or "none"
        raise UserError(f"The dataset has no column `image` (its columns: {found}); rename the one with the images.")
    label = dataset.features.get("label")
    if label is not None and not isinstance(label, LabelMap):
        raise UserError(
            f"The column `label` is a {type(label).__name__}, but masks are expected; cast it with "
            "dataset.cast_column('label', hf_fst.data.labels.LabelMap(names=[...]))."
        )


class View(Dataset):
    """Model inputs from a dataset with the columns `image` and perhaps `label`: one dict for each row.

    `pixel_values` is float32 (3,H,W), normalized by `transform`; `labels` is int64 (H,W) with train ids and 255 where
    ignored, given only if the dataset has labels and `with_labels` is true (otherwise masks are not even read).

    Args:
        dataset: a `datasets.Dataset`; kept as `.dataset`.
        transform: takes a `tv_tensors.Image` (3,H,W) uint8 and a `tv_tensors.Mask` (H,W) uint8 or None, and gives the
            pair (pixel_values, labels); see `hf_fst.data.transforms`. It draws from torch's global generator of the
            CPU only.
        with_labels: whether to give labels.

    Raises `ValueError` for a streamed dataset or wrong columns; an item raises `DataError`, naming the file, where an
    image or a mask cannot be read or their sizes differ.
    """

    def __init__(self, dataset: datasets.Dataset, transform: Callable, with_labels: bool = True):
        if isinstance(dataset, datasets.IterableDataset):
            raise UserError("A streamed dataset cannot be drawn by index; load it with streaming=False.")
        check_columns(dataset)
        self.dataset, self.transform = dataset, transform
        self.with_labels = with_labels and "label" in dataset.features
        self.label_map: LabelMap | None = dataset.features.get("label")
        # The stored form is read here, not by datasets, so that every error can name its file.
        stored = dataset.select_columns(["image", "label"] if self.with_labels else ["image"])
        stored = stored.cast_column("image", datasets.Image(decode=False))
        self._stored = stored.cast_column("label", datasets.Image(decode=False)) if self.with_labels else stored

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.finish(*self.read(index))

    def read(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask | None]:
        """Reads image (3,H,W) and mask (H,W) of a row, both uint8 and of full size. Raises `DataError`."""
        row = self._stored[int(index)]
        return decode_pair(row["image"], row["label"] if self.with_labels else None, self.label_map)

    def finish(self, image: tv_tensors.Image, mask: tv_tensors.Mask | None) -> dict[str, torch.Tensor]:
        """Makes model inputs from what `read` gave, with one draw of the transform."""
        pixel_values, labels = self.transform(image, mask)
        item = {"pixel_values": pixel_values.as_subclass(torch.Tensor).contiguous()}
        if labels is not None:
            item["labels"] = labels.as_subclass(torch.Tensor).long()
        return item


def decode_pair(
    image: dict, mask: dict | None, label_map: LabelMap | None
) -> tuple[tv_tensors.Image, tv_tensors.Mask | None]:
    """Reads an image (3,H,W) and its mask (H,W), both uint8, from their stored forms.

    Raises `DataError`, naming the files, where one cannot be read or their sizes differ.
    """
    picture = open_image(image).convert("RGB")
    pixels = tv_tensors.Image(F.pil_to_tensor(picture))
    if mask is None:
        return pixels, None
    labels = label_map.decode_example(mask)
    if labels.size != picture.size:
        raise DataError(
            f"The mask {file_of(mask)} is {labels.width} x {labels.height} pixels, but its image {file_of(image)} is "
            f"{picture.width} x {picture.height}; they must have the same size."
        )
    return pixels, tv_tensors.Mask(F.pil_to_tensor(labels)[0])
