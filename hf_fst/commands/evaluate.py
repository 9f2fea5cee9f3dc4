"""`hf-fst eval`."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_fst.commands.common import add_common, is_first_process, numbers, options


def add(commands) -> None:
    parser = commands.add_parser(
        "eval",
        help="score a model on a dataset",
        description="Score a model on a dataset at the labels' full size.",
        epilog="examples:\n"
        "  hf-fst eval runs/street_da_fst_d street --options look=real --split test\n"
        "  hf-fst eval runs/city cityscapes --data_dir cityscapes --window 769 --stride 513 --scales 0.75,1 --flip\n"
        "  hf-fst eval nvidia/segformer-b0-finetuned-cityscapes-1024-1024 cityscapes --data_dir cityscapes --json\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="the directory of a run, any saved model, or a Hub id")
    parser.add_argument(
        "dataset", metavar="DATASET", help="street, camvid, cityscapes, gta5, synthia, voc, folder, hub"
    )
    parser.add_argument("--data_dir", "--data-dir", metavar="DIR", help="the dataset's folder (for hub: its id)")
    parser.add_argument("--options", metavar="KEY=VALUE", nargs="+", default=[], help="options of the dataset")
    parser.add_argument("--split", default="validation", help="which split (validation)")
    parser.add_argument("--student", action="store_true", help="the student of a run, not its teacher")
    parser.add_argument(
        "--resize",
        metavar="W,H",
        help="resize images into this, keeping the ratio; `model`: as its image processor; `none`: full size; "
        "default: as the run was evaluated in training, full size for others",
    )
    parser.add_argument("--window", type=int, metavar="PIXELS", help="side of windows that slide over the image")
    parser.add_argument("--stride", type=int, metavar="PIXELS", help="from window to window (two thirds of it)")
    parser.add_argument("--scales", default="1", metavar="S,...", help="scales to average over, such as 0.75,1,1.25")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument("--classes", metavar="LIST", help="means over cityscapes_19, synthia_16, synthia_13 or 0,1,5")
    parser.add_argument("--boundary", action="store_true", help="boundary IoU as well")
    parser.add_argument("--batch_size", "--batch-size", type=int, default=1, metavar="N", help="images at once (1)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (0)")
    parser.add_argument(
        "-o", "--output_dir", "--output-dir", metavar="DIR", help="write evaluation.json and files here"
    )
    parser.add_argument("--save_predictions", "--save-predictions", action="store_true", help="index PNGs too")
    parser.add_argument("--cityscapes_ids", "--cityscapes-ids", action="store_true", help="with its test server's ids")
    parser.add_argument("--save_overlays", "--save-overlays", action="store_true", help="overlays too")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, overrides: dict[str, str]) -> dict:
    from hf_fst.data import load
    from hf_fst.evaluation.results import table, without_nan
    from hf_fst.evaluation.runner import evaluate_model

    classes = arguments.classes
    if classes is not None and classes[0].isdecimal():
        classes = numbers(classes, "classes", int)
    result = evaluate_model(
        arguments.model,
        load(arguments.dataset, arguments.data_dir, **options(arguments.options)),
        split=arguments.split,
        which="student" if arguments.student else "teacher",
        window=arguments.window,
        stride=arguments.stride,
        scales=numbers(arguments.scales, "scales", float),
        flip=arguments.flip,
        batch_size=arguments.batch_size,
        classes=classes,
        boundary=arguments.boundary,
        output_dir=arguments.output_dir,
        save_predictions="cityscapes" if arguments.cityscapes_ids else arguments.save_predictions,
        save_overlays=arguments.save_overlays,
        num_workers=arguments.workers,
        resize=_resize(arguments.resize, arguments.model),
        dataset_id=arguments.data_dir if arguments.dataset == "hub" else arguments.dataset,
    )
    if is_first_process():
        print(table(result))
    return without_nan(result)


def _resize(given: str | None, model: str) -> list[int] | str | None:
    """What `--resize` says, or what the recipe beside the model does."""
    if given is not None:
        return None if given == "none" else "model" if given == "model" else numbers(given, "resize", int, 2)
    recipe = Path(model, "recipe.yaml")
    if not recipe.is_file():
        return None
    import yaml

    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    return next((values[key] for key in ("eval_resize", "unlabeled_resize", "resize") if key in values), None)
