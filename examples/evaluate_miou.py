"""Evaluates a segmentation model on a dataset: per-class IoU, mIoU, accuracies, images per second.

    python examples/evaluate_miou.py runs/demo --dataset street
    python examples/evaluate_miou.py runs/city --dataset cityscapes --data_dir CITYSCAPES --window 769 --stride 513 --flip
    accelerate launch examples/evaluate_miou.py runs/city --dataset cityscapes --data_dir CITYSCAPES --batch_size 4

In a script of your own the same numbers come from the metric, which takes what the usual `mean_iou` takes:

    mean_iou = evaluate.load(hf_fst.evaluation.MEAN_IOU)
    mean_iou.add_batch(predictions=predictions, references=labels)
    mean_iou.compute(num_labels=19, ignore_index=255)
"""

import argparse

from accelerate import PartialState

import hf_fst.data
from hf_fst.evaluation.results import default_folder, table
from hf_fst.evaluation.runner import evaluate_model


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hub id, or directory of a model or a training run")
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(sorted(hf_fst.data.DATASETS))}")
    parser.add_argument("--data_dir", help="where the dataset's files lie")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--which", default="teacher", choices=["teacher", "student"])
    parser.add_argument("--window", type=int, nargs="+", help="side, or height and width, of sliding windows")
    parser.add_argument("--stride", type=int, nargs="+", help="pixels between windows; 2/3 of the window by default")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="factors to look at each image in")
    parser.add_argument("--flip", action="store_true", help="look at the mirrored images too")
    parser.add_argument("--resize", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="resize images into this")
    parser.add_argument("--classes", help="score only these: cityscapes_19, synthia_16 or synthia_13")
    parser.add_argument("--boundary", action="store_true", help="boundary IoU too")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument(
        "--output_dir", help="gets evaluation.json, .eval_results/ and the files below; default: in runs/eval/"
    )
    parser.add_argument(
        "--save_predictions", nargs="?", const=True, default=False, help="'cityscapes' for its raw ids"
    )
    parser.add_argument("--save_overlays", action="store_true")
    return parser, vars(parser.parse_args())


def main():
    parser, options = parse()
    model, name, data_dir = (options.pop(key) for key in ("model", "dataset", "data_dir"))
    for key in ("window", "stride"):
        if options[key] is not None and len(options[key]) == 1:
            options[key] = options[key][0]
    if options["output_dir"] is None:
        keys = {key: options[key] for key in ("window", "stride", "scales", "flip", "resize", "classes")}
        options["output_dir"] = default_folder(model, name, options["split"], options["which"], data_dir, **keys)
    try:
        result = evaluate_model(model, hf_fst.data.load(name, data_dir), dataset_id=name, **options)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"error: {error}\n")
    PartialState().print(f"{table(result)}\nWritten to {options['output_dir']}.")


if __name__ == "__main__":
    main()
