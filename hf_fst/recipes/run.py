"""One run from a recipe: data, model, training, evaluation, and what is left in the output directory."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from pathlib import Path

import yaml
from accelerate import PartialState
from transformers import ProgressCallback, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

from hf_fst.drawing.plots import sampling_bars
from hf_fst.drawing.tables import percent, text_table
from hf_fst.errors import UsageError, UserError
from hf_fst.evaluation.machine import hardware, peak_memory, versions
from hf_fst.models.loading import STUDENT_DIR
from hf_fst.publishing.facts import FACTS_FILE, LOCAL, TOKEN, settings_of
from hf_fst.publishing.report import HISTORY_FILE
from hf_fst.recipes.about import data_facts
from hf_fst.recipes.data import RunData, build_data, scored_classes
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.load import as_dict, to_config
from hf_fst.recipes.network import build_network, build_processor
from hf_fst.training.checkpoints import all_checkpoints, complete_checkpoints
from hf_fst.training.hub_strategy import push_output
from hf_fst.training.pictures import FOLDER as PICTURES
from hf_fst.training.settings import resolve
from hf_fst.training.summary import best_step, evaluation_of
from hf_fst.training.trainer import FSTTrainer

RECIPE_FILE, RESULTS_FILE = "recipe.yaml", "results.json"
CLASS_SAMPLING = "class_sampling.png"
SCORES = ("mean_iou", "mean_accuracy", "overall_accuracy")
# what a run leaves in its directory; nothing else is ever removed
OUR_FILES = (
    *("config.json", "model*.safetensors", "model.safetensors.index.json", "preprocessor_config.json", "*.py"),
    *("training_args.bin", "README.md", "curves.png", "class_iou.png", "samples.png", FACTS_FILE),
    *(CLASS_SAMPLING, f"{PICTURES}/step-*.png"),
    *(RESULTS_FILE, HISTORY_FILE, RECIPE_FILE),
)
# one of them is in every directory that a run, or `save_pretrained`, wrote
SIGNS = (RECIPE_FILE, FACTS_FILE, "config.json")
OUR_FOLDERS = (STUDENT_DIR, ".eval_results", "runs")
# keys that say where things lie on this machine, whose they are, or hold a secret; they are not written down
LOCAL_KEYS = (
    *("output_dir", "data_dir", "unlabeled_data_dir", "eval_data_dir", "resume_from_checkpoint"),
    *("hub_token", "hub_model_id", "push_to_hub", "run_name", "project"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
)


class Stopwatch(TrainerCallback):
    """Seconds of training steps, without evaluation and saving, and without the first step, which sets things up."""

    def __init__(self):
        self.steps, self.seconds, self._since = 0, 0.0, None

    def on_step_end(self, args, state, control, **kwargs):
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self.steps += 1
        self._since = time.perf_counter()

    def _restart(self, args, state, control, **kwargs):
        if self._since is not None:
            self._since = time.perf_counter()

    on_evaluate = on_save = _restart


class Progress(ProgressCallback):
    """The progress bar; what is written beside it leaves out the numbers of single classes."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        shown = {key: value for key, value in (logs or {}).items() if "_iou_" not in key and "_share_" not in key}
        super().on_log(args, state, control, logs=shown, **kwargs)


def run(
    recipe: Recipe, *, overwrite: bool = False, resume: bool = False, command: str | None = None, overrides=None
) -> dict:
    """Trains and evaluates what a recipe says.

    Args:
        recipe: see `load_recipe`.
        overwrite: remove the files of an earlier run from the output directory first.
        resume: go on from its last complete checkpoint.
        command: what was typed, for `results.json`.
        overrides: what was given beside the recipe file, by key, for the model card.

    Returns:
        What `results.json` holds: command, recipe, seeds, versions, device, metrics, cost.

    Raises:
        UsageError: the recipe is wrong.
        ValueError, FileNotFoundError: data, model or output directory are not as it says.
        PushError: with `push_to_hub`, the Hub refused; what was trained is in the output directory.
    """
    config = to_config(recipe)
    settings = resolve(config)
    transformers_logging.disable_progress_bar()  # a bar for every file written would hide the one for the training
    state = PartialState()
    output_dir = Path(config.output_dir)
    checkpoint = _check_output_dir(output_dir, overwrite, resume) or config.resume_from_checkpoint
    state.wait_for_everyone()  # before anybody writes there
    set_seed(config.seed)
    with state.main_process_first():  # the first one counts pixels and downloads, the others find them
        data = build_data(recipe, config, settings.objective)
        config.eval_classes = scored_classes(recipe, data.names)
        set_seed(config.seed)
        model = build_network(recipe, data.names)

    wants_report, config.report = config.report, False  # written below, with what only the recipe knows
    stopwatch = Stopwatch()
    trainer = FSTTrainer(
        model=model,
        args=config,
        train_dataset=data.labeled,
        unlabeled_dataset=data.unlabeled,
        eval_dataset=data.validation,
        processing_class=build_processor(recipe),
        callbacks=[stopwatch],
    )
    if overwrite and state.is_main_process:  # only now: data, model, settings and the Hub have been found well
        _remove_run(output_dir)
    state.wait_for_everyone()
    trainer.pictures.palette = data.palette
    if not config.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Progress)
    if trainer.is_world_process_zero():
        output_dir.mkdir(parents=True, exist_ok=True)
        written = yaml.safe_dump(shareable(as_dict(recipe)), sort_keys=False, allow_unicode=True)
        (output_dir / RECIPE_FILE).write_text(written, encoding="utf-8")
        if data.rare is not None:
            _show_sampling(data.rare.table(), output_dir / CLASS_SAMPLING)
    trainer.train(resume_from_checkpoint=checkpoint)

    metrics = _logged_metrics(trainer, data)
    tested = []
    if data.test is not None:
        logged = trainer.evaluate(data.test, metric_key_prefix="test")
        kept = metrics[-1] if metrics else {"weights": "last", "step": trainer.state.global_step}
        metrics.append(_entry(trainer, logged, "test", kept["weights"], kept["step"], data))
        about = data_facts(recipe, data)["test"]
        tested.append(evaluation_of(trainer, kept["weights"], {**logged, "step": kept["step"]}, about, "test"))
    trainer.save_model(_internal_call=True)  # which does not push: card and results belong to the same commit
    results = {
        "command": command,
        "recipe": shareable(as_dict(recipe)),
        "rule": settings.rule,
        "seeds": {"seed": config.seed, "data_seed": config.data_seed, "split_seed": recipe.split_seed},
        "versions": versions(),
        "device": hardware(config.device),
        "processes": config.world_size,
        "images": {key: len(view) for key, view in data.views.items()},
        "parameters": sum(p.numel() for p in trainer.networks()["student"].parameters()),
        "steps": trainer.state.global_step,
        "classes": data.names,
        "scored_classes": config.eval_classes or list(range(len(data.names))),
        "metrics": metrics,
        "seconds_per_step": stopwatch.seconds / stopwatch.steps if stopwatch.steps else None,
        "skipped_steps": trainer.journal.skipped,
    }
    results["peak_memory_bytes"], results["memory_of"] = peak_memory(config.device)
    if trainer.is_world_process_zero():
        _write_json(output_dir / RESULTS_FILE, results)
        _write_json(output_dir / HISTORY_FILE, trainer.state.log_history)
    if wants_report:
        about = data_facts(recipe, data)
        about.pop("test", None)
        trainer.create_model_card(
            data=about,
            recipe=recipe.command_name,
            overrides=_told(recipe, overrides or {}),
            palette=data.palette,
            tested=tested,
            license=recipe.license,
            hub_id=trainer.hub_model_id,
        )
    if trainer.is_world_process_zero():
        print(table(results))
        print(f"The teacher is in {output_dir}, the student in {output_dir / STUDENT_DIR}.")
    if config.push_to_hub and trainer.is_world_process_zero():
        print(f"Published: {push_output(trainer).commit_url}")
    return results


def table(results: dict) -> str:
    """The scores of a run for a terminal."""
    networks = ["student"] if results["rule"] == "supervised" else ["student", "teacher"]
    columns = ["", "step", "images", *(f"{network} mIoU (%)" for network in networks)]
    columns += [f"{network} accuracy (%)" for network in networks]
    rows = []
    for entry in results["metrics"]:
        cells = [percent(entry[network]["mean_iou"]) for network in networks]
        cells += [percent(entry[network]["overall_accuracy"]) for network in networks]
        rows.append([entry["weights"], str(entry["step"]), f"{entry['split']} ({entry['images']})", *cells])
    if not rows:
        return "No evaluation: the dataset has no split to evaluate on."
    return "\n" + text_table(columns, rows)


def shareable(values: dict[str, object]) -> dict[str, object]:
    """A recipe without what belongs to this machine: folders and secrets are left out, paths that lead out of the
    project are cut to names."""

    def clean(value):
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [clean(item) for item in value]
        if isinstance(value, str):
            value = re.split(r"[\\/]", value.rstrip("\\/"))[-1] if LOCAL.match(value) else value
            return TOKEN.sub("TOKEN", value)
        return value

    return {key: clean(value) for key, value in values.items() if key not in LOCAL_KEYS}


def _show_sampling(rows: list[dict], path: Path) -> None:
    """Prints how often each class occurs and is drawn, and writes it as a picture."""
    cells = [
        [row["class"], f"{row['pixels']:,}", percent(row["share"]), f"{row['images']:,}", percent(row["probability"])]
        for row in rows
    ]
    print("\n" + text_table(["class", "pixels", "% of pixels", "images", "% of draws"], cells))
    shares, draws = ([row[key] for row in rows] for key in ("share", "probability"))
    sampling_bars(shares, draws, [row["class"] for row in rows], path)


def _check_output_dir(output_dir: Path, overwrite: bool, resume: bool) -> str | None:
    """The checkpoint to go on from. Raises `ValueError` for a directory that must not be written to."""
    if overwrite and resume:
        raise UsageError("--overwrite and --resume exclude each other; give one.")
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"The output directory {output_dir} is a file; give another output_dir.")
    if resume:
        complete = complete_checkpoints(output_dir)
        if not complete:
            raise UserError(f"{output_dir} holds no complete checkpoint to resume from; start it without --resume.")
        return str(complete[-1])
    if output_dir.is_dir() and any(output_dir.iterdir()) and not overwrite:
        raise UserError(
            f"The output directory {output_dir} is not empty; give another output_dir, --resume to go on with its run, "
            "or --overwrite to replace it."
        )
    if overwrite and output_dir.is_dir() and any(output_dir.iterdir()):
        if not any((output_dir / name).is_file() for name in SIGNS):
            raise UserError(
                f"The output directory {output_dir} is not empty and holds no run (it has no {RECIPE_FILE}), so that "
                "--overwrite could remove what is not a run's; give another output_dir."
            )
    return None


def _remove_run(output_dir: Path) -> None:
    """Remove what a run wrote, and nothing else; the recipe, which tells that it was a run, last."""
    for path in [*all_checkpoints(output_dir), *(output_dir / name for name in OUR_FOLDERS)]:
        if path.is_dir():
            shutil.rmtree(path)
    for pattern in OUR_FILES:
        for path in output_dir.glob(pattern):
            path.unlink()


def _logged_metrics(trainer: FSTTrainer, data: RunData) -> list[dict]:
    """Scores at the start, of the last and of the best weights, from the log of the evaluations while training."""
    logged = [entry for entry in trainer.state.log_history if "eval_student_mean_iou" in entry]
    if not logged:
        return []
    kept = []
    if logged[0]["step"] == 0:
        kept.append(("start", logged[0]))
    kept.append(("last", logged[-1]))
    best = best_step(trainer)
    if best is not None:
        kept.append(("best", next(entry for entry in logged if entry["step"] == best)))
    return [_entry(trainer, entry, "eval", weights, entry["step"], data) for weights, entry in kept]


def _entry(trainer: FSTTrainer, logged: dict, prefix: str, weights: str, step: int, data: RunData) -> dict:
    side, view = ("test", data.test) if prefix == "test" else ("evaluation", data.validation)
    entry = {"weights": weights, "step": step, "split": data.sides[side].split, "images": len(view)}
    for network in trainer.networks():
        start = f"{prefix}_{network}_"
        found = {key: _number(logged[start + key]) for key in SCORES}
        ious = [_number(logged[f"{start}iou_{name}"]) for name in trainer.class_names]
        entry[network] = {**found, "iou": dict(zip(data.names, ious, strict=True))}
    return entry


def _number(value: float) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _told(recipe: Recipe, overrides: dict[str, str]) -> dict[str, object]:
    """The overrides that a card may tell: settings by name, and other keys whose values are numbers."""
    told = {} if recipe.point is None else {"sweep": recipe.point}
    told |= settings_of({key: recipe.options[key] for key in overrides if key in recipe.options and _tellable(key)})
    for key, value in overrides.items():
        number = yaml.safe_load(value)
        if _tellable(key) and isinstance(number, (bool, int, float)):
            told.setdefault(key, number)
    return told


def _tellable(key: str) -> bool:
    return key not in LOCAL_KEYS and not key.startswith("hub_")


def _write_json(path: Path, content: object) -> None:
    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.write_text(json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
