"""`train`: from a data set and a recipe to a checkpoint that `analyze` takes."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from overfocus.errors import TrainingError
from overfocus.runs.description import TrainingDescription, read_description
from overfocus.settings import takes, typed
from overfocus.training.settings import TrainSettings

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Training:
    """A finished training."""

    path: Path
    """Its folder."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", _folder(self.path))

    @property
    def checkpoint(self) -> Path:
        """The trained model, for `load_model` and `analyze`."""
        return self.path / "model.safetensors"

    @property
    def log(self) -> "pd.DataFrame":
        """One row every few steps and one at the end of each epoch; the columns are explained in `overfocus.curves`."""
        from overfocus.curves import read_log

        return read_log(self.path / "log.csv")

    @property
    def info(self) -> TrainingDescription:
        """The content of training.json: settings, status, versions, notes.

        Raises:
            TrainingError: it is missing or damaged.
        """
        return read_description(self.path / "training.json", TrainingDescription)


@typed(TrainingError)
def _folder(path: str | Path) -> Path:
    return Path(path)


@takes(TrainSettings)
def train(settings: TrainSettings) -> Training:
    """Train or fine-tune a classifier or segmentation model; write checkpoints, a log, curves and the trained model to a folder.

    Interrupted at any moment, the same call continues from the last checkpoint; in one process its weights end the same, bit
    for bit, as those of a training that was never interrupted. Started by `accelerate launch` (on processors `torchrun`), every
    process takes its share of each step. Two processes then train as one with twice the batch, but for what looks at a batch as
    a whole: mixup and cutmix pair the images of one process, and batch norms, as in TAP's predictors, take the statistics of
    one process.

    Raises:
        TrainingError: a setting, the architecture or the folder does not fit, the loss is no number, memory ran out.
        ImageError: the data set or an image cannot be read.
        CheckpointError: the checkpoint to start from cannot be read.
    """
    require_extra()
    recipe = settings.whole_recipe()

    from overfocus.training.session import run_session

    run_session(settings, recipe)
    return Training(Path(settings.output))


PACKAGES = ("accelerate", "torchmetrics", "yaml")


def require_extra() -> None:
    """Raise a `TrainingError` that says what to install unless the extra `train` is there."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise TrainingError(f'training and evaluation need {", ".join(missing)}; install them: pip install "overfocus[train]"')
