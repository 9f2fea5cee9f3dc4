"""What a recipe would do: sizes without its data, and with it the time and memory of a step."""

from __future__ import annotations

import tempfile
from dataclasses import replace

import torch

from hf_fst.data.about import ABOUT
from hf_fst.data.folders import read_id2label
from hf_fst.evaluation.machine import peak_memory
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.models import BUILDS
from hf_fst.recipes.data import scored_classes
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.load import to_config
from hf_fst.recipes.network import build_network
from hf_fst.recipes.progress import expected
from hf_fst.recipes.run import prepare
from hf_fst.recipes.sides import common_classes, sides
from hf_fst.recipes.summary import before
from hf_fst.recipes.work import Work
from hf_fst.training.refusals import refuse_settings
from hf_fst.training.settings import resolve, virtual_steps
from hf_fst.training.summary import planned_steps

PROBE_STEPS = 4  # of the real training; the first, which sets things up, is not timed
QUIET = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "load_best_model_at_end": False,
    "eval_on_start": False,
    "picture_steps": 0,
    "push_to_hub": False,
    "report": False,
    "report_to": "none",
    "disable_tqdm": True,
}


def dry_run(recipe: Recipe, measure: bool = False) -> dict[str, object]:
    """Checks a recipe, builds its model without memory for weights, prints the sizes, and returns them.

    With `measure`, and if the recipe says where its data is, the real training takes a few steps with random weights,
    and their time and memory are printed too. Raises `UsageError` if the recipe is wrong.
    """
    config = to_config(recipe)
    refuse_settings(config)
    settings = resolve(config)
    names = class_names(recipe)
    scored_classes(recipe, names)
    blank = replace(recipe, pretrained_backbone=None, start_from=None, reference_model=None)
    hub_weights = recipe.model is not None and recipe.model not in BUILDS
    with torch.device("cpu" if hub_weights else "meta"):
        network = build_network(blank, names)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    memory = state_bytes(network, config)
    del network
    steps = config.max_steps if config.max_steps > 0 else None
    data, notes, time = None, [], "no step was measured, since no data is named; give --data_dir"
    result = {
        "recipe": recipe.name,
        "model": recipe.model or recipe.model_config["model_type"],
        "classes": len(names),
        "parameters": parameters,
        "training_state_bytes": sum(memory.values()),
        "rule": settings.rule,
        "objective": settings.objective,
        "steps": steps,
        "epochs": config.num_train_epochs if steps is None else None,
    }
    if measure and (recipe.data_dir is not None or recipe.dataset == "street"):
        work, (used, of) = _measured(blank, recipe), peak_memory(config.device)
        data, notes, per_step = work.data, work.notes, work.stopwatch.per_step
        steps = result["steps"] = planned_steps(work.trainer, config)
        time = f"{expected(per_step, steps)} Most memory: {_size(used)} of the {of}."
        result |= {"seconds_per_step": per_step, "peak_memory_bytes": used}
    print(before(recipe, config, settings, parameters, data, notes, steps, time))
    parts = ", ".join(f"{name} {_size(number)}" for name, number in memory.items() if number)
    print(f"memory of the training state: {_size(sum(memory.values()))} ({parts}); activations come on top")
    return result


def _measured(blank: Recipe, recipe: Recipe) -> Work:
    """A few steps of the real training."""
    with tempfile.TemporaryDirectory() as directory:
        few = {**QUIET, "output_dir": directory, "max_steps": PROBE_STEPS}
        probe = replace(blank, options={**recipe.options, **few})
        work = prepare(probe, to_config(probe), overwrite=False, overrides={})
        work.trainer.train()
    return work


def state_bytes(network: torch.nn.Module, config) -> dict[str, int]:
    """Bytes of what training keeps besides activations: weights, gradients, teacher, optimizer, look-ahead copies."""
    parameters = sum(p.numel() * p.element_size() for p in network.parameters())
    weights = parameters + sum(b.numel() * b.element_size() for b in network.buffers())
    moments = {"adam": 2, "sgd": 1}
    optimizer = parameters * next((count for name, count in moments.items() if name in config.optim), 0)
    if config.optim == "sgd" and "momentum" not in (config.optim_args or ""):
        optimizer = 0
    settings = resolve(config)
    copies = 0
    if virtual_steps(settings.rule_in_force):
        copies = weights + (optimizer if settings.lookahead_state == "restore" else 0)
        copies += weights if settings.rule == "fst_w" else 0
    frozen = settings.feature_distance_weight or "reference" in OBJECTIVES[settings.objective].__dataclass_fields__
    reference = weights if frozen else 0
    return {
        "student": weights,
        "gradients": parameters,
        "teacher": weights,
        "optimizer": optimizer,
        "look-ahead": copies,
        "reference": reference,
    }


def class_names(recipe: Recipe) -> list[str]:
    """Names of the classes as far as they are known without the data."""
    names = recipe.dataset and ABOUT[recipe.dataset].classes
    if recipe.id2label is not None:
        names = read_id2label(recipe.id2label)
    if recipe.class_map is not None:
        *_, target = sides(recipe).values()
        return common_classes(recipe.class_map, names, ABOUT[target.name].classes)[0]
    if names:
        return list(names)
    count = BUILDS[recipe.model].num_labels if recipe.model in BUILDS else 2
    return [f"class {i}" for i in range(count)]


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
