"""Predictions for a folder: index PNGs, overlays with a legend, and videos."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm.auto import tqdm

from hf_fst.data.files import SUFFIXES
from hf_fst.drawing.overlays import labels_in, overlay, with_legend
from hf_fst.errors import DataError, refuse_below
from hf_fst.evaluation.inference import WHOLE, Look
from hf_fst.prediction.files import claimed, list_inputs, output_names, reason, stamp, write_whole
from hf_fst.prediction.segmenter import Picture, Segmenter, ahead, batches, one_by_one_if_it_fails
from hf_fst.prediction.video import VIDEO_SUFFIXES, check_video_support, predict_video, video_stamp

SETTINGS_FILE = "predict.json"
PREDICTIONS, OVERLAYS, VIDEOS = "predictions", "overlays", "videos"


@dataclass
class Work:
    """The work of one process, and its outcome."""

    images: list[tuple[Path, str]]
    videos: list[tuple[Path, str]]
    skipped: int
    counts: dict[str, int] = field(default_factory=lambda: {"images": 0, "videos": 0, "frames": 0})
    failed: list[dict[str, str]] = field(default_factory=list)


def predict_files(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    which: str = "teacher",
    overlays: bool = False,
    look: Look = WHOLE,
    batch_size: int = 1,
    num_workers: int = 0,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Predicts every image and video of a folder, the folders in it included.

    `predictions/<path>.png` holds class indices at the image's full size, as a palette image in the classes' colors (a
    gray one of 16 bits for more than 256 classes); `overlays/<path>.jpg` the colors over the image with a legend;
    `videos/<path>.mp4` the same for each frame. Results of unchanged files are kept, so an interrupted run continues;
    those of replaced files are made again. A file that cannot be read is reported and does not stop the others. On
    several processes each takes every n-th file.

    Args:
        model: directory or Hub id.
        source: a folder, an image or a video.
        output: the folder that is written to; `predict.json` in it holds the settings.
        which, look, trust_remote_code: see `Segmenter`.
        overlays: whether to write overlays of images too.
        batch_size: images that are predicted at once, those of one size together.
        num_workers: threads that read images ahead.
        overwrite: start over where `output` holds the results of other settings.

    Returns:
        counts, `failed` (a list of `{"file", "reason"}`), seconds and images per second, videos' frames counted.

    Raises:
        UserError: for options, models and folders that do not fit.
        RunError: where a file cannot be written, or a video needs an extra that is not installed.
    """
    refuse_below(1, batch_size=batch_size)
    refuse_below(0, num_workers=num_workers)
    source, output = Path(source), Path(output)
    owned = [PREDICTIONS, OVERLAYS, VIDEOS]
    files, others, unusable = list_inputs(source, SUFFIXES + VIDEO_SUFFIXES, skip=[output / name for name in owned])
    if any(file.suffix.lower() in VIDEO_SUFFIXES for file in files):
        check_video_support()
    named = list(zip(files, output_names(files, source if source.is_dir() else source.parent), strict=True))
    state = PartialState(cpu=not torch.accelerator.is_available())
    segmenter = Segmenter(model, which, look=look, device=state.device, trust_remote_code=trust_remote_code)
    with claimed(output, SETTINGS_FILE, segmenter.settings, owned, overwrite):
        work = _pending(named[state.process_index :: state.num_processes], output, overlays)
        work.failed += unusable if state.is_main_process else []
        started = time.perf_counter()
        total = len(work.images) + len(work.videos)
        with tqdm(
            total=total, desc="predicting", unit="image", disable=not (progress and state.is_main_process)
        ) as bar:
            _predict_images(segmenter, work, output, overlays, batch_size, num_workers, bar)
            for path, name in work.videos:
                try:
                    target = output / VIDEOS / f"{name}.mp4"
                    work.counts["frames"] += predict_video(segmenter, path, target, batch_size, bar, stamp([path]))
                    work.counts["videos"] += 1
                except DataError as error:
                    work.failed.append({"file": str(path), "reason": str(error)})
                bar.update()
        mine = {**work.counts, "skipped": work.skipped, "failed": work.failed}
        everyone = gather_object([mine]) if state.num_processes > 1 else [mine]
    seconds = time.perf_counter() - started
    counts = {key: sum(one[key] for one in everyone) for key in ("images", "videos", "frames", "skipped")}
    return {
        "model": segmenter.name,
        "which": which,
        "revision": segmenter.revision,
        "protocol": segmenter.protocol,
        "output": str(output),
        "files": len(files) + len(unusable),
        **counts,
        "ignored": others,
        "failed": sorted((entry for one in everyone for entry in one["failed"]), key=lambda entry: entry["file"]),
        "seconds": seconds,
        "images_per_second": (counts["images"] + counts["frames"]) / seconds,
        "processes": state.num_processes,
    }


def _pending(named: list[tuple[Path, str]], output: Path, overlays: bool) -> Work:
    """What is missing, or was made from an image that has been replaced since."""
    work = Work([], [], 0)
    for path, name in named:
        is_video = path.suffix.lower() in VIDEO_SUFFIXES
        results = [output / VIDEOS / f"{name}.mp4"] if is_video else [output / PREDICTIONS / f"{name}.png"]
        if overlays and not is_video:
            results.append(output / OVERLAYS / f"{name}.jpg")
        made = {made_of(result) if result.is_file() else None for result in results}
        if None not in made and made == {stamp([path])}:
            work.skipped += 1
        else:
            (work.videos if is_video else work.images).append((path, name))
    return work


def made_of(result: Path) -> str | None:
    """The `stamp` of the file that a result was made from; None if it has none or cannot be read."""
    if result.suffix == ".mp4":
        return video_stamp(result)
    try:
        with Image.open(result) as image:
            known = image.info.get("Source") or image.info.get("comment", b"").decode()
    except (OSError, SyntaxError, ValueError):
        return None
    return known or None


def _predict_images(
    segmenter: Segmenter, work: Work, output: Path, overlays: bool, batch_size: int, num_workers: int, bar: tqdm
) -> None:
    stamps: dict[Path, str] = {}  # the state of a file that a result is made from

    def read(task: tuple[Path, str]) -> tuple[Path, str, Picture | DataError]:
        try:
            stamps[task[0]] = stamp([task[0]])
            return *task, segmenter.read({"path": str(task[0]), "bytes": None})
        except DataError as error:  # passed on, so that the run continues
            return *task, error

    for batch in batches(ahead(read, work.images, num_workers), batch_size):
        results = one_by_one_if_it_fails(segmenter.classes, [picture for *_, picture in batch])
        for (path, name, picture), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                work.failed.append({"file": str(path), "reason": reason(result)})
                continue
            if overlays:
                write_overlay(output / OVERLAYS / f"{name}.jpg", picture.pixels, result, segmenter, stamps[path])
            image = index_image(result, segmenter.palette, stamps[path])
            write_whole(output / PREDICTIONS / f"{name}.png", image)
            work.counts["images"] += 1
        bar.update(len(batch))


def index_image(classes: np.ndarray, palette: np.ndarray | None, source: str | None = None):
    """A function that writes class indices (H, W) to an open file: a PNG with the palette (C, 3) and `source` in it."""
    image = Image.fromarray(classes)
    if classes.dtype == np.uint8 and palette is not None:
        colors = np.zeros((256, 3), dtype=np.uint8)  # ignored pixels are black
        colors[: len(palette)] = palette
        image = image.convert("P")
        image.putpalette(colors.tobytes())
    about = PngInfo()
    if source is not None:
        about.add_text("Source", source)
    return lambda file: image.save(file, format="PNG", pnginfo=about)


def write_overlay(path: Path, pixels: np.ndarray, classes: np.ndarray, segmenter: Segmenter, source: str) -> None:
    """Writes an image (H, W, 3) with its classes (H, W) laid over it, a legend of those that occur, and `source`."""
    mixed = overlay(pixels, classes, segmenter.palette)
    picture = with_legend(mixed, segmenter.names, segmenter.palette, labels_in(classes))
    write_whole(path, lambda file: Image.fromarray(picture).save(file, format="JPEG", quality=90, comment=source))
