"""What a training was asked to do, as it stands in training.json; a continued one is compared with it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from overfocus.errors import TrainingError
from overfocus.training.architecture import Architecture
from overfocus.training.recipe import Recipe


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that the result depends on."""

    recipe: Recipe
    architecture: Architecture
    task: str
    objective: str
    init: str | None
    seed: int
    images: int
    """Pictures of the data set that are used."""
    class_names: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int, int]
    processes: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content

    def require_same(self, there: dict[str, Any], folder: Path) -> None:
        """Raise a `TrainingError` that says what differs from the settings of the training that lies in the folder."""
        changed = []
        for name, value in self.as_dict().items():
            before = there.get(name)
            if before == value:
                continue
            if isinstance(value, dict) and isinstance(before, dict):
                changed += [
                    f"{key} {before.get(key)} there, {entry} asked for"
                    for key, entry in value.items()
                    if before.get(key) != entry
                ]
            else:
                changed.append(f"{name} {_short(before)} there, {_short(value)} asked for")
        if changed:
            raise TrainingError(
                f"{folder}: holds another training ({'; '.join(changed)}); choose another output or overwrite (--overwrite)"
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}…"
