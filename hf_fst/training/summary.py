"""What a trainer knows about its run, gathered for the report."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch

from hf_fst.data.pairing import collate
from hf_fst.errors import UserError
from hf_fst.evaluation.inference import evaluation_mode, predict
from hf_fst.evaluation.machine import hardware, peak_memory, versions
from hf_fst.models import TwoBranches
from hf_fst.publishing.facts import Cost, DatasetFacts, Evaluation, RunFacts, Scores, hub_id
from hf_fst.publishing.report import write_report
from hf_fst.training.adapters import is_adapted, merged_parameters
from hf_fst.training.ahead import pairs_of
from hf_fst.training.settings import shown
from hf_fst.training.sharding import gathered

SAMPLES = 4  # images on a card, at most


def default_data(trainer) -> dict[str, DatasetFacts]:
    """Facts of data that nobody named: `labeled`, `unlabeled` and `evaluation`, with their numbers of images."""
    sets = {
        "labeled": (trainer.train_dataset, "train"),
        "unlabeled": (trainer.unlabeled_dataset if trainer.learning_objective.needs_unlabeled else None, "train"),
        "evaluation": (trainer.eval_dataset, "validation"),
    }
    return {
        key: DatasetFacts(name="own-images", title="the user's own images", split=split, images=len(dataset))
        for key, (dataset, split) in sets.items()
        if dataset is not None and not isinstance(dataset, dict)
    }


def planned_steps(trainer, args) -> int:
    """Optimizer steps of a run with these arguments on the images of a trainer."""
    a_step = trainer.get_total_train_batch_size(args)
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(pairs_of(trainer)) / a_step)


def best_step(trainer) -> int | None:
    """The step whose weights were loaded at the end as the best; None where those of the last step stayed.

    That need not be the best evaluation: only what was saved can be loaded, and neither the start nor an evaluation
    between two checkpoints is.
    """
    loaded = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    return None if loaded is None else int(Path(loaded).name.rpartition("-")[2])


def evaluations_of(trainer, dataset: DatasetFacts) -> list[Evaluation]:
    """The evaluation of the best weights, where they were loaded, and the last one in the trainer's log; under
    `supervised` the student stands for both."""
    key = "eval_teacher_mean_iou" if trainer.has_teacher else "eval_student_mean_iou"
    entries = [entry for entry in trainer.state.log_history if math.isfinite(entry.get(key, math.nan))]
    if not entries:
        return []
    best = next((entry for entry in entries if entry["step"] == best_step(trainer)), None)
    kept = {"last": entries[-1]} if best is None else {"best": best, "last": entries[-1]}
    return [evaluation_of(trainer, weights, entry, dataset) for weights, entry in kept.items()]


def evaluation_of(trainer, weights: str, metrics: dict, dataset: DatasetFacts, prefix: str = "eval") -> Evaluation:
    """Student and teacher in one entry of metrics."""
    student, teacher = (
        Scores.from_metrics(metrics, network, trainer.class_names, prefix)
        for network in ("student", "teacher" if trainer.has_teacher else "student")
    )
    step = metrics.get("step", trainer.state.best_global_step if weights == "best" else trainer.state.global_step)
    return Evaluation(weights, step, dataset, student, teacher)


def cost_of(trainer) -> Cost | None:
    """Time, memory and speed of the training, from the log."""
    runs = [entry for entry in trainer.state.log_history if "train_runtime" in entry]
    if not runs:
        return None
    seconds = sum(entry["train_runtime"] for entry in runs)
    images = trainer.state.global_step * trainer.get_total_train_batch_size(trainer.args)
    if trainer.learning_objective.needs_unlabeled:
        images *= 1 + trainer.settings.unlabeled_per_labeled
    memory, of = peak_memory(trainer.args.device)
    return Cost(hardware(trainer.args.device), seconds, images / seconds, memory, of, trainer.args.world_size)


def facts_of(trainer, data: dict[str, DatasetFacts], tested: list[Evaluation] = (), **facts) -> RunFacts:
    """The facts of a trainer's run.

    Args:
        trainer: an `FSTTrainer` after training.
        data: facts of the data it was given, under `labeled`, `unlabeled` and `evaluation`; see `default_data`.
        tested: further evaluations, such as that on the test images.
        facts: other fields of `RunFacts`: recipe, overrides, license, palette, hub_id, model_name.

    Raises:
        UserError: a card has no such field.
    """
    unknown = sorted(facts.keys() - {field.name for field in dataclasses.fields(RunFacts)})
    if unknown:
        raise UserError(f"A card has no {', '.join(unknown)}; it takes data, license, model_name, hub_id and recipe.")
    data = {**default_data(trainer), **data}
    student = trainer.networks()["student"]
    adapter = student.active_peft_config if is_adapted(student) else None
    network = student if adapter is None else student.get_base_model()
    start = (adapter and adapter.base_model_name_or_path) or student.config._name_or_path
    evaluations = evaluations_of(trainer, data["evaluation"]) if "evaluation" in data else []
    return RunFacts(
        rule=trainer.settings.rule,
        objective=trainer.settings.objective,
        architecture=type(network).__name__,
        parameters=sum(parameter.numel() for parameter in merged_parameters(student)),
        classes=trainer.class_names,
        labeled=data["labeled"],
        unlabeled=data.get("unlabeled"),
        evaluations=[*evaluations, *tested],
        steps=trainer.state.global_step,
        settings=shown(trainer.args, trainer.settings),
        versions=versions(),
        saved="last" if best_step(trainer) is None else "best",
        cost=cost_of(trainer),
        base_model=hub_id(start),
        answer=student.config.answer if isinstance(student, TwoBranches) else None,
        adapter=adapter is not None,
        own_architecture=type(network).__module__.startswith("hf_fst."),
        foreign_code=type(network).__module__.startswith("transformers_modules."),
        **facts,
    )


def write_card(trainer, data: dict[str, DatasetFacts] | None = None, **facts) -> None:
    """Write card, curves, bars and samples into the output directory; all processes call it."""
    with gathered(trainer.accelerator, trainer.networks().values()):
        if trainer.is_world_process_zero():
            known = facts_of(trainer, data or {}, **facts)
            write_report(trainer.args.output_dir, known, trainer.state.log_history, samples_of(trainer))


@torch.no_grad()
def samples_of(trainer) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Image uint8 (h,w,3), label, student and teacher (H,W) of images spread evenly over the evaluation set."""
    dataset = trainer.eval_dataset
    if dataset is None or isinstance(dataset, dict) or len(dataset) == 0:
        return []
    samples = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, SAMPLES).round().astype(int)):
        item = collate([dataset[int(index)]])
        if "labels" not in item:
            return []
        pixel_values, labels = item["pixel_values"].to(trainer.args.device), item["labels"][0]
        maps = []
        for network in trainer.networks().values():
            with evaluation_mode(network):
                maps.append(predict(network, pixel_values, labels.shape)[0].cpu().numpy())
        image = trainer.normalization.colors(item["pixel_values"][0])
        samples.append((image, labels.numpy(), maps[0], maps[-1]))
    return samples
