"""What a recipe would do, without its data: sizes, steps, and one small step of the real trainer on noise."""

from __future__ import annotations

import tempfile
from dataclasses import replace

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, set_seed

from hf_fst.data.about import ABOUT
from hf_fst.data.folders import read_id2label
from hf_fst.evaluation.machine import peak_memory
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.models import BUILDS
from hf_fst.recipes.data import scored_classes
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.load import merge, to_config
from hf_fst.recipes.network import build_network
from hf_fst.recipes.progress import expected
from hf_fst.recipes.run import prepare
from hf_fst.recipes.sides import common_classes, sides
from hf_fst.recipes.summary import before
from hf_fst.training.settings import pace_words, resolve, virtual_steps
from hf_fst.training.trainer import FSTTrainer

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
SIDE = 64  # pixels of the small step
_RESNET = {"backbone_kwargs": {"layers": [1, 1, 1, 3], "channels": [4, 8, 16, 32], "stem_width": 4}}
_VIT = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "out_indices": [1, 2, 3, 4]}
_DPT = {"neck_hidden_sizes": [4, 8, 12, 16], "fusion_hidden_size": 8}
# named builds by the beginning of their names, as narrow as they get
NARROW = {
    "daformer-": {
        "hidden_size": 16,
        "backbone_config": {
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
        },
    },
    "deeplabv2-": _RESNET,
    "pspnet-": {**_RESNET, "hidden_size": 8},
    "deeplabv3plus-": {**_RESNET, "hidden_size": 8, "low_level_size": 8},
    "upernet-swin-": {
        "hidden_size": 16,
        "auxiliary_channels": 8,
        "backbone_config": {"embed_dim": 8, "depths": [2, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 4},
    },
    "upernet-beit-": {
        "hidden_size": 16,
        "auxiliary_channels": 8,
        "backbone_config": {**_VIT, "intermediate_size": 32, "image_size": SIDE},
    },
    "upernet-efficientnet-": {"hidden_size": 16},
    "fpn-efficientnet-": {"hidden_size": 16},
    "dpt-dinov2-": {**_DPT, "backbone_config": {**_VIT, "image_size": 56}},
    "dpt-dinov3-": {**_DPT, "backbone_config": {**_VIT, "intermediate_size": 32}},
}


class Noise(Dataset):
    """Random images and labels (SIDE,SIDE), a few, each always the same."""

    def __init__(self, num_labels: int, length: int):
        self.num_labels, self.length = num_labels, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(index)
        return {
            "pixel_values": torch.randn(3, SIDE, SIDE, generator=draw),
            "labels": torch.randint(self.num_labels, (SIDE, SIDE), generator=draw),
        }


def dry_run(recipe: Recipe, measure: bool = False) -> dict[str, object]:
    """Builds the model and its schedule, takes one step of the recipe's rule on noise, and prints the sizes.

    With `measure`, and where the recipe says where its data lies, the real training takes a few steps too, with random
    weights: the summary of the run then has their time and memory.

    The model of that step is narrow where it is a named build; its full size is counted without memory for weights.

    Returns:
        What is printed: parameters, bytes of the training state, steps, the loss of the step, and which model took it.

    Raises:
        UsageError: the recipe is wrong.
    """
    config = to_config(recipe)
    settings = resolve(config)
    names = _class_names(recipe)
    scored_classes(recipe, names)
    blank = replace(recipe, pretrained_backbone=None, start_from=None, reference_model=None)
    hub_weights = recipe.model is not None and recipe.model not in BUILDS
    with torch.device("cpu" if hub_weights else "meta"):
        network = build_network(blank, names)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    memory = state_bytes(network, config)
    steps = config.max_steps if config.max_steps > 0 else None
    del network

    small, narrow = _narrow(blank)
    loss, rates = _one_step(small, names)
    result = {
        "recipe": recipe.name,
        "model": recipe.model or recipe.model_config["model_type"],
        "classes": len(names),
        "parameters": parameters,
        "training_state_bytes": sum(memory.values()),
        "rule": settings.rule,
        "objective": settings.objective,
        "steps": steps,
        "epochs": None if steps else config.num_train_epochs,
        "loss": loss,
        "learning_rates": rates,
        "narrow": narrow,
    }
    print(f"{recipe.name}: {result['model']}, {len(names)} classes, {parameters:,} parameters")
    print(f"{pace_words(settings)}; objective {settings.objective}")
    parts = ", ".join(f"{name} {_size(number)}" for name, number in memory.items() if number)
    print(f"memory of the training state: {_size(sum(memory.values()))} ({parts}); activations come on top")
    unit = "optimizer steps" if steps else "epochs"
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    print(f"{steps or config.num_train_epochs} {unit}, {batch} labeled images a step and process")
    size = "a narrow copy of it" if narrow else "it"
    print(
        f"one step of {size} on {SIDE}x{SIDE} noise: loss {loss:.3f}, base learning rates {', '.join(map(str, rates))}"
    )
    if measure and (recipe.data_dir is not None or recipe.dataset == "street"):
        result |= _measured(blank, recipe, parameters)
    elif measure:
        print("no step was measured, since no data is named; give --data_dir")
    return result


def _measured(blank: Recipe, recipe: Recipe, parameters: int) -> dict[str, object]:
    """Seconds of a step and most memory of a few steps of the real training, printed with the summary of the run."""
    config = to_config(recipe)
    with tempfile.TemporaryDirectory() as directory:
        few = {**QUIET, "output_dir": directory, "max_steps": PROBE_STEPS}
        probe = replace(blank, options={**recipe.options, **few})
        work = prepare(probe, to_config(probe), overwrite=False, overrides={})
        work.trainer.train()
    per_step, (memory, of) = work.stopwatch.per_step, peak_memory(config.device)
    batch = work.trainer.get_total_train_batch_size(config)
    total = config.max_steps if config.max_steps > 0 else config.num_train_epochs * len(work.data.labeled) / batch
    time = f"{expected(per_step, round(total))} Most memory: {_size(memory)} of the {of}."
    print(before(recipe, config, work.trainer.settings, parameters, work.data, work.notes, time))
    return {"seconds_per_step": per_step, "peak_memory_bytes": memory}


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


def _class_names(recipe: Recipe) -> list[str]:
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


def _narrow(recipe: Recipe) -> tuple[Recipe, bool]:
    """The recipe with a narrow model where it names a build."""
    if recipe.model not in BUILDS:
        return recipe, False
    options = next(options for name, options in NARROW.items() if recipe.model.startswith(name))
    own = {key: value for key, value in (recipe.model_config or {}).items() if key not in options}
    return replace(recipe, model_config=merge(own, options)), True


def _one_step(recipe: Recipe, names: list[str]) -> tuple[float, list[float]]:
    """Loss of one optimizer step and the learning rates of the groups after it."""
    with tempfile.TemporaryDirectory() as directory:
        quiet = {
            **QUIET,
            "output_dir": directory,
            "num_train_epochs": 1,
            "dataloader_num_workers": 0,
            "per_device_train_batch_size": min(2, recipe.options.get("per_device_train_batch_size", 2)),
            "gradient_accumulation_steps": 1,
        }
        config = to_config(replace(recipe, options={**recipe.options, **quiet, "max_steps": -1}))
        set_seed(config.seed)
        size = config.per_device_train_batch_size * max(1, config.n_gpu)
        needs = OBJECTIVES[resolve(config).objective].needs_unlabeled
        trainer = FSTTrainer(
            model=build_network(recipe, names),
            args=config,
            train_dataset=Noise(len(names), size),
            unlabeled_dataset=Noise(len(names), size * config.unlabeled_per_labeled) if needs else None,
        )
        trainer.remove_callback(PrinterCallback)
        loss = trainer.train().training_loss
        return loss, sorted({float(f"{group['initial_lr']:.6g}") for group in trainer.optimizer.param_groups})


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
