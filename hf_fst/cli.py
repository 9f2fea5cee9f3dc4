"""`hf-fst`: train, evaluate and convert from the command line.

Heavy imports stand inside the functions, so that `hf-fst --help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import sys
import tempfile
import time
import traceback
from pathlib import Path

USAGE, FAILURE = 2, 1
PACKAGE = Path(__file__).resolve().parent
PROJECT = "the project's issue tracker"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str):
        sentence = message[:1].upper() + message[1:].rstrip(".")
        say(f"{sentence}; `{self.prog} --help` shows how to use it.")
        raise SystemExit(USAGE)


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code: 0, 1 for failures, 2 for wrong usage."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="hf-fst",
        description="Train networks for semantic segmentation with a teacher that looks ahead.",
        epilog="examples:\n"
        "  hf-fst train examples/recipes/street_da_fst_d.yaml\n"
        "  hf-fst train examples/recipes/folders.yaml --data_dir labeled --unlabeled_data_dir unlabeled\n"
        "  hf-fst eval runs/street_da_fst_d street --options look=real\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    _add_train(commands)
    _add_eval(commands)
    _add_convert(commands)
    try:
        if not argv:
            parser.print_help()
            return USAGE
        overrides = {}
        if argv[0] == "train":
            argv, overrides = split_overrides(argv)
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code or 0
    return _guarded(arguments, overrides)


def _guarded(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    """Runs the command; an error of ours becomes a sentence, any other keeps its traceback."""
    output = contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext()
    try:
        with output:
            result = arguments.run(arguments, overrides)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        if arguments.debug:
            raise
        if not _is_ours(error):
            traceback.print_exc()
            say(f"This error is not expected; please report it to {PROJECT} with the lines above.")
            return FAILURE
        say(" ".join(str(error).split()))
        return USAGE if type(error).__name__ == "UsageError" else FAILURE
    if arguments.json:
        print(json.dumps(result, indent=2))
    return 0


def _is_ours(error: BaseException) -> bool:
    """Whether our own code raised it: then its text is a sentence for the user."""
    if type(error).__name__ in ("UsageError", "DataError"):  # these also come through workers and other libraries
        return type(error).__module__.startswith("hf_fst.")
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return PACKAGE in Path(frame.filename).resolve().parents


def say(sentence: str) -> None:
    """A sentence on stderr; the processes of one launch that say the same say it once."""
    if "LOCAL_RANK" in os.environ:
        launch = f"{os.getppid()} {os.environ.get('MASTER_PORT')} {sentence}"
        said = Path(tempfile.gettempdir(), f"hf-fst-said-{hashlib.sha256(launch.encode()).hexdigest()[:24]}")
        try:
            said.touch(exist_ok=False)
        except FileExistsError:
            if time.time() - said.stat().st_mtime < 60:
                return
            said.touch()
    print(f"hf-fst: {sentence}", file=sys.stderr, flush=True)


# train

_TRAIN_FLAGS = ("--overwrite", "--resume", "--dry_run", "--json", "--debug", "--help")


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments of `train` without `--key value` and `--key=value`, and these by key; a key alone means true."""
    rest, overrides, tokens = [], {}, list(argv)
    while tokens:
        token = tokens.pop(0)
        if token in ("-o", "--output"):
            token = "--output_dir"
        name, equals, value = token.partition("=")
        name = name.replace("-", "_").replace("__", "--", 1) if name.startswith("--") else name
        if not name.startswith("--") or name in _TRAIN_FLAGS:
            rest.append(name if name in _TRAIN_FLAGS else token)
        elif name == "--sweep":
            rest += ["--sweep", value] if equals else ["--sweep", *tokens[:1]]
            tokens = tokens if equals else tokens[1:]
        else:
            if not equals:
                value = tokens.pop(0) if tokens and not tokens[0].startswith("--") else "true"
            overrides[name[2:]] = value
    return rest, overrides


class _TrainHelp(argparse.Action):
    """The help of `train` with all keys of a recipe."""

    def __call__(self, parser, namespace, values, option_string=None):
        from hf_fst.recipes.keys import key_table

        parser.print_help()
        print(f"\n{key_table()}")
        parser.exit()


def _add_train(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train what a recipe says",
        description="Train what a recipe (a YAML file) says. The output directory gets the teacher as an ordinary\n"
        "checkpoint, the student in student/, results.json, a model card and pictures.",
        usage="hf-fst train RECIPE [--key value ...] [--sweep NAME] [--overwrite | --resume] [--dry_run]",
        epilog="examples:\n"
        "  hf-fst train examples/recipes/street_da_fst_d.yaml\n"
        "  hf-fst train examples/recipes/street_da_fst_d.yaml --lookahead_steps 1 --seed 2 -o runs/one-step\n"
        "  hf-fst train examples/recipes/camvid_semi.yaml --sweep fst_w --data_dir camvid\n"
        "  hf-fst train my.yaml --model_config.hidden_size 64 --resume\n"
        "  accelerate launch examples/run_fst.py my.yaml      (the same on several GPUs)\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("recipe", metavar="RECIPE", help="the YAML file")
    parser.add_argument("--sweep", metavar="NAME", help="name or number of the point of a recipe with `sweep`")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the output directory")
    parser.add_argument("--resume", action="store_true", help="go on from its last complete checkpoint")
    parser.add_argument(
        "--dry_run", action="store_true", help="build model and schedule, make one small step, print sizes; no data"
    )
    _add_common(parser)
    parser.add_argument("-h", "--help", action=_TrainHelp, nargs=0, help="show this and every key of a recipe")
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace, overrides: dict[str, str]) -> dict:
    from transformers.utils.logging import disable_progress_bar

    from hf_fst.recipes.load import load_recipe

    disable_progress_bar()  # of every file that is read or written; training has its own
    recipe = load_recipe(arguments.recipe, overrides, arguments.sweep)
    if arguments.dry_run:
        from hf_fst.recipes.dry_run import dry_run

        return dry_run(recipe)
    from hf_fst.recipes.run import run

    return run(
        recipe,
        overwrite=arguments.overwrite,
        resume=arguments.resume,
        command=_command(arguments, overrides),
        overrides=overrides,
    )


def _command(arguments: argparse.Namespace, overrides: dict[str, str]) -> str:
    """What was typed, without this machine's folders."""
    from hf_fst.recipes.run import LOCAL_KEYS, shareable

    words = ["hf-fst", "train", *shareable({"recipe": arguments.recipe}).values()]
    words += ["--sweep", arguments.sweep] if arguments.sweep else []
    for key, value in overrides.items():
        words += [f"--{key}", key.upper() if key in LOCAL_KEYS else str(shareable({key: value})[key])]
    words += [f"--{flag}" for flag in ("overwrite", "resume") if getattr(arguments, flag)]
    return shlex.join(words)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON, everything else on stderr")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


# eval


def _add_eval(commands) -> None:
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
    _add_common(parser)
    parser.set_defaults(run=_eval)


def _eval(arguments: argparse.Namespace, overrides: dict[str, str]) -> dict:
    from hf_fst.data import load
    from hf_fst.evaluation.results import table, without_nan
    from hf_fst.evaluation.runner import evaluate_model

    classes = arguments.classes
    if classes is not None and classes[0].isdecimal():
        classes = _numbers(classes, "classes", int)
    result = evaluate_model(
        arguments.model,
        load(arguments.dataset, arguments.data_dir, **_options(arguments.options)),
        split=arguments.split,
        which="student" if arguments.student else "teacher",
        window=arguments.window,
        stride=arguments.stride,
        scales=_numbers(arguments.scales, "scales", float),
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
    if _is_first_process():
        print(table(result))
    return without_nan(result)


def _resize(given: str | None, model: str) -> list[int] | str | None:
    """What `--resize` says, or what the recipe beside the model does."""
    if given is not None:
        return None if given == "none" else "model" if given == "model" else _numbers(given, "resize", int, 2)
    recipe = Path(model, "recipe.yaml")
    if not recipe.is_file():
        return None
    import yaml

    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    return next((values[key] for key in ("eval_resize", "unlabeled_resize", "resize") if key in values), None)


def _numbers(text: str, name: str, kind: type, count: int | None = None) -> list:
    """Numbers with commas between them. Raises `UsageError`."""
    from hf_fst.recipes.keys import UsageError

    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or (count is not None and len(numbers) != count):
        raise UsageError(f"--{name} is {text!r}; give {count or 'one or more'} numbers with commas between them.")
    return numbers


def _options(pairs: list[str]) -> dict[str, object]:
    """`KEY=VALUE` pairs, the values as YAML. Raises `UsageError`."""
    import yaml

    from hf_fst.recipes.keys import UsageError

    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"--options has {pair!r}; give KEY=VALUE.")
    return {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


# convert


def _add_convert(commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="turn a published checkpoint into a Hub model",
        description="Turn a published .pth checkpoint (the authors', DAFormer's, UniMatch's) into an ordinary model\n"
        "directory. Nothing but tensors is unpickled.",
        epilog="example:\n"
        "  hf-fst convert iter_40000.pth --model daformer-mit-b5 --which student --output converted/daformer-b5\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH", help="the .pth file")
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="the network: a name out of hf_fst.models.BUILDS"
    )
    parser.add_argument("--which", choices=("teacher", "student"), default="teacher", help="whose weights (teacher)")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="the directory to write")
    parser.add_argument(
        "--id2label",
        metavar="FILE",
        help="JSON with the class names; default: Cityscapes' for 19, VOC's for 21 classes",
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a directory that is not empty")
    _add_common(parser)
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace, overrides: dict[str, str]) -> dict:
    from transformers import SegformerImageProcessor

    from hf_fst.data.cityscapes import NAMES as CITYSCAPES
    from hf_fst.data.folders import read_id2label
    from hf_fst.data.voc import NAMES as VOC
    from hf_fst.models import BUILDS
    from hf_fst.models.convert import convert
    from hf_fst.recipes.keys import UsageError

    output = Path(arguments.output)
    if output.exists() and not arguments.overwrite and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is not empty; give another --output, or --overwrite to write into it.")
    if arguments.model not in BUILDS:
        raise UsageError(f"There is no network {arguments.model!r}; use one of {', '.join(BUILDS)}.")
    names = read_id2label(arguments.id2label) if arguments.id2label else None
    if names is None:
        names = {19: CITYSCAPES, 21: VOC}[BUILDS[arguments.model].num_labels]
    model = convert(
        arguments.path,
        arguments.model,
        arguments.which,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    model.save_pretrained(output)
    SegformerImageProcessor(do_resize=False).save_pretrained(output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{output} holds {arguments.model} with {parameters:,} parameters; load it with from_pretrained.")
    return {"output": str(output), "model": arguments.model, "which": arguments.which, "parameters": parameters}


if __name__ == "__main__":
    sys.exit(main())
