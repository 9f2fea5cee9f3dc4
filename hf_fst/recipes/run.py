"""One run from a recipe: prepare, train, score, publish."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import yaml
from accelerate import PartialState
from transformers import ProgressCallback, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

from hf_fst.drawing.plots import sampling_bars
from hf_fst.drawing.tables import percent, text_table
from hf_fst.evaluation.machine import hardware, peak_memory, versions
from hf_fst.models.loading import STUDENT_DIR
from hf_fst.publishing.facts import Evaluation, settings_of
from hf_fst.publishing.report import HISTORY_FILE
from hf_fst.recipes.about import data_facts
from hf_fst.recipes.data import RunData, build_data, scored_classes
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.load import as_dict, to_config
from hf_fst.recipes.network import build_network, build_processor, earlier_network
from hf_fst.recipes.output import (
    CLASS_SAMPLING,
    LOCAL_KEYS,
    RECIPE_FILE,
    RESULTS_FILE,
    check_output,
    remove_run,
    shareable,
    write_json,
)
from hf_fst.training.callbacks import Report
from hf_fst.training.config import FSTConfig
from hf_fst.training.hub_strategy import push_output
from hf_fst.training.settings import card_names, pace_words, resolve
from hf_fst.training.summary import best_step, evaluation_of
from hf_fst.training.trainer import FSTTrainer

SCORES = ("mean_iou", "mean_accuracy", "overall_accuracy")


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


@dataclass
class Work:
    """A run in which nothing is left to refuse: its trainer, its data, and the checkpoint to go on from."""

    recipe: Recipe
    trainer: FSTTrainer
    data: RunData
    stopwatch: Stopwatch
    checkpoint: str | None


def run(
    recipe: Recipe,
    *,
    overwrite: bool = False,
    resume: bool = False,
    command: str | None = None,
    overrides: dict[str, str] | None = None,
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
        UserError: data, model or output directory are not as it says.
        PushError: with `push_to_hub`, the Hub refused; what was trained is in the output directory.
    """
    work = prepare(recipe, overwrite, resume)
    train(work)
    results, tested = score(work, command)
    publish(work, results, tested, overrides or {})
    return results


def prepare(recipe: Recipe, overwrite: bool, resume: bool) -> Work:
    """Data, model and trainer of a recipe. Files of an earlier run are removed last, when nothing is left to refuse."""
    config = to_config(recipe)
    transformers_logging.disable_progress_bar()  # a bar for every file written would hide the one for the training
    state, output_dir = PartialState(), Path(config.output_dir)
    checkpoint = check_output(output_dir, overwrite, resume) or config.resume_from_checkpoint
    state.wait_for_everyone()  # before anybody writes there
    set_seed(config.seed)
    with state.main_process_first():  # it counts pixels and downloads, the others read what it wrote
        data = build_data(recipe, config, resolve(config).objective)
        wrong = [] if data.report is None else data.report.refuse(config.on_bad_image == "skip")
        for sentence in wrong if state.is_main_process else ():
            warnings.warn(sentence, stacklevel=2)
        config.eval_classes = scored_classes(recipe, data.names)
        set_seed(config.seed)
        model = build_network(recipe, data.names)
        processor = build_processor(recipe, model)
        reference = None
        if recipe.reference_model is not None:
            reference = earlier_network("reference_model", recipe.reference_model, model.config.id2label)
    stopwatch = Stopwatch()
    trainer = FSTTrainer(
        model=model,
        args=config,
        train_dataset=data.labeled,
        unlabeled_dataset=data.unlabeled,
        eval_dataset=data.validation,
        processing_class=processor,
        callbacks=[stopwatch],
        reference_model=reference,
    )
    trainer.remove_callback(Report)  # `publish` writes it, with what only the recipe knows
    trainer.pictures.palette = data.palette
    if not config.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Progress)
    if overwrite and state.is_main_process:
        remove_run(output_dir)
    state.wait_for_everyone()
    return Work(recipe, trainer, data, stopwatch, checkpoint)


def train(work: Work) -> None:
    """Writes the recipe into the output directory and trains."""
    output_dir = Path(work.trainer.args.output_dir)
    if work.trainer.is_world_process_zero():
        output_dir.mkdir(parents=True, exist_ok=True)
        written = yaml.safe_dump(shareable(as_dict(work.recipe)), sort_keys=False, allow_unicode=True)
        (output_dir / RECIPE_FILE).write_text(written, encoding="utf-8")
        if work.data.rare is not None:
            _show_sampling(work.data.rare.table(), output_dir / CLASS_SAMPLING)
        print(f"{pace_words(work.trainer.settings)}; objective {work.trainer.settings.objective}")
    work.trainer.train(resume_from_checkpoint=work.checkpoint)


def score(work: Work, command: str | None) -> tuple[dict, list[Evaluation]]:
    """Evaluates the kept weights on the test images and saves them and `results.json`.

    Returns:
        What `results.json` holds, and the evaluation on the test images, if there are any.
    """
    trainer, recipe, data = work.trainer, work.recipe, work.data
    args, output_dir = trainer.args, Path(trainer.args.output_dir)
    metrics = _logged_metrics(work)
    tested = []
    if data.test is not None:
        logged = trainer.evaluate(data.test, metric_key_prefix="test")
        kept = metrics[-1] if metrics else {"weights": "last", "step": trainer.state.global_step}
        logged["step"] = kept["step"]
        metrics.append(_entry(work, logged, "test", kept["weights"]))
        about = data_facts(recipe, data)["test"]
        tested.append(evaluation_of(trainer, kept["weights"], logged, about, "test"))
    trainer.save_model(_internal_call=True)  # which does not push: card and results belong to the same commit
    memory, memory_of = peak_memory(args.device)
    results = {
        "command": command,
        "recipe": shareable(as_dict(recipe)),
        "rule": trainer.settings.rule,
        "seeds": {"seed": args.seed, "data_seed": args.data_seed, "split_seed": recipe.split_seed},
        "versions": versions(),
        "device": hardware(args.device),
        "processes": args.world_size,
        "images": {key: len(view) for key, view in data.views.items()},
        "parameters": sum(p.numel() for p in trainer.networks()["student"].parameters()),
        "steps": trainer.state.global_step,
        "classes": data.names,
        "scored_classes": trainer.settings.eval_classes or list(range(len(data.names))),
        "metrics": metrics,
        "seconds_per_step": work.stopwatch.seconds / work.stopwatch.steps if work.stopwatch.steps else None,
        "skipped_steps": trainer.journal.skipped,
        "skipped_images": sum(trainer.journal.skipped_images.values()),
        "peak_memory_bytes": memory,
        "memory_of": memory_of,
    }
    if trainer.is_world_process_zero():
        write_json(output_dir / RESULTS_FILE, results)
        write_json(output_dir / HISTORY_FILE, trainer.state.log_history)
    return results, tested


def publish(work: Work, results: dict, tested: list[Evaluation], overrides: dict[str, str]) -> None:
    """Writes the model card, prints the scores, and pushes with `push_to_hub`."""
    trainer, recipe, data = work.trainer, work.recipe, work.data
    output_dir = Path(trainer.args.output_dir)
    if trainer.settings.report:
        trainer.create_model_card(
            data={key: facts for key, facts in data_facts(recipe, data).items() if key != "test"},
            recipe=recipe.command_name,
            overrides=_on_card(recipe, overrides),
            palette=data.palette,
            tested=tested,
            license=recipe.license,
            hub_id=trainer.hub_model_id,
        )
    if trainer.is_world_process_zero():
        print(table(results))
        print(f"The teacher is in {output_dir}, the student in {output_dir / STUDENT_DIR}.")
        if trainer.args.push_to_hub:
            print(f"Published: {push_output(trainer).commit_url}")


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


def _show_sampling(rows: list[dict], path: Path) -> None:
    """Prints how often each class occurs and is drawn, and writes it as a picture."""
    cells = [
        [row["class"], f"{row['pixels']:,}", percent(row["share"]), f"{row['images']:,}", percent(row["probability"])]
        for row in rows
    ]
    print("\n" + text_table(["class", "pixels", "% of pixels", "images", "% of draws"], cells))
    shares, draws = ([row[key] for row in rows] for key in ("share", "probability"))
    sampling_bars(shares, draws, [row["class"] for row in rows], path)


def _logged_metrics(work: Work) -> list[dict]:
    """Scores at the start, of the last and of the best weights, from the log of the evaluations while training."""
    logged = [entry for entry in work.trainer.state.log_history if "eval_student_mean_iou" in entry]
    best = best_step(work.trainer)
    kept = [("start", entry) for entry in logged[:1] if entry["step"] == 0]
    kept += [("last", entry) for entry in logged[-1:]]
    kept += [("best", entry) for entry in logged if entry["step"] == best][:1]
    return [_entry(work, entry, "eval", weights) for weights, entry in kept]


def _entry(work: Work, logged: dict, prefix: str, weights: str) -> dict:
    """One evaluation for `results.json`, from what was logged."""
    side, part = ("test", "test") if prefix == "test" else ("evaluation", "validation")
    images = len(work.data.views[part])
    entry = {"weights": weights, "step": logged["step"], "split": work.data.sides[side].split, "images": images}
    for network in work.trainer.networks():
        start = f"{prefix}_{network}_"
        found = {key: _number(logged[start + key]) for key in SCORES}
        ious = [_number(logged[f"{start}iou_{name}"]) for name in work.trainer.class_names]
        entry[network] = {**found, "iou": dict(zip(work.data.names, ious, strict=True))}
    return entry


def _number(value: float) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _on_card(recipe: Recipe, overrides: dict[str, str]) -> dict[str, object]:
    """The overrides that a card shows: settings by name, and other keys whose values are numbers."""
    shown = {} if recipe.point is None else {"sweep": recipe.point}
    shown |= settings_of(
        {key: recipe.options[key] for key in overrides if key in recipe.options and key in card_names(FSTConfig)}
    )
    for key, value in overrides.items():
        number = yaml.safe_load(value)
        if _may_be_shown(key) and isinstance(number, (bool, int, float)):
            shown.setdefault(key, number)
    return shown


def _may_be_shown(key: str) -> bool:
    return key not in LOCAL_KEYS and not key.startswith("hub_")
