"""`hf-fst predict`."""

from __future__ import annotations

import argparse
import sys

from hf_fst.commands.common import (
    add_batches,
    add_common,
    add_model,
    add_student,
    add_views,
    batches,
    is_first_process,
    views,
    which,
)


def add(commands) -> None:
    parser = commands.add_parser(
        "predict",
        help="predict the classes in images and videos",
        description="Predict the classes of every pixel of the images and videos in a folder and the folders in it.\n"
        "predictions/*.png hold class indices (palette images), overlays/*.jpg the classes laid over the image,\n"
        "videos/*.mp4 the same for videos. A run that was stopped goes on where it was.",
        epilog="examples:\n"
        "  hf-fst predict runs/street_da_fst_d images/ -o out/ --overlays\n"
        "  hf-fst predict runs/city images/ -o out/ --window 769 --stride 513 --batch_size 4 --workers 2\n"
        "  hf-fst predict runs/city drive.mp4 -o out/\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model(parser)
    add_student(parser)
    parser.add_argument("source", metavar="IMAGES", help="a folder, an image, or a video (needs hf_fst[video])")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--overlays", action="store_true", help="overlays with a legend as well")
    add_views(parser)
    add_batches(parser, "threads")
    parser.add_argument("--overwrite", action="store_true", help="start anew, also with another model or settings")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, overrides: dict[str, str]) -> dict:
    from hf_fst.prediction.predict import predict_files

    result = predict_files(
        arguments.model,
        arguments.source,
        arguments.output,
        overlays=arguments.overlays,
        overwrite=arguments.overwrite,
        which=which(arguments),
        **views(arguments),
        **batches(arguments),
    )
    if is_first_process():
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
    """Tells of each bad file, and how many there are, on stderr."""
    if failed:
        for entry in failed:
            reason = entry["reason"] if entry["file"] in entry["reason"] else f"{entry['file']}: {entry['reason']}"
            print(reason, file=sys.stderr)
        print(f"hf-fst: {len(failed)} of {count} files failed, see above; the others are done.", file=sys.stderr)
