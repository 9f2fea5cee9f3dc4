"""`hf-fst eval`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from hf_fst.commands import common
from hf_fst.commands.common import BatchSize, Flip, Model, Resize, Scales, Stride, Student, Trust, Window, Workers

FILES = "Files"


def evaluate(
    model: Model,
    dataset: Annotated[
        str | None,
        Argument(
            metavar="[DATASET]",
            help="street, camvid, cityscapes, gta5, synthia, voc, folder, or hub. Default: the validation and test "
            "images of the run, seen as in its training.",
        ),
    ] = None,
    student: Student = False,
    data_dir: Annotated[
        str | None, Option("--data_dir", metavar="DIR", help="The dataset's folder (for hub: its id).")
    ] = None,
    options: Annotated[
        list[str] | None, Option(metavar="KEY=VALUE", help="Options of the dataset; one or more.")
    ] = None,
    split: Annotated[
        str | None,
        Option(
            metavar="NAME", help="Which split. Default: validation, or without DATASET what the run was evaluated on."
        ),
    ] = None,
    allow_overlap: Annotated[
        bool, Option("--allow_overlap", help="Also score images that the run was trained on.")
    ] = False,
    classes: Annotated[
        str | None,
        Option(metavar="LIST", help="Means over cityscapes_19, synthia_16, synthia_13, or class ids such as 0,1,5."),
    ] = None,
    boundary: Annotated[bool, Option("--boundary", help="Also compute boundary IoU.")] = False,
    resize: Resize = None,
    window: Window = None,
    stride: Stride = None,
    scales: Scales = "1",
    flip: Flip = False,
    batch_size: BatchSize = 1,
    workers: Workers = 0,
    trust_remote_code: Trust = False,
    output_dir: Annotated[
        str | None,
        Option(
            "--output_dir",
            "-o",
            metavar="DIR",
            help="Where the files go; an earlier evaluation there is overwritten. Default: a directory in runs/eval/ "
            "named after model, dataset, split, network and settings, so that only the same evaluation overwrites it.",
            rich_help_panel=FILES,
        ),
    ] = None,
    save_predictions: Annotated[
        bool, Option("--save_predictions", help="Also write class indices as PNG files.", rich_help_panel=FILES)
    ] = False,
    cityscapes_ids: Annotated[
        bool,
        Option("--cityscapes_ids", help="The same with the ids of Cityscapes' test server.", rich_help_panel=FILES),
    ] = False,
    save_overlays: Annotated[
        bool, Option("--save_overlays", help="Also write overlays.", rich_help_panel=FILES)
    ] = False,
) -> dict:
    """Score a model on a dataset.

    The labels keep their full size. Scores are printed and written to evaluation.json and .eval_results/. Images that a
    run was trained on are refused.

    Examples:
      hf-fst eval runs/street_da
      hf-fst eval runs/street_da street --options look=real --split test
      hf-fst eval runs/city cityscapes --data_dir cityscapes --window 769 --stride 513 --scales 0.75,1 --flip
      hf-fst eval nvidia/segformer-b0-finetuned-cityscapes-1024-1024 cityscapes --data_dir cityscapes --json
    """
    from hf_fst.drawing.tables import columns_of_terminal
    from hf_fst.evaluation.results import default_folder, table, without_nan
    from hf_fst.evaluation.runner import evaluate_model
    from hf_fst.recipes.evaluation import scored_images

    scored = common.numbers(classes, "classes", int) if classes and classes[0].isdecimal() else classes
    look = common.look(model, resize, window, stride, scales, flip)
    data = scored_images(model, dataset, data_dir, common.options(options or []), split, allow_overlap)
    if look.window is None:
        look = replace(look, window=data.window, stride=data.stride)
    if data.crop is not None and resize is None:
        look = replace(look, resize=None)
    scored = data.classes if scored is None else scored
    network, results = common.which(student), {}
    for name in data.names:
        folder = output_dir
        if folder is None:
            place = (model, data.dataset, name, network, data.data_dir)
            folder = default_folder(*place, options=data.options, look=look, classes=scored, crop=data.crop)
        elif len(data.names) > 1:
            folder = Path(folder, name)
        result = evaluate_model(
            model,
            data.splits,
            split=name,
            which=network,
            classes=scored,
            boundary=boundary,
            output_dir=folder,
            save_predictions="cityscapes" if cityscapes_ids else save_predictions,
            save_overlays=save_overlays,
            dataset_id=data.data_dir if data.dataset == "hub" else data.dataset,
            batch_size=batch_size,
            num_workers=workers,
            look=look,
            crop=data.crop,
            trust_remote_code=trust_remote_code,
        )
        if common.is_first_process():
            scores = table(result, columns_of_terminal())
            print(f"{name}:\n{scores}" if dataset is None else scores)
            print(f"Written to {folder}.")
        results[name] = {**without_nan(result), "output_dir": str(folder)}
    return results if dataset is None else results[name]
