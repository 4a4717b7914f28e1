"""Optimiser and learning rate, from timm, with the settings of a recipe."""

from functools import partial
from typing import Any

import torch
from torch import nn

from overfocus.checkpoints.index import is_head
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
    if recipe.head_rate != 1:
        options["param_group_fn"] = partial(_groups, recipe=recipe)
    elif recipe.layer_decay is not None:
        options["layer_decay"] = recipe.layer_decay
    made: torch.optim.Optimizer = create_optimizer_v2(
        model, recipe.optimizer, lr=recipe.rate(images_per_step), weight_decay=recipe.weight_decay, **options
    )
    return made


def _groups(model: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups of parameters as timm makes them, those of the head with a learning rate of its own."""
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    options: dict[str, Any] = {"weight_decay": recipe.weight_decay}
    if hasattr(model, "no_weight_decay"):
        options["no_weight_decay_list"] = model.no_weight_decay()
    if recipe.layer_decay is None:
        groups = param_groups_weight_decay(model, **options)
    else:
        groups = param_groups_layer_decay(model, layer_decay=recipe.layer_decay, **options)
    head = {id(parameter) for name, parameter in model.named_parameters() if is_head(name)}
    split = []
    for group in groups:
        for inside, factor in ((False, 1.0), (True, recipe.head_rate)):
            parameters = [parameter for parameter in group["params"] if (id(parameter) in head) == inside]
            if parameters:
                # timm's schedules multiply by lr_scale
                split.append(group | {"params": parameters, "lr_scale": group.get("lr_scale", 1.0) * factor})
    return split


class LearningRate:
    """The learning rate as a function of the step, so that a training that is continued needs nothing of the past."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int) -> None:
        from timm.scheduler import create_scheduler_v2

        unit = steps_per_epoch if recipe.iterations is None else 1
        warmup = recipe.warmup_epochs * steps_per_epoch if recipe.warmup_iterations is None else float(recipe.warmup_iterations)
        options: dict[str, Any] = {"decay_rate": recipe.power} if recipe.schedule == "poly" else {}
        try:
            self._schedule, length = create_scheduler_v2(
                optimizer,
                recipe.schedule,
                num_epochs=recipe.iterations or recipe.epochs or 0,
                warmup_epochs=warmup / unit,  # type: ignore[arg-type]  # only multiplied
                warmup_lr=recipe.warmup_rate,
                min_lr=recipe.minimum_rate,
                cooldown_epochs=recipe.cooldown_epochs * steps_per_epoch // unit,
                step_on_epochs=False,
                updates_per_epoch=unit,
                **options,
            )
        except (AssertionError, ValueError, KeyError) as error:
            raise TrainingError(f"timm has no schedule {recipe.schedule!r}; try cosine, poly, step, constant or none") from error
        if self._schedule is None and recipe.schedule != "none":
            raise TrainingError(f"timm has no schedule {recipe.schedule!r}; try cosine, poly, step, constant or none")
        self.steps = length * unit
        """Steps of the whole training."""
        self._optimizer = optimizer
        if recipe.schedule != "none" and warmup >= self.steps:
            raise TrainingError(
                f"a warm-up of {warmup:g} steps leaves nothing of {self.steps}; lower warmup_iterations (or warmup_epochs) or "
                "train longer"
            )

    def set(self, step: int) -> float:
        """Set the rate of a step, counted from 0, in the optimiser; returns the highest of its groups."""
        if self._schedule is not None:
            self._schedule.step_update(num_updates=step)
        return max(float(group["lr"]) for group in self._optimizer.param_groups)
