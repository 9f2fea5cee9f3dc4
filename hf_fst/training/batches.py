"""Checks the labeled images and the first batch of a training before the first step."""

from __future__ import annotations

import torch
from torch import nn
from transformers.utils import logging

from hf_fst.data.agreement import views_of
from hf_fst.data.labels import IGNORED
from hf_fst.data.pairing import check_ids
from hf_fst.errors import UserError
from hf_fst.evaluation.inference import explain_size, fixed_size, unit

logger = logging.get_logger(__name__)

LARGEST = 30  # normalized pixels stay far below this, raw ones do not


def refuse_without_labels(train_dataset) -> None:
    """Refuses labeled images whose views give no labels.

    Raises:
        UserError: with the columns that there are, and what to do.
    """
    for view in views_of(train_dataset):
        if view.label_map is None:
            found = ", ".join(view.dataset.column_names)
            raise UserError(
                f"train_dataset has no column `label` (its columns: {found}); rename the one with the masks, as "
                "dataset.rename_column('mask', 'label'), and cast it with "
                "dataset.cast_column('label', hf_fst.data.LabelMap(names=[...]))."
            )
        if not view.with_labels:
            raise UserError("train_dataset is a View with with_labels=False, but labels are learned; leave that out.")


def look_at_first(batch: dict, config) -> None:
    """Checks one micro-batch.

    Args:
        batch: tensors, on any device.
        config: of the network.

    Raises:
        UserError: another number of channels or another size than the network takes, or class ids that it does not have,
            which would end in an assertion of a GPU.
    """
    channels = vars(config).get("num_channels")
    for key in ("pixel_values", "unlabeled_pixel_values"):
        pixels = batch.get(key)
        if pixels is None:
            continue
        if channels is not None and pixels.shape[1] != channels:
            raise UserError(
                f"The {key} of a batch have the shape {tuple(pixels.shape)}, but the network takes {channels} channels; "
                f"give (images, {channels}, height, width)."
            )
        size = fixed_size(config)
        if size is not None and tuple(pixels.shape[-2:]) != size:
            raise UserError(
                f"The {key} of a batch have {pixels.shape[-2]}x{pixels.shape[-1]} pixels, but the network only takes "
                f"images of {size[0]}x{size[1]}; use that as the crop (crop_size in a recipe)."
            )
        height, width = pixels.shape[-2:]
        if height % unit(config) or width % unit(config):
            fits = "x".join(str(-(-side // unit(config)) * unit(config)) for side in (height, width))
            raise UserError(
                f"The {key} of a batch have {height}x{width} pixels, but the network only takes sides that are "
                f"multiples of {unit(config)}; use a crop of {fits}, for example (crop_size in a recipe)."
            )
        if pixels.abs().max() > LARGEST:
            logger.warning(
                f"The {key} reach {pixels.abs().max():.0f}: are they normalized, with the mean and deviation of the "
                "image processor? hf_fst.data.transforms does so."
            )
    for key in ("labels", "unlabeled_labels"):
        if key in batch:
            check_ids(batch[key], config.num_labels, f"The {key} of a batch")
    ids = torch.unique(batch["labels"]).tolist()
    if not set(ids) - {IGNORED, -100}:
        logger.warning("No pixel of the first labels has a class: all are ignored; check the ids.")
    elif ids == [0, IGNORED]:
        logger.warning(
            "The first labels are 0 and 255, which is ignored, so only the first class has pixels; masks of 0 "
            "and 255 need LabelMap(id_map={0: 0, 255: 1})."
        )


def explain_crop(network: nn.Module, pixels: torch.Tensor, error: Exception) -> None:
    """Explains a failed step, see `explain_size`."""
    explain_size(network, pixels, error, "use that as the crop (crop_size in a recipe)")
