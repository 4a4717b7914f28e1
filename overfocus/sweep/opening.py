"""What comes before a sweep: models loaded, images found, run folders opened, and what run.json says of all that."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from overfocus.checkpoints.loaded import LoadedModel, hash_weights
from overfocus.errors import ImageError, RunError
from overfocus.images.sources import ImageSource
from overfocus.memory import out_of_memory_as
from overfocus.probes.probe import Array
from overfocus.processes import Processes
from overfocus.runs.description import CheckpointEntry, ImageEntry, RunDescription
from overfocus.runs.folder import RunFolder
from overfocus.sweep.sweep import Subject, Work, rows_of

_PACKAGES = (
    "torch", "timm", "numpy", "scipy", "scikit-image", "numba", "opencv-python", "opencv-python-headless",
    "imagecorruptions-imaug", "pillow", "pandas", "pyarrow",
)  # fmt: skip


def describe_checkpoint(loaded: "LoadedModel") -> CheckpointEntry:
    """The checkpoint, how it was recognised and what did not match."""
    return CheckpointEntry(
        source=loaded.source,
        sha256=loaded.sha256,
        weights_sha256=hash_weights(loaded.model),
        name=loaded.name,
        found_by=loaded.found_by,
        weights_entry=loaded.weights_entry,
        missing_keys=list(loaded.missing_keys),
        unexpected_keys=list(loaded.unexpected_keys),
        notes=list(loaded.notes),
        lenient=loaded.lenient,
        parameters=loaded.parameters,
        input_size=loaded.input_size,
        num_classes=loaded.num_classes,
        mean=list(loaded.mean),
        std=list(loaded.std),
    )


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_images(sources: Sequence[ImageSource]) -> list[ImageEntry]:
    """The images of a run before any is read."""
    return [
        ImageEntry(image=number, name=source.name, path=str(source.path), label=source.label)
        for number, source in enumerate(sources)
    ]


def describe_source(images: object) -> str | list[str] | None:
    """What was given as images."""
    if images is None or isinstance(images, str | Path):
        return None if images is None else str(images)
    return [str(part) for part in images] if isinstance(images, list | tuple) else type(images).__name__


def place_of(checkpoint: object, device: str | torch.device | None) -> str | torch.device | None:
    """The device asked for; else where a loaded model is; None where nothing says."""
    module = checkpoint if isinstance(checkpoint, nn.Module) else getattr(checkpoint, "model", None)
    first = next(iter(module.parameters()), None) if device is None and isinstance(module, nn.Module) else None
    return device if first is None else first.device


def choose_displayed(
    sources: Sequence[ImageSource], displayed: int, max_pixels: int, *, strict: bool
) -> tuple[list[int], Image.Image]:
    """Images to show in full, evenly spread over the list, where one cannot be read the next that can; and one of them.

    Raises:
        ImageError: none can be read; or, if `strict`, one of those tried cannot.
    """
    wanted = max(1, min(displayed, len(sources)))
    chosen: list[int] = []
    example, problem = None, None
    for number in range(wanted):
        start = max(number * len(sources) // wanted, chosen[-1] + 1 if chosen else 0)
        stop = (number + 1) * len(sources) // wanted if example else len(sources)
        for place in range(start, stop):
            try:
                picture = sources[place].read(max_pixels)
                sources[place].read_mask()
            except ImageError as error:
                if strict:
                    raise
                problem = problem or error
                continue
            chosen.append(place)
            example = example or picture
            break
    if example is None:
        raise ImageError(f"none of the {len(sources)} images can be read; the first: {problem}")
    return chosen[:displayed], example


def open_run(
    subject: Subject,
    folder: Path,
    wanted: RunDescription,
    work: Work,
    processes: Processes,
    *,
    example: Image.Image | None,
    overwrite: bool,
) -> RunDescription:
    """The run of a model that lies in a folder, or a new one; `example` is an image that probes look at.

    Raises:
        RunError: the folder holds something else or cannot be written.
        CaptureError: the model has no attention over tokens.
    """
    run_folder = RunFolder(folder)

    def rows(description: RunDescription) -> dict[str, int]:
        for probe in subject.probes:
            probe.prepare(description)
        return rows_of(subject.probes, work.variants)

    def decide() -> RunDescription:
        there = run_folder.open(wanted, rows, overwrite=overwrite)
        return there or _begin(run_folder, wanted, subject, example)

    description = processes.decide(decide)
    subject.begin(run_folder, description, work, main=processes.main)
    return description


def _begin(folder: RunFolder, wanted: RunDescription, subject: Subject, example: Image.Image | None) -> RunDescription:
    """Write run.json of a new run: beside what was `wanted`, what the probes say of the model.

    Where the windows of its layers lie is too long for run.json and is written beside the maps.
    """
    description = replace(wanted, created=datetime.now(UTC).isoformat(timespec="seconds"), parts=[], versions=describe_versions())
    arrays: dict[str, Mapping[str, Array]] = {}
    if example is not None:
        with out_of_memory_as(RunError, f"try a smaller batch_size than {subject.batch_size}"):
            picture = subject.loaded.preprocess(example).to(subject.device)
            inputs = picture.expand(max(2, subject.batch_size), *picture.shape)
            for probe in subject.probes:
                described = probe.describe(inputs)
                description = replace(description, **described.fields)
                arrays |= dict(described.arrays)
    folder.write(description)
    for name, kept in arrays.items():
        folder.write_arrays(name, kept)
    return description
