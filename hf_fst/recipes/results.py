"""The results of a run: its scores, `results.json`, and its card."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from pathlib import Path

from hf_fst.data.about import ABOUT
from hf_fst.drawing.tables import columns_of_terminal, percent, text_table
from hf_fst.evaluation.counting import LABEL_FREE
from hf_fst.evaluation.machine import hardware, peak_memory, versions
from hf_fst.evaluation.results import without_nan
from hf_fst.prediction.files import write_json
from hf_fst.publishing.card import commands_before
from hf_fst.publishing.facts import DatasetFacts, Evaluation, Scores, hub_id
from hf_fst.publishing.report import HISTORY_FILE
from hf_fst.recipes.data import RunData
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.load import as_dict
from hf_fst.recipes.output import RESULTS_FILE, as_typed, shareable
from hf_fst.recipes.sides import Side, labeled_by
from hf_fst.recipes.summary import after
from hf_fst.recipes.work import Work
from hf_fst.training.hub_strategy import push_output
from hf_fst.training.summary import best_step, evaluation_of

SHARE = re.compile(r"\d+/\d+")


def score(work: Work, command: str | None) -> tuple[dict, list[Evaluation]]:
    """Evaluates the kept weights on the test images and saves them and `results.json`.

    Returns:
        What `results.json` holds, and the evaluation on the test images, if there are any.
    """
    trainer, recipe, data = work.trainer, work.recipe, work.data
    args, output_dir = trainer.args, Path(trainer.args.output_dir)
    trainer.save_model(_internal_call=True)  # which does not push: card and results belong to the same commit
    metrics = _logged_metrics(work)
    tested = []
    if data.test is not None:
        logged = trainer.evaluate(data.test, metric_key_prefix="test")
        kept = metrics[-1] if metrics else {"weights": "last", "step": trainer.state.global_step}
        logged["step"] = kept["step"]
        metrics.append(_entry(work, logged, "test", kept["weights"]))
        about = data_facts(recipe, data)["test"]
        tested.append(evaluation_of(trainer, kept["weights"], logged, about, "test"))
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
        "labeled_by": labeled_by(recipe, data.sides["labeled"]),
        "parameters": sum(p.numel() for p in trainer.networks()["student"].parameters()),
        "steps": trainer.state.global_step,
        "classes": data.names,
        "scored_classes": trainer.settings.eval_classes or list(range(len(data.names))),
        "metrics": metrics,
        "seconds_per_step": work.stopwatch.per_step,
        "skipped_steps": trainer.journal.skipped,
        "skipped_images": sum(trainer.journal.skipped_images.values()),
        "peak_memory_bytes": memory,
        "memory_of": memory_of,
    }
    key = f"eval_{LABEL_FREE}"
    history = trainer.state.log_history
    if unlabeled := [(entry["step"], entry[key]) for entry in history if math.isfinite(entry.get(key, math.nan))]:
        results[LABEL_FREE] = unlabeled
    if trainer.is_world_process_zero():
        write_json(output_dir / RESULTS_FILE, results)
        write_json(output_dir / HISTORY_FILE, trainer.state.log_history)
    return results, tested


def data_facts(recipe: Recipe, data: RunData) -> dict[str, DatasetFacts]:
    """Facts of the data of a run, for those of `labeled`, `unlabeled`, `evaluation` and `test` that it has."""
    views = {"evaluation" if part == "validation" else part: view for part, view in data.views.items()}
    facts = {key: _facts(data.sides[key], len(view)) for key, view in views.items()}
    variants = [facts["labeled"].config]
    if SHARE.fullmatch(str(recipe.labeled)):
        variants.append(f"{recipe.labeled} of the labels")
    if by := labeled_by(recipe, data.sides["labeled"]):
        variants.append(f"chosen by {by}")
    if data.few:
        target = data.sides["unlabeled"].name
        variants.append(f"and {data.few} of {'the target' if target in ('folder', 'hub') else ABOUT[target].title}")
    facts["labeled"].config = ", ".join(filter(None, variants)) or None
    return facts


def _facts(side: Side, images: int) -> DatasetFacts:
    about = ABOUT[side.name]
    on_hub = hub_id(side.data_dir) if side.name == "hub" else None
    variant = (side.options or {}).get("look") or (side.options or {}).get("config")
    return DatasetFacts(
        name="own-images" if side.name == "folder" else on_hub or side.name,
        title=on_hub or about.title,
        split=side.split,
        images=images,
        config=variant if isinstance(variant, str) else None,
        hub_id=on_hub,
        license=about.license,
        source=about.source,
        note=about.note,
    )


def card_facts(recipe: Recipe, data: RunData, repository: str | None, overrides: dict[str, str]) -> dict[str, object]:
    """What only the recipe knows about a model card: the arguments of `create_model_card`."""
    typed = {key: text for key, text in as_typed(overrides).items() if not key.startswith("hub_")}
    return {
        "data": {key: facts for key, facts in data_facts(recipe, data).items() if key != "test"},
        "recipe": recipe.command_name,
        "overrides": ({} if recipe.point is None else {"sweep": recipe.point}) | typed,
        "start": commands_before(recipe.model, recipe.start_from, recipe.reference_model),
        "palette": data.palette,
        "license": recipe.license,
        "hub_id": repository,
    }


def publish(work: Work, results: dict, tested: list[Evaluation]) -> None:
    """Writes the model card, prints the scores, and pushes with `push_to_hub`."""
    trainer, output_dir = work.trainer, Path(work.trainer.args.output_dir)
    if trainer.settings.report:
        trainer.create_model_card(**work.card, tested=tested)
    if trainer.is_world_process_zero():
        print(table(results))
        print(after(work.recipe, results["rule"], output_dir))
        if trainer.args.push_to_hub:
            print(f"Published: {push_output(trainer).commit_url}")


def table(results: dict) -> str:
    """The scores of a run for a terminal."""
    networks = ["student"] if results["rule"] == "supervised" else ["student", "teacher"]
    columns = ["weights", "step", "images", *(f"{network} mIoU (%)" for network in networks)]
    columns += [f"{network} accuracy (%)" for network in networks]
    rows = []
    for entry in results["metrics"]:
        cells = [percent(entry[network]["mean_iou"]) for network in networks]
        cells += [percent(entry[network]["overall_accuracy"]) for network in networks]
        rows.append([entry["weights"], str(entry["step"]), f"{entry['split']} ({entry['images']})", *cells])
    none = "No evaluation: the dataset has no split to evaluate on.\n"
    found = text_table(columns, rows, columns_of_terminal()) if rows else none
    if scored := results.get(LABEL_FREE):
        step, best = max(scored, key=lambda pair: pair[1])
        found += f"Chosen without labels: a pixel tells most of its class at step {step} (label_free {best:.3f}).\n"
    return f"\n{found}"


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
        found = asdict(Scores.from_metrics(logged, network, work.trainer.class_names, prefix))
        found["iou"] = dict(zip(work.data.names, found.pop("per_category_iou"), strict=True))
        entry[network] = without_nan(found)
    return entry
