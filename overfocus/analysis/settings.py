"""What `analyze` was asked to do, checked once at the start and compared when a run is continued."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from overfocus.corruptions import check_severity, resolve_corruptions
from overfocus.errors import RunError

DEFAULT_CORRUPTIONS = ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression")
"""One of each group: noise, blur, weather, digital."""
DEFAULT_SEVERITIES = (1, 3, 5)

DEFAULT_BATCH_SIZE = 16

MAY_CHANGE = ("images", "workers", "strict", "max_pixels")
"""Settings that a continued run may change: its tables do not depend on them. The images themselves are compared one by one."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run, as they stand in run.json; `analyze` says what each means."""

    images: str | list[str] | None
    corruptions: list[str]
    severities: list[int]
    seed: int
    batch_size: int
    top_fraction: float
    layers: list[int] | None
    per_head: bool
    limit: int | None
    amp: bool
    device: str
    workers: int
    strict: bool
    image_size: int | None
    displayed: int
    maps_limit: int
    max_pixels: int

    def __post_init__(self) -> None:
        lowest = {"batch_size": 1, "workers": 0, "displayed": 0, "maps_limit": 0, "max_pixels": 1, "limit": 1, "image_size": 1}
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise RunError(f"{name} must be at least {least}, got {value}")
        if not 0 < self.top_fraction <= 1:
            raise RunError(f"top_fraction must be above 0 and at most 1, got {self.top_fraction}")

    def as_dict(self) -> dict[str, Any]:
        """For run.json."""
        return asdict(self)


def choose_settings(
    *,
    images: str | Path | Sequence[str | Path] | None,
    corruptions: str | Sequence[str] | None,
    severities: int | Sequence[int] | None,
    device: torch.device,
    batch_size: int,
    amp: bool,
    workers: int | None,
    seed: int,
    layers: Sequence[int] | None,
    per_head: bool,
    limit: int | None,
    top_fraction: float,
    image_size: int | None,
    displayed: int,
    maps_limit: int,
    max_pixels: int,
    strict: bool,
) -> Settings:
    """The settings that the arguments of `analyze` mean.

    Raises:
        CorruptionError: a corruption or severity does not exist.
        RunError: a setting is out of range.
    """
    return Settings(
        images=describe_source(images),
        corruptions=choose_corruptions(corruptions),
        severities=choose_severities(severities),
        seed=int(seed),
        batch_size=int(batch_size),
        top_fraction=float(top_fraction),
        layers=None if layers is None else [int(layer) for layer in layers],
        per_head=bool(per_head),
        limit=limit,
        amp=bool(amp),
        device=str(device),
        workers=choose_workers(workers),
        strict=bool(strict),
        image_size=image_size,
        displayed=displayed,
        maps_limit=maps_limit,
        max_pixels=max_pixels,
    )


def choose_corruptions(names: str | Sequence[str] | None) -> list[str]:
    """The corruptions asked for by name or group, or the default ones."""
    return resolve_corruptions(DEFAULT_CORRUPTIONS if names is None else names)


def choose_severities(severities: int | Sequence[int] | None) -> list[int]:
    """The severities asked for, rising, or the default ones."""
    chosen = DEFAULT_SEVERITIES if severities is None else [severities] if isinstance(severities, int) else severities
    for severity in chosen:
        check_severity(severity)
    return sorted({int(severity) for severity in chosen})


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or a CUDA device where there is one.

    Raises:
        RunError: there is no such device.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"device {str(device)!r} cannot be used ({reason}); try cpu, cuda or cuda:1") from None
    return chosen


def choose_workers(workers: int | None) -> int:
    """Worker processes: as asked for, or one per core that is free beside the model's own thread, at most four."""
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores - 1))


def describe_source(images: str | Path | Sequence[str | Path] | None) -> str | list[str] | None:
    """What was given as images, for run.json."""
    return str(images) if isinstance(images, str | Path) else None if images is None else [str(part) for part in images]
