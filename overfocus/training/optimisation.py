"""Optimiser and learning rate, from timm, with the settings of a recipe."""

from typing import Any

import torch
from torch import nn

from overfocus.errors import TrainingError
from overfocus.training.recipe import Recipe

_FUSED = ("adam", "adamw")
"""Optimisers of torch that update all parameters in one kernel, on the CPU too."""


def make_optimizer(model: nn.Module, recipe: Recipe, images_per_step: int) -> torch.optim.Optimizer:
    """The recipe's optimiser at its highest learning rate.

    Raises:
        TrainingError: timm does not know it.
    """
    from timm.optim import create_optimizer_v2, list_optimizers

    known = [str(name) for name in list_optimizers()]
    if recipe.optimizer not in known:
        raise TrainingError(f"no optimiser {recipe.optimizer!r} in timm; there are {', '.join(known)}")
    options: dict[str, Any] = {"fused": True} if recipe.optimizer in _FUSED else {}
    if recipe.layer_decay is not None:
        options["layer_decay"] = recipe.layer_decay
    made: torch.optim.Optimizer = create_optimizer_v2(
        model, recipe.optimizer, lr=recipe.rate(images_per_step), weight_decay=recipe.weight_decay, **options
    )
    return made


class LearningRate:
    """The learning rate as a function of the step, so that a training that is continued needs nothing of the past."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> None:
        from timm.scheduler import create_scheduler_v2

        try:
            self._schedule, self.epochs = create_scheduler_v2(
                optimizer,
                recipe.schedule,
                num_epochs=recipe.epochs,
                warmup_epochs=recipe.warmup_epochs,  # type: ignore[arg-type]  # only multiplied
                warmup_lr=recipe.warmup_rate,
                min_lr=recipe.minimum_rate,
                cooldown_epochs=recipe.cooldown_epochs,
                step_on_epochs=False,
                updates_per_epoch=steps_per_epoch,
            )
        except (AssertionError, ValueError, KeyError) as error:
            raise TrainingError(f"timm has no schedule {recipe.schedule!r}; try cosine, poly, step, constant or none") from error
        if self._schedule is None and recipe.schedule != "none":
            raise TrainingError(f"timm has no schedule {recipe.schedule!r}; try cosine, poly, step, constant or none")
        self._optimizer = optimizer

    def set(self, step: int) -> float:
        """Set the rate of a step, counted from 0, in the optimiser; returns the highest of its groups."""
        if self._schedule is not None:
            self._schedule.step_update(num_updates=step)
        return max(float(group["lr"]) for group in self._optimizer.param_groups)
