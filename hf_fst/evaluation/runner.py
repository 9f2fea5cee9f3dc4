"""Evaluates one model on one dataset, on as many processes as there are."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Subset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F
from tqdm.auto import tqdm
from transformers import ImageProcessingMixin, PreTrainedModel

from hf_fst.data.images import MAX_SIDE
from hf_fst.data.labels import LabelMap, plain_names
from hf_fst.data.pairing import collate
from hf_fst.data.transforms import Normalization, PadTo, ResizeWithin
from hf_fst.data.views import View
from hf_fst.errors import UserError, in_a_line, printable, refuse_below, refuse_unwritable
from hf_fst.evaluation.boundary import BoundaryIoU
from hf_fst.evaluation.confusion import CLASS_LISTS, ConfusionMatrix, scores
from hf_fst.evaluation.inference import WHOLE, Look, fitting, predict
from hf_fst.evaluation.machine import hardware, versions
from hf_fst.evaluation.results import Pictures, write_scores
from hf_fst.models.loading import class_names, load

logger = logging.getLogger(__name__)


class Prepare:
    """Turns image and mask into model input: the image processor's scaling and normalization, and the resize of
    `look`.

    It never touches the mask, but for `crop`: the side of the middle part of both that alone is looked at, padded
    where smaller (0, 255).
    """

    def __init__(self, processor: Any, look: Look = WHOLE, crop: int | None = None):
        if isinstance(processor, ImageProcessingMixin):
            Normalization.said_by(processor)  # what is no normalization is refused before the first image
            if look.resize == "model":
                _try_size(processor)
        self.processor, self.own_size, self.crop = processor, look.resize == "model", crop
        self.resize = None if look.resize is None or self.own_size else ResizeWithin(look.resize)

    def __call__(self, image: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if mask is None:  # nothing to count, but the size of the prediction
            mask = tv_tensors.Mask(torch.full(image.shape[-2:], 255, dtype=torch.uint8))
        if self.resize is not None:
            image = self.resize(image)
        image = image.as_subclass(torch.Tensor)
        options = {"do_resize": self.own_size, "do_center_crop": False, "do_pad": False}
        if "do_split_image" in vars(self.processor):
            options["do_split_image"] = False  # windows are slid over it later
        image = self.processor(images=image, return_tensors="pt", **options)["pixel_values"][0]
        if self.crop is None:
            return image, mask
        both = PadTo(self.crop)(tv_tensors.Image(image), mask)
        return tuple(F.center_crop(part, [self.crop, self.crop]) for part in both)


def _try_size(processor: ImageProcessingMixin) -> None:
    """Refuses an image processor whose size is none. Raises `UserError`."""
    size = processor.to_dict().get("size")
    try:
        if max(filter(None, size.values())) > MAX_SIDE:
            raise ValueError(f"{MAX_SIDE} pixels is the most")
        processor(images=torch.zeros(3, 48, 64, dtype=torch.uint8), return_tensors="pt", do_resize=True)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"The {type(processor).__name__} cannot bring images to its size {size} ({in_a_line(error)}); correct its "
            "preprocessor_config.json, or choose another resize."
        ) from error


def as_dataset(dataset: Any, split: str, names: list[str]) -> tuple[datasets.Dataset, str, bool]:
    """Finds the split and the columns: (dataset, split's name, whether it has labels). Raises `UserError` for a
    missing split or column, a streamed dataset, or one without images."""
    if isinstance(dataset, dict):
        if split not in dataset:
            raise UserError(f"The dataset has no split {split!r} (it has {', '.join(dataset)}); choose another.")
        dataset = dataset[split]
    elif isinstance(dataset, datasets.Dataset) and dataset.split is not None:
        split = str(dataset.split)
    if not isinstance(dataset, datasets.Dataset):
        raise UserError(f"The dataset is a {type(dataset).__name__}; give a datasets.Dataset or DatasetDict.")
    for alias, column in (("pixel_values", "image"), ("annotation", "label")):
        if column not in dataset.column_names and alias in dataset.column_names:
            dataset = dataset.rename_column(alias, column)
    if not len(dataset):
        raise UserError(f"The split {split!r} has no images; choose another.")
    if type(dataset.features.get("label")) is datasets.Image:  # index masks without names: the model's
        dataset = dataset.cast_column("label", LabelMap(names=names))
    label_map = dataset.features.get("label")
    theirs = label_map.names or [] if isinstance(label_map, LabelMap) else []
    own = dict(zip(plain_names(names), names, strict=True))
    shared = {name: own[plain] for name, plain in zip(theirs, plain_names(theirs), strict=True) if plain in own}
    if len(shared) < len(theirs) and set(shared.values()) == set(names):
        more = ", ".join(name for name in theirs if name not in shared)
        logger.warning("The model does not have the classes %s, whose pixels are not counted.", printable(more))
        dataset = dataset.cast_column("label", label_map.onto(names, shared))
    return dataset, split, "label" in dataset.column_names


def check_classes(network: PreTrainedModel, label_map: LabelMap | None, name: str) -> list[str]:
    """The class names. Raises `UserError` where model and dataset differ in their number; warns where names differ."""
    names = class_names(network.config)
    if label_map is None or not label_map.names:
        return names
    theirs = list(label_map.names)
    if len(theirs) != len(names):
        raise UserError(
            f"The model {name} has {len(names)} classes and the dataset {len(theirs)}: evaluate it on a dataset "
            "with the classes it was trained on."
        )
    pairs = zip(plain_names(names), plain_names(theirs), strict=True)
    other = next((index for index, (ours, other) in enumerate(pairs) if ours != other), None)
    if other is not None and names != [f"LABEL_{index}" for index in range(len(names))]:
        logger.warning(
            "Class %d is %r for the model and %r in the dataset; they are scored as the same.",
            *(other, names[other], theirs[other]),
        )
    return theirs


def evaluate_model(
    model: str | Path | PreTrainedModel,
    dataset: datasets.DatasetDict | datasets.Dataset,
    *,
    split: str = "validation",
    which: str = "teacher",
    look: Look = WHOLE,
    crop: int | None = None,
    batch_size: int = 1,
    classes: Sequence[int] | str | None = None,
    ignore_index: int | None = 255,
    boundary: bool = False,
    output_dir: str | Path | None = None,
    save_predictions: bool | str = False,
    save_overlays: bool = False,
    num_workers: int = 0,
    processor: Any = None,
    dataset_id: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores a model's predictions at the labels' full size, and writes what was asked for.

    On several processes (`accelerate launch`, `torchrun`) each takes every n-th image, none twice, and all get the
    scores of all images. Memory does not grow with the number of images.

    Args:
        model: Hub id, directory, or a model (then give `processor` too).
        dataset: what `hf_fst.data.load` gives, or a `datasets.Dataset` with `image` and `label`; without labels the
            predictions can still be saved.
        split: which split of a DatasetDict.
        which: "teacher" or "student" of a training run.
        look: how the model looks at the images; the prediction always gets the size of the label.
        crop: side of the middle part of image and label that alone is evaluated; all of it by default.
        batch_size: images of one size that are predicted at once, in each process.
        classes: indices, or a name in `CLASS_LISTS`, of the classes that the means are taken over; all by default.
        ignore_index: a label that is not counted (255 never is).
        boundary: also compute boundary IoU.
        output_dir: gets `evaluation.json`, `.eval_results/*.yaml` and the files below.
        save_predictions: write index PNGs to `predictions/`; "cityscapes" for the ids of its test server.
        save_overlays: write the predictions laid over the images to `overlays/`.
        num_workers: worker processes that read images.
        processor: image processor; the model's own by default.
        dataset_id: how the `.eval_results` file names the dataset; by default the dataset's own name.
        trust_remote_code: see `hf_fst.models.loading.load_network`.

    Returns:
        The scores of `hf_fst.evaluation.scores` (and of boundary IoU), `confusion_matrix`, names, counts, the options,
        speed, versions and device; scores are None for a split without labels.

    Raises:
        UserError: for options, models, and data that do not fit, each with what to do.
    """
    refuse_below(1, batch_size=batch_size)
    if isinstance(classes, str):
        if classes not in CLASS_LISTS:
            raise UserError(f"There is no class list {classes!r}: choose one of {', '.join(CLASS_LISTS)}.")
        classes = CLASS_LISTS[classes]
    # without cpu=True, processes on CPUs do not find each other
    state = PartialState(cpu=not torch.accelerator.is_available())
    if output_dir is not None and state.is_main_process:
        refuse_unwritable(Path(output_dir))
    if isinstance(model, PreTrainedModel):
        network, name, processor = model, model.config.name_or_path or type(model).__name__, processor
    else:
        network, processor = load(model, which, processor, trust_remote_code=trust_remote_code)
        name = str(model)
    if processor is None:
        raise UserError("A model that is already loaded needs its image processor: give processor too.")
    dataset, split, labeled = as_dataset(dataset, split, class_names(network.config))
    label_map = dataset.features.get("label")
    names = check_classes(network, label_map, name)
    scored = list(range(len(names))) if classes is None else list(classes)
    scores(torch.zeros(len(names), len(names)), scored)  # refuses a wrong list before any work
    if not labeled and not (save_predictions or save_overlays):
        raise UserError(f"The split {split!r} has no labels, so there is nothing to score: save predictions instead.")
    palette = None if label_map is None else label_map.palette
    pictures = Pictures(output_dir, dataset, len(names), palette, save_predictions, save_overlays)
    matrix = ConfusionMatrix(len(names), ignore_index)
    rims = BoundaryIoU(len(names), ignore_index) if boundary else None

    network, look = network.to(state.device).eval(), fitting(network, look)
    views = View(dataset, Prepare(processor, look, crop))
    mine = range(state.process_index, len(views), state.num_processes)
    loader = DataLoader(Subset(views, mine), batch_size=batch_size, num_workers=num_workers, collate_fn=collate)
    started, done = time.perf_counter(), 0
    with tqdm(
        total=len(mine), desc=f"evaluating {split}", unit="image", disable=not (progress and state.is_main_process)
    ) as bar:
        for batch in loader:
            predictions = _predict(network, batch, look)
            matrix.update(predictions, batch["labels"])
            if rims is not None:
                rims.update(predictions, batch["labels"])
            for prediction in predictions:
                pictures.write(mine[done], prediction.cpu().numpy())
                done += 1
            bar.update(len(predictions))
    counts = matrix.reduce()
    if labeled and not counts.any():
        raise UserError(
            f"No pixel of the {len(views)} images of {split!r} has a class, so there is nothing to score; check their "
            "masks and the id map."
        )
    seconds = time.perf_counter() - started

    result = {"model": name, "which": which, "split": split, "images": len(views), "labeled": labeled}
    result |= scores(counts, scored)
    if rims is not None:
        result |= rims.compute(scored)
    if not labeled:
        result |= dict.fromkeys(("mean_iou", "mean_accuracy", "overall_accuracy", "frequency_weighted_iou"))
    result |= {"classes": names, "scored_classes": scored, "confusion_matrix": counts[:, : len(names)].tolist()}
    result["protocol"] = look.protocol + ("" if crop is None else f", the middle {crop} pixels")
    result["options"] = {**asdict(look), "crop": crop, "ignore_index": ignore_index}
    result |= {"seconds": seconds, "images_per_second": len(views) / seconds}
    result |= {"batch_size": batch_size, "processes": state.num_processes}
    result |= {"device": hardware(state.device), "versions": versions()}
    if output_dir is not None and state.is_main_process:
        own_name = dataset.info.dataset_name or dataset.info.builder_name or "dataset"
        write_scores(output_dir, result, dataset_id or own_name)
    state.wait_for_everyone()
    return result


def _predict(network: PreTrainedModel, batch: dict[str, Any], look: Look) -> list[torch.Tensor]:
    """Class indices (H, W) of each image at its label's size."""
    images, labels = batch["pixel_values"], batch["labels"]
    if isinstance(images, torch.Tensor) and isinstance(labels, torch.Tensor):
        groups = [(images, labels.shape[-2:])]
    else:
        groups = [(image[None], label.shape[-2:]) for image, label in zip(images, labels, strict=True)]
    return [
        prediction
        for pixels, size in groups
        for prediction in predict(network, pixels.to(network.device, network.dtype), size, look)
    ]
