"""`hf-fst label`."""

from __future__ import annotations

import argparse

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
    whole,
)
from hf_fst.commands.predict import report_failed


def add(commands) -> None:
    parser = commands.add_parser(
        "label",
        help="give pseudo-labels to a large collection of images",
        description="Give pseudo-labels to a large collection of images: Parquet shards with image, label, confidence\n"
        "and class shares, which datasets.load_dataset and `dataset: hub` in a recipe read. A run that was stopped\n"
        "goes on where it was; each image is labeled exactly once.",
        epilog="examples:\n"
        "  hf-fst label runs/street_da_fst_d unlabeled/ -o labeled/\n"
        "  hf-fst label runs/city shards/ -o labeled/ --confidence_threshold 0.9 --batch_size 4 --workers 4\n"
        "  accelerate launch --num_processes 4 -m hf_fst.cli label runs/city unlabeled/ -o labeled/   (on GPUs)\n"
        "  torchrun --nproc_per_node 2 -m hf_fst.cli label runs/city unlabeled/ -o labeled/           (on CPUs)\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model(parser)
    add_student(parser)
    parser.add_argument(
        "source", metavar="IMAGES", help="a folder of images, Parquet files or WebDataset shards, or a Hub id"
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--confidence_threshold",
        "--confidence-threshold",
        type=float,
        default=0.0,
        metavar="P",
        help="pixels whose class is less probable become 255, ignored (0)",
    )
    parser.add_argument(
        "--shard_size", "--shard-size", type=whole(1), default=500, metavar="N", help="images a shard (500)"
    )
    parser.add_argument("--split", default="train", help="split of a dataset on the Hub (train)")
    parser.add_argument("--image", metavar="COLUMN", help="the column with the images (the first that is usual)")
    parser.add_argument("--config", metavar="NAME", help="configuration of a dataset on the Hub")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a dataset on the Hub")
    add_views(parser)
    add_batches(parser, "threads")
    parser.add_argument("--overwrite", action="store_true", help="start anew, also with another model or settings")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, overrides: dict[str, str]) -> dict:
    from hf_fst.prediction.label import label_collection

    result = label_collection(
        arguments.model,
        arguments.source,
        arguments.output,
        confidence_threshold=arguments.confidence_threshold,
        shard_size=arguments.shard_size,
        split=arguments.split,
        image=arguments.image,
        config=arguments.config,
        dataset_revision=arguments.revision,
        overwrite=arguments.overwrite,
        which=which(arguments),
        **views(arguments),
        **batches(arguments),
    )
    if is_first_process():
        print(
            f"images: {result['images']} in {result['shards']} shards in {result['output']}, {result['labeled_now']} of "
            f"them now; {result['images_per_second']:.3g} images/s; mean confidence {result['mean_confidence']:.3f}"
        )
        report_failed(result["failed"], result["images"] + len(result["failed"]))
    return result
