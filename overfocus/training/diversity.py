"""How much the attention diversification loss (ADL) counts at each step."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from overfocus.errors import TrainingError
from overfocus.losses import Diversification, diversify
from overfocus.losses.attention_diversification import NoAttentionError
from overfocus.training.recipe import Recipe

PROBE_EVERY = 50
"""Steps between two measurements of the gradients, with `adl: auto`; each costs two more backward passes."""
FIRST_PROBES_EVERY = 5
"""The same until the first measurement that makes sense."""
HIGHEST = 100.0
"""Largest λ that "auto" takes in."""
_MEMORY = 0.7
"""Share of the earlier estimates in a new one, of the logarithm."""


class Diversity:
    """The weight λ of ADL: as the recipe says, rising during its warm-up; with "auto" from the gradients.

    "auto" measures now and then how long the gradients of the task's loss and of ADL are, over all parameters, and sets λ so
    that λ times the second is `adl_share` of the first.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self.recipe = recipe
        self.estimate: float | None = None
        """λ of "auto" before the warm-up's factor; None until it was measured."""
        self._warmup = recipe.adl_warmup * steps_per_epoch

    def weight(self, step: int) -> float:
        """λ at a step, counted from 0."""
        full = (self.estimate or 0.0) if self.recipe.adl == "auto" else float(self.recipe.adl)
        return full * (min(1.0, step / self._warmup) if self._warmup else 1.0)

    @contextmanager
    def watch(self, model: nn.Module, *, active: bool) -> Iterator["Watched | None"]:
        """What `model` attends to inside the block, where ADL takes part."""
        if not (active and self.recipe.diversified):
            yield None
            return
        with diversify(model, self.recipe.adl_layers, self.recipe.adl_threshold) as adl:
            yield Watched(adl, type(model).__name__)

    def due(self, step: int) -> bool:
        """Whether `measure` is to be called at this step."""
        every = FIRST_PROBES_EVERY if self.estimate is None else PROBE_EVERY
        return self.recipe.adl == "auto" and step % every == 0

    def measure(self, task_loss: Tensor, adl_loss: Tensor, model: nn.Module) -> Tensor:
        """The λ that the gradients of this batch ask for; the graph is kept."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        task, adl = (
            torch.stack([gradient.float().norm() for gradient in gradients if gradient is not None]).norm()
            for gradients in (
                torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in (task_loss, adl_loss)
            )
        )
        weight: Tensor = self.recipe.adl_share * task / adl.clamp_min(torch.finfo(torch.float32).tiny)
        return weight

    def learn(self, measured: float) -> None:
        """Take in the λ that the processes measured, averaged over them.

        Left out: what is no number, and λ beyond `HIGHEST`. Where attention is even, as before a model has learned anything, ADL
        has next to no gradient, and the λ to make up for that would be far too high as soon as it has one.
        """
        if not 0 < measured <= HIGHEST:
            return
        before = measured if self.estimate is None else self.estimate
        self.estimate = math.exp(_MEMORY * math.log(before) + (1 - _MEMORY) * math.log(measured))


class Watched:
    """ADL of a forward."""

    def __init__(self, adl: Diversification, model: str) -> None:
        self._adl = adl
        self._model = model

    def loss(self) -> Tensor:
        """The loss, before λ.

        Raises:
            TrainingError: the model has no such layers, or no attention between tokens at all.
        """
        try:
            return self._adl.loss()
        except ValueError as error:
            raise TrainingError(f"adl_layers: {error}") from error
        except NoAttentionError as error:
            raise TrainingError(
                f"adl: no layer of {self._model} attends between tokens, so there is nothing to diversify; leave adl at 0 or "
                "choose another model"
            ) from error
