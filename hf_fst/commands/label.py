"""`hf-fst label`."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from hf_fst.commands import common
from hf_fst.commands.common import BatchSize, Flip, Model, Resize, Scales, Stride, Student, Trust, Window, Workers
from hf_fst.commands.predict import report_failed

HUB = "A dataset on the Hub"


def label(
    model: Model,
    source: Annotated[
        str,
        Argument(metavar="IMAGES", help="A folder of images, of Parquet files or of WebDataset shards, or a Hub id."),
    ],
    output: common.Output,
    student: Student = False,
    confidence_threshold: Annotated[
        float,
        Option(
            "--confidence_threshold", metavar="P", help="Pixels less confident than this become 255, which is ignored."
        ),
    ] = 0.0,
    shard_size: Annotated[int, Option("--shard_size", min=1, max=10**9, metavar="N", help="Images in a shard.")] = 500,
    local_files: Annotated[
        bool, Option("--local_files", help="Allow table rows that name images on this machine by path.")
    ] = False,
    overwrite: common.Overwrite = False,
    resize: Resize = None,
    window: Window = None,
    stride: Stride = None,
    scales: Scales = "1",
    flip: Flip = False,
    batch_size: BatchSize = 1,
    workers: Workers = 0,
    trust_remote_code: Trust = False,
    split: Annotated[str, Option(metavar="NAME", help="Its split.", rich_help_panel=HUB)] = "train",
    image: Annotated[
        str | None,
        Option(metavar="COLUMN", help="The column with the images; default: the usual names.", rich_help_panel=HUB),
    ] = None,
    config: Annotated[str | None, Option(metavar="NAME", help="Its configuration.", rich_help_panel=HUB)] = None,
    revision: Annotated[
        str | None, Option(metavar="REV", help="Its branch, tag or commit.", rich_help_panel=HUB)
    ] = None,
) -> dict:
    """Pseudo-label a large collection of images.

    Writes Parquet shards with image, label, confidence and class shares, which datasets.load_dataset and `dataset: hub`
    in a recipe read. An interrupted run continues where it stopped; each image is labeled exactly once.

    Examples:
      hf-fst label runs/street_da unlabeled/ -o labeled/
      hf-fst label runs/city shards/ -o labeled/ --confidence_threshold 0.9 --batch_size 4 --workers 4
      accelerate launch --num_processes 4 -m hf_fst.cli label runs/city unlabeled/ -o labeled/   (on GPUs)
      torchrun --nproc_per_node 2 -m hf_fst.cli label runs/city unlabeled/ -o labeled/           (on CPUs)
    """
    from hf_fst.prediction.label import label_collection

    result = label_collection(
        model,
        source,
        output,
        confidence_threshold=confidence_threshold,
        shard_size=shard_size,
        split=split,
        image=image,
        config=config,
        dataset_revision=revision,
        local_files=local_files,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        which=common.which(student),
        batch_size=batch_size,
        num_workers=workers,
        look=common.look(model, resize, window, stride, scales, flip),
    )
    if common.is_first_process():
        print(
            f"images: {result['images']} in {result['shards']} shards in {result['output']}, {result['labeled_now']} of "
            f"them now; {result['images_per_second']:.3g} images/s; mean confidence {result['mean_confidence']:.3f}"
        )
        report_failed(result["failed"], result["images"] + len(result["failed"]))
    return result
