"""Decide which architecture a checkpoint belongs to: what the user asked for, what the file says, what the shapes say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from overfocus.checkpoints.build import UNREGISTERED
from overfocus.checkpoints.hints import Hints
from overfocus.checkpoints.pretrained import require_known
from overfocus.errors import CheckpointError


@dataclass(frozen=True)
class Recognised:
    """An architecture and how it was found."""

    name: str
    found_by: str
    arguments: dict[str, Any] = field(default_factory=dict)
    """What the architecture is built with beside its defaults."""
    notes: list[str] = field(default_factory=list)


def recognise(tensors: Mapping[str, Tensor], hints: Hints, model: str | None, path: Path) -> Recognised:
    """Find the architecture; explicit name first, then metadata.

    Raises:
        CheckpointError: the name is unknown, or nothing names the architecture.
    """
    import overfocus.models  # noqa: F401  registers our architectures with timm

    named = [(name, origin) for name, origin in hints.architectures if name == UNREGISTERED or timm.is_model(name)]
    if model is not None:
        require_known(model)
        arguments = hints.model_args if any(name == model for name, _ in named) else {}
        return Recognised(model, "asked for", dict(arguments))
    if named:
        name, origin = named[0]
        return Recognised(name, origin, dict(hints.model_args))
    count = sum(tensor.numel() for tensor in tensors.values())
    raise CheckpointError(f"{path}: nothing names the architecture of its {count:,} values; name it with model= (--model)")
