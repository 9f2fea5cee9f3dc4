"""One optimizer step of a recipe's rule on noise, with a narrow network."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, set_seed

from hf_fst import FSTTrainer
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.models import BUILDS
from hf_fst.recipes.dry_run import QUIET, class_names
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.load import merge, to_config
from hf_fst.recipes.network import build_network
from hf_fst.training.settings import resolve
from tests.models.tiny import TINY

SIDE = 64  # pixels of the small step


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


def narrow(recipe: Recipe) -> Recipe:
    """The recipe with a narrow model where it names a build."""
    if recipe.model not in BUILDS:
        return recipe
    options = TINY[max(TINY, key=lambda name: len(os.path.commonprefix([name, recipe.model])))]
    own = {key: value for key, value in (recipe.model_config or {}).items() if key not in options}
    return replace(recipe, model_config=merge(own, options))


def one_step(recipe: Recipe) -> tuple[float, list[float]]:
    """Loss of one optimizer step and the learning rates of the groups after it."""
    names = class_names(recipe)
    recipe = narrow(replace(recipe, pretrained_backbone=None, start_from=None, reference_model=None))
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
