"""The training loop: learning rate, steps, log, validation and checkpoints, from wherever the last session stopped."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from overfocus.checkpoints.index import is_head
from overfocus.curves import Log
from overfocus.errors import TrainingError
from overfocus.monitoring import Monitor
from overfocus.text import one_line
from overfocus.training.data import STEP, Batch, derived_seed, seed_all
from overfocus.training.folder import write_state
from overfocus.training.objective import Diversity, Objective
from overfocus.training.settings import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator
    from timm.utils import ModelEmaV3


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
        raise TrainingError(f"timm has no optimiser {recipe.optimizer!r}; choose from {', '.join(known)}")
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


@dataclass(frozen=True)
class Pace:
    """How often things happen, in steps."""

    steps_per_epoch: int
    steps: int
    log_every: int
    save_every: int
    validate_every: int | None
    """None: never."""


class Trainer:
    """Takes steps with a model that `accelerator` has prepared.

    The state of a training is the weights, their average, the optimiser, the scaler, λ of "auto", the sums of the row of the
    log in work, and the number of the step: random numbers, learning rate and order of the images follow from the step.
    """

    def __init__(
        self,
        accelerator: "Accelerator",
        model: nn.Module,
        *,
        bare: nn.Module,
        average: "ModelEmaV3 | None",
        optimizer: Any,
        rate: LearningRate,
        recipe: Recipe,
        objective: Objective,
        diversity: Diversity,
        pace: Pace,
        seed: int,
        folder: Path,
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.bare = bare
        self.average = average
        self.optimizer = optimizer
        self.rate = rate
        self.recipe = recipe
        self.objective = objective
        self.diversity = diversity
        self.pace = pace
        self.seed = seed
        self.folder = folder
        self.watch: Monitor | None = None
        """What watches the attention; it does not change the training."""
        self._attention: dict[str, float] = {}
        """Measured since the last row of the log."""
        self.step = 0
        self.saved = 0
        """Step of the checkpoint; 0 if there is none."""
        self._sums = torch.zeros(5, device=accelerator.device)
        """Loss and ADL, summed over forwards, and the forwards; right answers to the last part of each batch, and answers."""

    @property
    def result(self) -> nn.Module:
        """The model to validate and save: the averaged one where there is one."""
        return self.bare if self.average is None else self.average.module

    def state(self) -> dict[str, Any]:
        """Everything that changes, for a checkpoint."""
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "state_dict": self.bare.state_dict(),
            "state_dict_ema": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "adl_estimate": self.diversity.estimate,
            "sums": self._sums,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            TrainingError: it is that of another model, or of other settings.
        """
        try:
            self._restore(state)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrainingError(
                f"{self.folder / 'checkpoint.pt'}: the checkpoint is that of another model or other settings "
                f"({one_line(error, 200)}); start from the beginning with --overwrite, or choose another output"
            ) from error

    def _restore(self, state: dict[str, Any]) -> None:
        if not 0 <= int(state["step"]) <= self.pace.steps:
            raise ValueError(f"step {int(state['step'])} of {self.pace.steps}")
        self.bare.load_state_dict(state["state_dict"])
        if self.average is not None:
            self.average.module.load_state_dict(state["state_dict_ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.diversity.estimate = state["adl_estimate"]
        self._sums.copy_(state["sums"])
        self.step = self.saved = int(state["step"])

    def run(
        self,
        batches: Iterator[Batch],
        validate: Callable[[nn.Module], dict[str, float]],
        show: Callable[[dict[str, Any]], None],
        log: Log | None,
    ) -> None:
        """Take the steps that are left.

        Raises:
            ImageError: an image cannot be read.
            TrainingError: the loss is no number, or memory ran out; the last checkpoint is kept.
        """
        if self.watch is not None:
            self.watch.begin()
        began, waited, taken = time.perf_counter(), 0.0, 0
        while self.step < self.pace.steps:
            rate = self.rate.set(self.step)
            waited += self._take_step(batches)
            self.step += 1
            taken += 1
            self._look()
            epoch_ends = self.step % self.pace.steps_per_epoch == 0 or self.step == self.pace.steps
            logs = epoch_ends or self.step % self.pace.log_every == 0
            saves = epoch_ends or self.step % self.pace.save_every == 0
            if logs or saves:
                self._require_numbers("loss", self._sums)
            if logs:
                seconds = max(time.perf_counter() - began, 1e-9)  # clocks may be coarse
                row = (
                    self._row(rate)
                    | self._attention
                    | {
                        "images_per_second": taken * self.images_per_step / seconds,
                        "waiting": waited / seconds,
                    }
                )
                self._attention = {}
                validates = self.pace.validate_every is not None and self.step % self.pace.validate_every == 0
                if validates or (self.step == self.pace.steps and self.pace.validate_every is not None):
                    row |= validate(self.result)
                    self._require_numbers("validation loss", torch.tensor(row["validation_loss"]))
                if log is not None:
                    log.add(row)
                self.accelerator.log({name: value for name, value in row.items() if name != "step"}, step=self.step)
                show(row)
                began, waited, taken = time.perf_counter(), 0.0, 0
            if saves:
                self._require_numbers("weights", torch.stack([weights.detach().sum() for weights in self.bare.parameters()]))
                self.save()

    def _look(self) -> None:
        """Measure the attention where it is due; every process does, as a sharded model needs all of them."""
        if self.watch is None or (row := self.watch(step=self.step)) is None:
            return
        self._attention = {name: value for name, value in row.items() if name != "step" and math.isfinite(value)}
        if not self.accelerator.is_main_process:
            return
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images") and self.watch.draws:
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"attention received": self.watch.heat_maps()[None]}, step=self.step, **layout)

    def save(self) -> None:
        """Replace the checkpoint."""
        if self.accelerator.is_main_process:
            write_state(self.folder / "checkpoint.pt", self.state())
        self.saved = self.step

    @property
    def images_per_step(self) -> int:
        """Images of all processes."""
        return self.recipe.batch_size * self.recipe.accumulation * int(self.accelerator.num_processes)

    def _take_step(self, batches: Iterator[Batch]) -> float:
        """One step of the optimiser; returns the seconds that were spent waiting for images."""
        waited = 0.0
        self.model.train()
        for number in range(self.recipe.accumulation):
            began = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - began
            if isinstance(batch, Exception):
                raise batch
            images, targets = (tensor.to(self.accelerator.device, non_blocking=True) for tensor in batch)
            seed_all(derived_seed(self.seed, STEP, self.step, number, self.accelerator.process_index))
            self._accumulate(images, targets, last=number == self.recipe.accumulation - 1)
        if self.recipe.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.bare, step=self.step + 1)
        return waited

    def _accumulate(self, images: Tensor, targets: Tensor, *, last: bool) -> None:
        """Add the gradients of one batch."""
        parts = self.objective.parts(images, targets)
        network = self.objective.network(self.bare)
        for number, part in enumerate(parts):
            synchronises = last and number == len(parts) - 1
            with nullcontext() if synchronises else self.accelerator.no_sync(self.model):
                with self.diversity.watch(network, active=part.diversified) as adl:
                    output = self.model(part.inputs)
                    task = self.objective.loss(output, part.targets)
                    diversification = None if adl is None else adl.loss()
                loss = task
                if diversification is not None:
                    if number == len(parts) - 1 and last and self.diversity.due(self.step):
                        measured = self.diversity.measure(task, diversification, network)
                        self.diversity.learn(float(self.accelerator.reduce(measured, "mean")))
                    loss = task + self.diversity.weight(self.step) * diversification
                self.accelerator.backward(loss / self.recipe.accumulation)
        with torch.no_grad():
            adl_value = torch.zeros_like(task) if diversification is None else diversification
            losses = torch.stack([task, adl_value, torch.ones_like(task)]).float()
            self._sums += torch.cat([losses, self.objective.right(output, targets)])

    def _require_numbers(self, name: str, values: Tensor) -> None:
        """Raise a `TrainingError` unless all values are finite."""
        if not bool(values.isfinite().all()):
            first = None if self.watch is None else self.watch.find_nan()
            if first is not None:
                name = f"{name}, after the output of {first},"
            kept = f"the checkpoint of step {self.saved} is kept" if self.saved else "there is no checkpoint yet"
            raise TrainingError(
                f"the {name} became {float(values.sum())} by step {self.step}; {kept}; try another output (or --overwrite) with "
                "a lower learning_rate, more warmup_epochs, clip_norm 1 or float32"
            )

    def _row(self, rate: float) -> dict[str, Any]:
        """The row of the log since the one before, over all processes."""
        sums = self.accelerator.reduce(self._sums, "sum")
        loss, adl, forwards, right, answers = sums.tolist()
        self._sums.zero_()
        diversified = self.recipe.diversified
        return {
            "step": self.step,
            "epoch": self.step / self.pace.steps_per_epoch,
            "loss": loss / forwards,
            "adl": adl / forwards if diversified else None,
            "adl_weight": self.diversity.weight(self.step - 1) if diversified else None,
            "accuracy": right / answers if answers else None,
            "learning_rate": rate,
        }


@torch.no_grad()
def validate(accelerator: "Accelerator", objective: Objective, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """What the objective says of the batches of all processes.

    Raises:
        ImageError: an image cannot be read.
    """
    model.eval()
    sums = torch.zeros(objective.sums, dtype=torch.float64)
    for batch in batches:
        if isinstance(batch, Exception):
            raise batch
        images, targets = (tensor.to(accelerator.device, non_blocking=True) for tensor in batch)
        with accelerator.autocast():
            output = model(images)
        sums += objective.score(output, targets).cpu()
    if accelerator.num_processes > 1:
        sums = accelerator.reduce(sums.to(accelerator.device), "sum").cpu()
    return objective.summarise(sums)
