"""`train`: from a data set and a recipe to a checkpoint that `analyze` takes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfocus.errors import TrainingError
from overfocus.training.extra import require_extra
from overfocus.training.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Training:
    """A finished training."""

    path: Path
    """Its folder."""

    @property
    def checkpoint(self) -> Path:
        """The trained model, for `load_model` and `analyze`."""
        return self.path / "model.safetensors"

    @property
    def log(self) -> "pd.DataFrame":
        """One row every few steps and one at the end of each epoch; the columns are those of `overfocus.training.log`."""
        from overfocus.training.log import read_log

        return read_log(self.path / "log.csv")

    @property
    def info(self) -> dict[str, Any]:
        """The content of training.json: settings, status, versions, notes."""
        content: dict[str, Any] = json.loads((self.path / "training.json").read_text(encoding="utf-8"))
        return content


def train(
    data: str | Path,
    output: str | Path = "overfocus-training",
    *,
    task: str = "classification",
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    init: str | Path | None = None,
    tap: int | None = None,
    tap_pooling: str = "average",
    validation: str | Path | None = None,
    objective: str = "supervised",
    recipe: str | Path | Recipe | None = None,
    changes: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    class_names: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str | None = None,
    workers: int | None = None,
    checkpointing: bool = False,
    compiled: bool = False,
    log_every: int = 50,
    save_every: int | None = None,
    validate_every: int | None = 1,
    trackers: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Training:
    """Train or fine-tune a classifier or segmentation model; write checkpoints, a log, curves and the trained model to a folder.

    Interrupted at any moment, the same call continues from the last checkpoint; in one process its weights end the same, bit
    for bit, as those of a training that was never interrupted. Started by `accelerate launch` (on processors `torchrun`), every
    process takes its share of each step. Two processes then train as one with twice the batch, but for what looks at a batch as
    a whole: mixup and cutmix pair the pictures of one process, and batch norms, as in TAP's predictors, take the statistics of
    one process.

    Args:
        data: a folder of class folders (or of `train` and `val` with class folders), IDX files, or a Hugging Face data set; for
            segmentation `images/` beside `masks/`, Cityscapes or ACDC (`overfocus.datasets.open_segmented_images`).
        output: the folder of the training.
        task: "classification", or "segmentation": a class for every pixel.
        model: a name of timm or overfocus, or "VisionTransformer"; None takes the architecture of `init`. For segmentation it
            gets the SegFormer head (`tap_fan_base_16_p4_hybrid` and `tap_fan_base_16_p4_hybrid_segformer` are the same).
        model_args: arguments of the model, such as {"patch_size": 4, "embed_dim": 96}.
        init: a checkpoint or timm name whose weights to start from; a classifier's go into the backbone of a segmentation model.
        tap: put token-aware average pooling with this number of branches in front of the attention; for a model that has it,
            the number of its branches. On top of trained weights it starts as the identity.
        tap_pooling: "average", "max", "gaussian" or "learned".
        validation: data to validate with; None takes the validation split of `data` if it has one.
        objective: "supervised", or "mae": a masked autoencoder (He et al. 2022), which needs no labels; its result is the
            encoder, for `init`. The decoder is the recipe's `decoder_width`, `decoder_depth` and `masking`.
        recipe: "fan", "rvt", "finetune", "small", "mae", "segmentation" (the paper's), "segmentation_small", a YAML file, or a
            `Recipe`; None takes "small", for a masked autoencoder "mae", for segmentation "segmentation_small".
        changes: settings of the recipe to replace, by name.
        image_size: side of the model's input in pixels; None takes the model's own.
        class_names: names of the classes, for data that only number them.
        limit: train on so many pictures only, spread evenly over the data set.
        seed: of the weights, the order of the pictures, augmentation and dropout.
        device: "cpu" keeps to the processor; None takes what accelerate finds.
        workers: processes that read and augment pictures; None: by the number of cores; 0 does it in this one.
        checkpointing: keep fewer activations and compute them again in the backward pass (less memory, a third more time).
        compiled: compile the model with torch.compile.
        log_every: steps between two rows of the log.
        save_every: steps between two checkpoints; None: one at the end of each epoch. There is always one there.
        validate_every: epochs between two validations; None never validates.
        trackers: names of accelerate's trackers, such as "tensorboard" or "wandb"; None takes tensorboard if it is installed.
        overwrite: start again, replacing the training that lies in `output`.
        progress: show a progress bar; None shows it on a terminal.

    Raises:
        TrainingError: a setting, the architecture or the folder does not fit, the loss is no number, memory ran out.
        ImageError: the data set or a picture cannot be read.
        CheckpointError: `init` cannot be read.
    """
    require_extra()
    if model is None and init is None:
        raise TrainingError("expected an architecture or weights to start from; give --model NAME or --init CHECKPOINT")
    positive = {"limit": limit, "log_every": log_every, "save_every": save_every, "validate_every": validate_every, "tap": tap}
    for name, value in positive.items():
        if value is not None and value < 1:
            raise TrainingError(f"{name} must be at least 1, got {value}")
    if seed < 0:
        raise TrainingError(f"seed must be 0 or a positive number, got {seed}")
    from overfocus.training.request import Request, default_recipe, require_known
    from overfocus.training.session import run_session

    require_known(task, objective)
    if recipe is None:
        recipe = default_recipe(task, objective)
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    chosen = chosen.changed(changes or {})

    request = Request(
        data=Path(data),
        output=Path(output),
        task=task,
        model=model,
        model_args=dict(model_args or {}),
        init=None if init is None else str(init),
        tap=None if tap is None else {"branches": tap, "pooling": tap_pooling},
        validation=None if validation is None else Path(validation),
        objective=objective,
        recipe=chosen,
        image_size=image_size,
        class_names=None if class_names is None else list(class_names),
        limit=limit,
        seed=seed,
        device=device,
        workers=workers,
        checkpointing=checkpointing,
        compiled=compiled,
        log_every=log_every,
        save_every=save_every,
        validate_every=validate_every,
        trackers=trackers,
        overwrite=overwrite,
        progress=progress,
    )
    run_session(request)
    return Training(Path(output))
