"""`hf-fst eval`."""

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
    numbers,
    options,
    views,
    which,
)


def add(commands) -> None:
    parser = commands.add_parser(
        "eval",
        help="score a model on a dataset",
        description="Score a model on a dataset at the labels' full size. Prints the scores and writes them to\n"
        "evaluation.json and .eval_results/.",
        epilog="examples:\n"
        "  hf-fst eval runs/street_da_fst_d street --options look=real --split test\n"
        "  hf-fst eval runs/city cityscapes --data_dir cityscapes --window 769 --stride 513 --scales 0.75,1 --flip\n"
        "  hf-fst eval nvidia/segformer-b0-finetuned-cityscapes-1024-1024 cityscapes --data_dir cityscapes --json\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model(parser)
    add_student(parser)
    parser.add_argument(
        "dataset", metavar="DATASET", help="street, camvid, cityscapes, gta5, synthia, voc, folder, hub"
    )
    parser.add_argument("--data_dir", "--data-dir", metavar="DIR", help="the dataset's folder (for hub: its id)")
    parser.add_argument("--options", metavar="KEY=VALUE", nargs="+", default=[], help="options of the dataset")
    parser.add_argument("--split", default="validation", help="which split (validation)")
    add_views(parser)
    add_batches(parser)
    parser.add_argument("--classes", metavar="LIST", help="means over cityscapes_19, synthia_16, synthia_13 or 0,1,5")
    parser.add_argument("--boundary", action="store_true", help="boundary IoU as well")
    parser.add_argument(
        *("-o", "--output_dir", "--output-dir"),
        metavar="DIR",
        help="where the files go; an earlier evaluation there is overwritten; default: a directory in runs/eval/ named "
        "after model, dataset, split, network and settings, so that only the same evaluation overwrites it",
    )
    parser.add_argument("--save_predictions", "--save-predictions", action="store_true", help="index PNGs too")
    parser.add_argument("--cityscapes_ids", "--cityscapes-ids", action="store_true", help="with its test server's ids")
    parser.add_argument("--save_overlays", "--save-overlays", action="store_true", help="overlays too")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, overrides: dict[str, str]) -> dict:
    from hf_fst.data import load
    from hf_fst.evaluation.results import default_folder, table, without_nan
    from hf_fst.evaluation.runner import evaluate_model

    classes = arguments.classes
    if classes is not None and classes[0].isdecimal():
        classes = numbers(classes, "classes", int)
    looked, of_data = views(arguments), options(arguments.options)
    output_dir = arguments.output_dir
    if output_dir is None:
        place = (arguments.model, arguments.dataset, arguments.split, which(arguments), arguments.data_dir)
        output_dir = default_folder(*place, options=of_data, classes=classes, **looked)
    result = evaluate_model(
        arguments.model,
        load(arguments.dataset, arguments.data_dir, **of_data),
        split=arguments.split,
        which=which(arguments),
        classes=classes,
        boundary=arguments.boundary,
        output_dir=output_dir,
        save_predictions="cityscapes" if arguments.cityscapes_ids else arguments.save_predictions,
        save_overlays=arguments.save_overlays,
        dataset_id=arguments.data_dir if arguments.dataset == "hub" else arguments.dataset,
        **looked,
        **batches(arguments),
    )
    if is_first_process():
        print(table(result))
        print(f"Written to {output_dir}.")
    return {**without_nan(result), "output_dir": str(output_dir)}
