"""`FSTTrainer` with the optimizer and the schedule of a recipe."""

from __future__ import annotations

import torch

from hf_fst.models.param_groups import parameter_groups, poly_schedule
from hf_fst.recipes.keys import Recipe
from hf_fst.training.trainer import FSTTrainer


class RecipeTrainer(FSTTrainer):
    """Makes parameter groups and the poly schedule where the recipe has them; all else is `FSTTrainer`.

    Args:
        recipe: gives `head_lr_multiplier`, `no_decay`, `schedule` and `poly_power`.
        kwargs: those of `FSTTrainer`.
    """

    def __init__(self, recipe: Recipe, **kwargs):
        self.recipe = recipe
        super().__init__(**kwargs)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The optimizer of `optim` over the recipe's groups."""
        recipe = self.recipe
        if self.optimizer is None and (recipe.head_lr_multiplier is not None or recipe.no_decay is not None):
            network = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, network)
            multiplier = 1.0 if recipe.head_lr_multiplier is None else recipe.head_lr_multiplier
            groups = parameter_groups(
                network, self.args.learning_rate, self.args.weight_decay, multiplier, recipe.no_decay or ()
            )
            self.optimizer = optimizer_class(groups, **options)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """The schedule of the recipe, counted in optimizer steps."""
        if self.lr_scheduler is None and self.recipe.schedule == "poly":
            self.lr_scheduler = poly_schedule(
                self.optimizer if optimizer is None else optimizer,
                num_training_steps,
                self.recipe.poly_power,
                self.args.get_warmup_steps(num_training_steps),
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)
