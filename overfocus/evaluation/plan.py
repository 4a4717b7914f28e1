"""What an evaluation is to do, and the run folder of each model opened for it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from overfocus.analysis.description import describe_checkpoint, describe_versions
from overfocus.analysis.folder import RunFolder
from overfocus.analysis.labels import IMAGENET_CLASSES, match_labels
from overfocus.analysis.pixels import describe_pixels
from overfocus.checkpoints.load import LoadedModel
from overfocus.errors import RunError
from overfocus.evaluation.layouts import EvaluationData
from overfocus.run import FORMAT
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

    def __post_init__(self) -> None:
        for name, least in {"batch_size": 1, "workers": 0, "limit": 1, "image_size": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise RunError(f"{name} must be at least {least}, got {value}")


@dataclass
class ModelUnderTest:
    """A model with its run folder."""

    loaded: LoadedModel
    folder: RunFolder
    info: dict[str, Any]
    class_ids: dict[str, int]
    allowed: Int[Tensor, " classes"] | None
    """Classes that predictions are restricted to."""

    @property
    def done(self) -> int:
        """Items whose predictions are on the disk."""
        return int(self.info["done"])

    @property
    def complete(self) -> bool:
        """Whether all are."""
        return bool(self.info["status"] == "complete")

    @property
    def imagenet(self) -> bool:
        """Whether the classes are ImageNet's, and the pictures are labelled with them."""
        return self.loaded.num_classes == IMAGENET_CLASSES and bool(self.info["imagenet_labels"])


def open_model(
    loaded: LoadedModel,
    path: Path,
    data: EvaluationData,
    images: Sequence[tuple[str, str]],
    settings: EvaluationSettings,
    *,
    overwrite: bool,
    main: bool,
) -> ModelUnderTest:
    """The evaluation that lies in a folder, or a new one.

    Raises:
        RunError: the folder holds something else, or no label means a class of the model.
    """
    labels = list(dict.fromkeys(label for _, label in images))
    if loaded.num_classes == 0:
        raise RunError(f"{loaded.source}: expected a classifier, but the checkpoint gives features")
    classes = match_labels(labels, loaded.class_names, loaded.num_classes)
    if not classes.ids:
        names = ", ".join((classes.names or [])[:3]) or "not named"
        raise RunError(
            f"{loaded.source}: none of the labels ({', '.join(labels[:3])}) means one of its {loaded.num_classes} classes "
            f"({names}); name the folders after the classes or by their numbers"
        )
    wanted = {
        "format": FORMAT,
        "kind": "evaluation",
        "overfocus": __version__,
        "settings": asdict(settings),
        "checkpoint": describe_checkpoint(loaded),
        "pixels": describe_pixels(loaded.preprocess),
        "class_names": classes.names,
        "images": [
            {"image": number, "name": name, "label": label, "width": None, "height": None}
            for number, (name, label) in enumerate(images)
        ],
    }
    folder = RunFolder(path)
    info = folder.open(wanted, overwrite=overwrite) if main else None
    if info is None:
        unknown = [label for label in labels if label not in classes.ids]
        notes = (
            [f"{len(unknown)} of {len(labels)} labels mean no class of the model ({', '.join(unknown[:3])})"] if unknown else []
        )
        if data.synsets is not None:
            notes.append(f"{data.layout}: predictions are restricted to its {len(data.synsets)} classes")
        info = wanted | {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "status": "running",
            "done": 0,
            "layers": [],
            "coverage": [],
            "skipped": [],
            "displayed": [],
            "imagenet_labels": all(_is_synset(label) for label in labels),
            "notes": notes,
            "versions": describe_versions(),
            "timing": {},
        }
        if main:
            folder.write_info(info)
    return ModelUnderTest(loaded, folder, info, classes.ids, _allowed(loaded, data, settings.device))


def _allowed(loaded: LoadedModel, data: EvaluationData, device: str) -> Int[Tensor, " classes"] | None:
    if data.synsets is None:
        return None
    ids = match_labels(data.synsets, loaded.class_names, loaded.num_classes).ids
    return torch.from_numpy(np.array(sorted(ids.values()), np.int64)).to(device)


def _is_synset(label: str) -> bool:
    return len(label) == 9 and label[0] == "n" and label[1:].isdecimal()
