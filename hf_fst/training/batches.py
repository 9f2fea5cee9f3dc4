"""A look at the first batch of a training, before a step is made of it."""

from __future__ import annotations

import torch
from transformers.utils import logging

from hf_fst.data.labels import IGNORED
from hf_fst.data.pairing import check_ids
from hf_fst.errors import UserError
from hf_fst.evaluation.inference import fixed_size

logger = logging.get_logger(__name__)

LARGEST = 30  # normalized pixels stay far below it, those of 0 to 255 do not


def look_at_first(batch: dict, config) -> None:
    """Looks at one micro-batch as nobody can look at all.

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
                f"The {key} of a batch have {pixels.shape[-2]}x{pixels.shape[-1]} pixels, but the network takes images "
                f"of {size[0]}x{size[1]} alone; make that the crop (crop_size in a recipe)."
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
        logger.warning("No pixel of the first labels has a class, all are ignored; are the ids right?")
    elif ids == [0, IGNORED] and config.num_labels == 2:
        logger.warning(
            "The first labels are 0 and 255, which is ignored, so that the second class has no pixel; masks of 0 and 255 "
            "need LabelMap(id_map={0: 0, 255: 1})."
        )
