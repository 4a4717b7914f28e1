"""What `train` was asked to do, gathered from its arguments."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overfocus.errors import TrainingError
from overfocus.training.recipe import Recipe

CLASSIFICATION, SEGMENTATION = "classification", "segmentation"
TASKS = (CLASSIFICATION, SEGMENTATION)
SUPERVISED, MASKED_AUTOENCODING = "supervised", "mae"
OBJECTIVES = (SUPERVISED, MASKED_AUTOENCODING)
DEFAULT_RECIPES = {SUPERVISED: "small", MASKED_AUTOENCODING: "mae", SEGMENTATION: "segmentation_small"}
_PICTURES_ALONE = ("mixup", "cutmix", "erasing", "auto_augment", "color_jitter", "patch_augmentation")
"""Settings of a recipe that change pictures and not their masks."""


@dataclass(frozen=True)
class Request:
    """The arguments of `train`, which says what each means.

    Raises:
        TrainingError: task, objective and recipe do not fit each other.
    """

    data: Path
    output: Path
    task: str
    model: str | None
    model_args: dict[str, Any]
    init: str | None
    tap: dict[str, Any] | None
    validation: Path | None
    objective: str
    recipe: Recipe
    image_size: int | None
    class_names: list[str] | None
    limit: int | None
    seed: int
    device: str | None
    workers: int | None
    checkpointing: bool
    compiled: bool
    log_every: int
    save_every: int | None
    validate_every: int | None
    trackers: Sequence[str] | None
    overwrite: bool
    progress: bool | None

    def __post_init__(self) -> None:
        if self.task != SEGMENTATION:
            return
        if self.objective != SUPERVISED:
            raise TrainingError(
                f"objective {self.objective} trains no {SEGMENTATION}; train it first and give its result to --init"
            )
        if given := [name for name in _PICTURES_ALONE if getattr(self.recipe, name)]:
            raise TrainingError(
                f"{given[0]} changes pictures but not their masks; set it to 0 or null, or take the recipe segmentation or "
                "segmentation_small"
            )


def require_known(task: str, objective: str) -> None:
    """Raise a `TrainingError` that lists what there is unless both are known."""
    for kind, name, known in (("task", task, TASKS), ("objective", objective, OBJECTIVES)):
        if name not in known:
            raise TrainingError(f"{kind} must be {' or '.join(known)}, got {name!r}")


def default_recipe(task: str, objective: str) -> str:
    """Name of the recipe where none is given."""
    return DEFAULT_RECIPES[SEGMENTATION if task == SEGMENTATION else objective]
