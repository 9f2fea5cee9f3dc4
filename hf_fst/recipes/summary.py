"""What is printed about a run: before its first step what will happen, after its last one where things are."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path

from hf_fst.drawing.tables import columns_of_terminal
from hf_fst.errors import printable
from hf_fst.evaluation.machine import hardware
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.models.loading import STUDENT_DIR
from hf_fst.recipes.check import share, sizes
from hf_fst.recipes.data import RunData
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.sides import labeled_by
from hf_fst.training.config import FSTConfig
from hf_fst.training.settings import Settings, longer_than_run, pace_words

FEW_IMAGES = 10  # evaluated ones; with fewer a score is mostly chance
PUBLISHED = ("voc", "cityscapes")  # datasets whose published numbers are for lists of labeled images
MOST_CLASSES = 8  # that are all shown; of more the most frequent and the rarest


def before(
    recipe: Recipe,
    config: FSTConfig,
    settings: Settings,
    parameters: int,
    data: RunData | None,
    notes: list[str],
    steps: int | None,
    time: str = "shown after the first steps; --dry_run measures it beforehand",
) -> str:
    """What will be done, a line or two for each item, and warnings (`notes`). `data` is None where it was not looked
    at, `steps` where only the epochs are known; `time` is what is known about it."""
    by = None if data is None else labeled_by(recipe, data.sides["labeled"])
    rows = [] if data is None else _images(data, by)
    if by == f"split_seed {recipe.split_seed}" and recipe.dataset in PUBLISHED:
        notes = [
            *notes,
            f"the labeled images are chosen by {by}, not by the published lists, so that scores compare with "
            "published ones only roughly; give --dataset_options.splits FOLDER.",
        ]
    if data is not None and data.validation is not None and len(data.validation) < FEW_IMAGES:
        notes = [*notes, _few(recipe, len(data.validation))]
    longer = [] if steps is None else longer_than_run(config, settings, steps)
    notes = [*notes, *(f"{fault}; give --{option} {value}." for fault, option, value in longer)]
    precision = "bf16" if config.bf16 else "fp16" if config.fp16 else "float32"
    processes = f", {config.world_size} processes" if config.world_size > 1 else ""
    rows += [
        ("network", f"{_network(recipe)}; {parameters:,} parameters"),
        ("device", f"{hardware(config.device)}, {precision}{processes}"),
        ("method", f"{pace_words(settings)}; objective {settings.objective}"),
        ("steps", _steps(config, settings, data, steps)),
        ("time", time),
        ("writes", _written(config, settings)),
        *(("warning", note) for note in notes),
    ]
    width = columns_of_terminal() or 100
    lines = [f"{recipe.name}:"]
    for key, text in rows:
        lines += textwrap.wrap(
            printable(text),
            max(width, 40),
            initial_indent=f"  {key:9}",
            subsequent_indent=" " * 11,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines) + "\n"


def _images(data: RunData, by: str | None) -> list[tuple[str, str]]:
    """Rows about the images: how many, how large, and of what; `by`: see `labeled_by`."""
    parts = {} if data.report is None else data.report.parts
    counts = {name: len(view) for name, view in data.views.items()}
    if data.few:
        counts["labeled"] -= data.few
        counts["labeled target"] = data.few
    skipped = sum(len(part.errors) for part in parts.values())
    found = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    found += f"; labels chosen by {by}" if by else ""
    rows = [("images", found + (f"; skipped, as they cannot be read: {skipped:,}" if skipped else ""))]
    crop = f"crops of {data.crop[1]} x {data.crop[0]} pixels"
    if not parts:
        return [*rows, ("sizes", f"{crop}; the files are not looked at (check is false)")]
    padding = [f"{share(part.padding)}% of the {name} ones" for name, part in parts.items() if part.padding]
    padding = f", of which padding is {' and '.join(padding)}" if padding else ""
    rows.append(("sizes", f"{sizes(*parts.values())}; {crop}{padding}"))
    pixels = sum(parts[name].class_pixels.sum(0) for name in ("labeled", "labeled target") if name in parts)
    order = sorted(range(len(pixels)), key=lambda i: -pixels[i])
    shown = [f"{data.names[i]} {share(pixels[i] / max(pixels.sum(), 1))}%" for i in order]
    if len(shown) > MOST_CLASSES:
        shown = [*shown[: MOST_CLASSES // 2], "...", *shown[-3:]]
    return [*rows, ("classes", f"{len(pixels)}; of the labeled pixels {', '.join(shown)}")]


def _few(recipe: Recipe, count: int) -> str:
    cure = "evaluate on more"
    if recipe.dataset == "folder" and recipe.eval_dataset is None:
        cure = "put more into its folder, or keep more aside with --dataset_options.validation_share 0.3"
    return f"validation has {count} image{'s' * (count > 1)}, so that scores are mostly chance; {cure}."


def _network(recipe: Recipe) -> str:
    if recipe.start_from is not None:
        return f"that of {recipe.start_from}"
    name = recipe.model or recipe.model_config["model_type"]
    if recipe.model is None or (recipe.pretrained_backbone in (None, False) and "/" not in name):
        return f"{name} with random weights"
    return f"{name} with a pretrained backbone" if recipe.pretrained_backbone else name


def _steps(config: FSTConfig, settings: Settings, data: RunData | None, steps: int | None) -> str:
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
    labeled = f"{batch} labeled"
    if OBJECTIVES[settings.objective].needs_unlabeled if data is None else data.unlabeled is not None:
        labeled += f" and {batch * settings.unlabeled_per_labeled} unlabeled"
    length = [] if config.max_steps > 0 else [f"{config.num_train_epochs:g} epochs"]
    length += [] if steps is None else [f"{steps:,} steps"]
    text = f"{', '.join(length)} of {labeled} crops"
    if config.eval_strategy == "steps":
        text += f"; an evaluation every {config.eval_steps:g}"
    elif config.eval_strategy == "epoch":
        text += "; an evaluation after each epoch"
    return text + (", and the best is kept" if config.load_best_model_at_end else ", and the last is kept")


def _written(config: FSTConfig, settings: Settings) -> str:
    network = "the model" if settings.rule == "supervised" else f"the teacher, the student in {STUDENT_DIR}/"
    parts = [network, "results.json", *(["a model card with pictures"] if config.report else [])]
    if config.save_strategy == "steps":
        kept = f" (the last {config.save_total_limit} kept)" if config.save_total_limit else ""
        parts.append(f"a checkpoint every {config.save_steps:g} steps{kept}")
    return f"{config.output_dir}: {', '.join(parts)}"


def after(recipe: Recipe, rule: str, output_dir: Path) -> str:
    """Where the networks of a finished run are, and three commands to try next."""
    run = shlex.quote(str(output_dir))
    where = f"The model is in {output_dir}."
    if rule != "supervised":
        where = (
            f"The teacher, which is the model to use, is in {output_dir}, the student in {output_dir / STUDENT_DIR}."
        )
    images = recipe.unlabeled_data_dir if recipe.unlabeled_dataset == "folder" else None
    return "\n".join(
        [
            where,
            "Next:",
            f"  see predictions   hf-fst predict {run} {shlex.quote(images or 'IMAGES')} -o {run}-predictions --overlays",
            f"  try a demo page   hf-fst demo {run}",
            f"  publish it        hf-fst push {run} YOU/NAME --private",
        ]
    )
