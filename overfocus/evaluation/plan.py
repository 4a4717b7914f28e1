"""What an evaluation is to do, and the run folder of each model opened for it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from overfocus.analysis.description import describe_checkpoint, describe_versions
from overfocus.analysis.folder import RunFolder
from overfocus.checkpoints.loaded import LoadedModel
from overfocus.errors import RunError
from overfocus.evaluation.task import Task
from overfocus.run import FORMAT
from overfocus.segmentation.settings import InferenceSettings
from overfocus.version import __version__


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of an evaluation, as they stand in run.json; `evaluate` says what each means."""

    images: str
    corruptions: list[str]
    severities: list[int]
    made: str
    seed: int
    batch_size: int
    limit: int | None
    amp: bool
    device: str
    workers: int
    image_size: int | None
    clean: str | None = None
    """Where the clean pictures of a tree of corruptions lie."""
    inference: InferenceSettings | None = None
    """How pictures go through segmentation models; None for classifiers."""

    def __post_init__(self) -> None:
        for name, least in {"batch_size": 1, "workers": 0, "limit": 1, "image_size": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise RunError(f"{name} must be at least {least}, got {value}")

    def as_dict(self) -> dict[str, Any]:
        """For run.json."""
        settings = asdict(self)
        inference = settings.pop("inference")
        return settings | (inference or {})


@dataclass
class ModelUnderTest:
    """A model with its run folder."""

    loaded: LoadedModel
    folder: RunFolder
    info: dict[str, Any]

    @property
    def done(self) -> int:
        """Items whose predictions are on the disk."""
        return int(self.info["done"])

    @property
    def complete(self) -> bool:
        """Whether all are."""
        return bool(self.info["status"] == "complete")


def open_model(
    loaded: LoadedModel,
    path: Path,
    task: Task,
    images: Sequence[tuple[str, str | None]],
    settings: EvaluationSettings,
    *,
    overwrite: bool,
    main: bool,
) -> ModelUnderTest:
    """The evaluation that lies in a folder, or a new one.

    Raises:
        RunError: the folder holds something else, or the model does not fit the data.
    """
    description = task.describe(loaded)
    wanted = {
        "format": FORMAT,
        "kind": "evaluation",
        "overfocus": __version__,
        "settings": settings.as_dict(),
        "checkpoint": describe_checkpoint(loaded),
        **description.fixed,
        "images": [
            {"image": number, "name": name, "label": label, "width": None, "height": None}
            for number, (name, label) in enumerate(images)
        ],
    }
    folder = RunFolder(path)
    info = folder.open(wanted, overwrite=overwrite) if main else None
    if info is None:
        info = wanted | {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "status": "running",
            "done": 0,
            "layers": [],
            "coverage": [],
            "skipped": [],
            "displayed": [],
            **description.found,
            "versions": describe_versions(),
            "timing": {},
        }
        if main:
            folder.write_info(info)
    return ModelUnderTest(loaded, folder, info)
