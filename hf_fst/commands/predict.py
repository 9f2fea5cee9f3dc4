"""`hf-fst predict`."""

from __future__ import annotations

import sys
from typing import Annotated

from typer import Argument, Option

from hf_fst.commands import common
from hf_fst.commands.common import BatchSize, Flip, Model, Resize, Scales, Stride, Student, Trust, Window, Workers
from hf_fst.errors import printable


def predict(
    model: Model,
    source: Annotated[str, Argument(metavar="IMAGES", help="A folder, an image, or a video (needs hf_fst[video]).")],
    output: common.Output,
    student: Student = False,
    overlays: Annotated[bool, Option("--overlays", help="Also write overlays with a legend.")] = False,
    overwrite: common.Overwrite = False,
    resize: Resize = None,
    window: Window = None,
    stride: Stride = None,
    scales: Scales = "1",
    flip: Flip = False,
    batch_size: BatchSize = 1,
    workers: Workers = 0,
    trust_remote_code: Trust = False,
) -> dict:
    """Predict the classes in images and videos.

    Takes every image and video in a folder and its subfolders. predictions/*.png hold class indices (palette images),
    overlays/*.jpg the classes laid over the image, videos/*.mp4 the same for videos. An interrupted run continues
    where it stopped.

    Examples:
      hf-fst predict runs/street_da images/ -o out/ --overlays
      hf-fst predict runs/city images/ -o out/ --window 769 --stride 513 --batch_size 4 --workers 2
      hf-fst predict runs/city drive.mp4 -o out/
    """
    from hf_fst.prediction.predict import predict_files

    result = predict_files(
        model,
        source,
        output,
        overlays=overlays,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        which=common.which(student),
        batch_size=batch_size,
        num_workers=workers,
        look=common.look(model, resize, window, stride, scales, flip),
    )
    if common.is_first_process():
        print(summary(result))
        report_failed(result["failed"], result["files"])
    return result


def summary(result: dict) -> str:
    """What was done, in a line."""
    parts = [f"images: {result['images']} predicted"]
    if result["skipped"]:
        parts.append(f"{result['skipped']} done before")
    if result["videos"]:
        parts.append(f"videos: {result['videos']} with {result['frames']} frames")
    if result["ignored"]:
        parts.append(f"other files left alone: {result['ignored']}")
    return f"{', '.join(parts)}; {result['images_per_second']:.3g} images/s; results in {result['output']}"


def report_failed(failed: list[dict[str, str]], count: int) -> None:
    """Names each bad file in a line, and how many there are, on stderr."""
    if failed:
        for entry in failed:
            reason = entry["reason"] if entry["file"] in entry["reason"] else f"{entry['file']}: {entry['reason']}"
            print(printable(reason), file=sys.stderr)
        print(f"hf-fst: {len(failed)} of {count} files failed, see above; the others are done.", file=sys.stderr)
