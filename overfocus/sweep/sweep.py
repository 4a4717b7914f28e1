"""The one loop: images are read, made into variants, sent through each model, asked by probes, and recorded; how it begins.

Which images share a forward depends on the list of images alone: not on where a run continues, nor on how many processes
share the images. Interrupted at any moment, and continued by as many processes as one likes, a run ends with the same tables.
"""

import importlib.metadata
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from overfocus.checkpoints.loaded import LoadedModel, hash_weights
from overfocus.errors import (
    ChangedImageError,
    ImageError,
    OverfocusError,
    RunError,
    first_line,
    is_out_of_memory,
    out_of_memory_as,
)
from overfocus.forward import output_tensor, precision
from overfocus.images.sources import ImageSource
from overfocus.preprocessing import Preprocess
from overfocus.probes.probe import Array, Batch, Column, ItemResult, Probe
from overfocus.processes import Processes
from overfocus.runs.description import CheckpointEntry, ImageEntry, RunDescription
from overfocus.runs.folder import RunFolder
from overfocus.sweep.reading import BYTES_AHEAD, BatchPlan, InputSize, Sample, Unit, Work, load_units
from overfocus.sweep.recorder import Recorder, Stopwatch, progress_bar
from overfocus.variants import Variant

if TYPE_CHECKING:
    from overfocus.checkpoints.loaded import LoadedModel


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
        outputs=_outputs(loaded),
    )


_MOST_OUTPUTS = 16


def _outputs(loaded: "LoadedModel") -> list[float]:
    """Some of a model's outputs for one fixed image; none where it fails, is random or gives values that are not finite.

    They tell networks apart that have the same weights and compute otherwise: heads, activations, the user's own code. In half
    precision rounding, which follows the number of threads, is as large as what they would tell, so that there are none.
    """
    channels, height, width = loaded.input_size
    image = torch.linspace(0, 40, channels * height * width).sin().view(1, channels, height, width)
    parameter = next(loaded.model.parameters(), image)
    if parameter.dtype not in (torch.float32, torch.float64):
        return []
    try:
        with torch.inference_mode():
            images = image.to(parameter.device, parameter.dtype).expand(2, -1, -1, -1)
            first, second = output_tensor(loaded.model(images)).float().flatten(1).cpu()[:2]
    except Exception:  # the sweep says what is wrong with a model
        return []
    chosen = first[:: max(1, len(first) // _MOST_OUTPUTS)][:_MOST_OUTPUTS]
    sound = bool(torch.isfinite(first).all()) and torch.allclose(first, second, rtol=1e-3, atol=1e-3)
    return [float(f"{value:.6g}") for value in chosen.tolist()] if sound else []


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
        ImageEntry(
            image=number,
            name=source.name,
            path=None if source.path is None else str(source.path),
            label=source.label,
            sha256=source.sha256,
        )
        for number, source in enumerate(sources)
    ]


def describe_source(images: object) -> str | list[str] | None:
    """What was given as images."""
    if images is None or isinstance(images, str | Path):
        return None if images is None else str(images)
    if isinstance(images, list | tuple) and all(isinstance(part, str | Path) for part in images):
        return [str(part) for part in images]
    return f"{len(images)} images in memory" if isinstance(images, list | tuple) else type(images).__name__


def place_of(checkpoint: object, device: str | torch.device | None) -> str | torch.device | None:
    """The device asked for; else where a loaded model is; None where nothing says."""
    module = checkpoint if isinstance(checkpoint, nn.Module) else getattr(checkpoint, "model", None)
    first = next(iter(module.parameters()), None) if device is None and isinstance(module, nn.Module) else None
    return device if first is None else first.device


@contextmanager
def inputs_taken(loaded: "LoadedModel") -> Iterator[None]:
    """Turn what a model raises about its input, such as a size that it does not take, into one line."""
    try:
        yield
    except Exception as error:  # the model may be the user's and raise anything
        if is_out_of_memory(error) or isinstance(error, OverfocusError):
            raise
        height, width = loaded.input_size[1:]
        raise RunError(
            f"{loaded.source}: the model fails on images of {height}×{width} pixels, height × width ({first_line(error)}); "
            "give a size that it takes, such as that of its training, with image_size (--image-size) or input_size of wrap"
        ) from error


def described_size(image_size: int | tuple[int, int] | None) -> int | list[int] | None:
    """The size asked for as run.json has it."""
    return list(image_size) if isinstance(image_size, tuple) else image_size


def choose_displayed(
    sources: Sequence[ImageSource], preprocess: Sequence[Preprocess], displayed: int, max_pixels: int, *, strict: bool
) -> tuple[list[int], Image.Image]:
    """Images to show in full, evenly spread over the list, where one cannot be used the next that can; and one of them.

    Raises:
        ImageError: none can be read and resized for every model; or, if `strict`, one of those tried cannot.
    """
    wanted = max(1, min(displayed, len(sources)))
    chosen: list[int] = []
    example, problem = None, None
    for number in range(wanted):
        start = max(number * len(sources) // wanted, chosen[-1] + 1 if chosen else 0)
        stop = (number + 1) * len(sources) // wanted if example else len(sources)
        for place in range(start, stop):
            try:
                image = sources[place].read(max_pixels)
                for each in preprocess:
                    each.require_resizable(image.size)
                sources[place].read_mask()
            except ImageError as error:
                if strict or isinstance(error, ChangedImageError):
                    raise
                problem = problem or error
                continue
            chosen.append(place)
            example = example or image
            break
    if example is None:
        raise ImageError(f"none of the {len(sources)} images can be used; the first: {problem}")
    return chosen[:displayed], example


SHARDS_PER_ROUND = 4
"""So many shards go through one model before they go through the next one, and before processes bring their results together.
The first rounds are shorter, so that nobody waits long for the first images."""
SHARDS_AHEAD = 3
"""Shards of images that are prepared ahead of the models."""


class Subject:
    """One model of a sweep: what is asked of it, and where its run is written."""

    def __init__(
        self,
        loaded: "LoadedModel",
        probes: Sequence[Probe],
        stopwatch: Stopwatch,
        *,
        device: torch.device,
        input_size: InputSize,
        batch_size: int,
        amp: bool = False,
    ) -> None:
        """`input_size` is that at which it takes the samples' pixels."""
        self.loaded = loaded
        self.probes = list(probes)
        self.stopwatch = stopwatch
        self.device = device
        self.input_size = input_size
        self.batch_size = batch_size
        self.amp = amp
        self.recorder: Recorder | None = None
        """Only in the process that writes."""
        self.done = 0
        self._contexts: ExitStack | None = None

    def begin(self, folder: RunFolder, description: RunDescription, work: Work, *, main: bool) -> None:
        """Take in the run, new or continued."""
        self.done = description.done
        self.stopwatch.resume(description.timing)
        for probe in self.probes:
            probe.prepare(description)
        if main:
            rows = rows_of(self.probes, work.variants)
            self.recorder = Recorder(
                folder, description, self.probes, work.images, rows, self.stopwatch, variants=len(work.variants)
            )

    def attach(self) -> None:
        """Attach what the probes need, until `detach`."""
        if self._contexts is None:
            with ExitStack() as contexts:
                contexts.enter_context(precision(self.device, amp=self.amp))
                for probe in self.probes:
                    contexts.enter_context(probe.attach())
                self._contexts = contexts.pop_all()

    def detach(self) -> None:
        """Take it off."""
        contexts, self._contexts = self._contexts, None
        if contexts is not None:
            contexts.close()

    def measure(self, samples: Sequence[Sample], plan: BatchPlan) -> list[ItemResult]:
        """What the probes say of samples that were read together."""
        readable = [sample for sample in samples if sample.reason is None]
        results = {
            sample.item: ItemResult(sample.item, list(sample.variants), sample.size, reason=sample.reason) for sample in samples
        }
        if readable:
            whole = len(plan.batches) == 1
            for number, members in enumerate(plan.batches):
                chosen = [range(len(sample.variants)) if whole else members for sample in readable]
                self._measure_batch(readable, chosen, results, first=number == 0)
        displayed = {number for probe in self.probes for number in getattr(probe, "displayed", ())}
        for sample in readable:
            result = results[sample.item]
            for probe in self.probes:
                probe.finish(sample, result)
            if sample.item in displayed:
                result.pixels = sample.pixels[self.input_size]
                result.mask = None if sample.mask is None else self.input_size.fit_mask(sample.mask)
        return list(results.values())

    def _measure_batch(
        self, samples: Sequence[Sample], members: Sequence[Sequence[int]], results: Mapping[int, ItemResult], *, first: bool
    ) -> None:
        """Send a batch through the model and add its columns to the results; the clean image counts in the first alone."""
        pixels = [
            sample.pixels[self.input_size][place] for sample, places in zip(samples, members, strict=True) for place in places
        ]
        batch = Batch(samples, members, pixels, self.device)
        for probe in self.probes:
            probe.begin(batch)
        output = self._forward(batch)
        with self.stopwatch.on("forward"):
            for probe in self.probes:
                columns = probe.columns(batch, output)
                for (start, stop), sample in zip(pairwise(batch.starts), samples, strict=True):
                    own = results[sample.item].columns.setdefault(probe.name, {})
                    for name, column in columns.items():
                        part = column[start if first else start + 1 : stop]
                        own[name] = part if first else _joined(own[name], part)

    def _forward(self, batch: Batch) -> Any:
        owner = next((probe for probe in self.probes if probe.owns_forward), None)
        paired = any(probe.paired for probe in self.probes)
        preprocess = self.loaded.preprocess
        if owner is not None and not paired:
            return owner.forward(batch)
        step = len(batch.pixels) if paired else self.batch_size
        outputs = []
        for start in range(0, len(batch.pixels), step):
            with self.stopwatch.on("normalising"):
                batch.inputs = preprocess.normalize_batch(batch.pixels[start : start + step], self.device)
            with self.stopwatch.on("forward"), inputs_taken(self.loaded):
                outputs.append(owner.forward(batch) if owner is not None else output_tensor(self.loaded.model(batch.inputs)))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


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
    """The run of a model in a folder, or a new one; `example` is an image that probes look at.

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
        with out_of_memory_as(RunError, f"try a smaller batch_size than {subject.batch_size}"), inputs_taken(subject.loaded):
            image = subject.loaded.preprocess(example).to(subject.device)
            inputs = image.expand(max(2, subject.batch_size), *image.shape)
            for probe in subject.probes:
                described = probe.describe(inputs)
                description = replace(description, **described.fields)
                arrays |= dict(described.arrays)
    folder.write(description)
    for name, kept in arrays.items():
        folder.write_arrays(name, kept)
    return description


def rows_of(probes: Sequence[Probe], variants: Sequence[Variant]) -> dict[str, int]:
    """Rows of an item in each table."""
    rows: dict[str, int] = {}
    for probe in probes:
        rows |= probe.rows(variants)
    return rows


def sweep(subjects: Sequence[Subject], work: Work, processes: Processes, *, progress: bool | None = None) -> None:
    """Measure what is not done yet of the runs of several models, and mark them complete; all see the same pixels.

    The processes share the images; the first one writes. Ctrl-C, running out of memory and the loss of a process write what is
    measured before they end the sweep; it can be continued.

    Raises:
        CaptureError, ImageError, RunError: as the probes and the reader say.
    """
    recorders = [subject.recorder for subject in subjects if subject.recorder is not None]
    shards = work.plan.shards(len(work.images))
    done = min(subject.done for subject in subjects)
    first = next((number for number, shard in enumerate(shards) if shard[-1] >= done), len(shards))
    shown = progress if processes.main else False
    results: list[list[ItemResult]] = []
    with ExitStack() as contexts:
        contexts.enter_context(torch.no_grad())
        show = contexts.enter_context(progress_bar(len(work.images), shards[first][0] if shards[first:] else 0, show=shown))
        contexts.callback(_detach_all, subjects)
        try:
            most = SHARDS_PER_ROUND if max(len(subjects), processes.count) > 1 else 1
            rounds = _rounds(len(shards) - first, processes.count, most)
            mine = [[shards[first + number] for number in numbers[processes.index :: processes.count]] for numbers in rounds]
            loaded = _load(work, [shard for shards_of_round in mine for shard in shards_of_round])
            for shards_of_round in mine:
                results = [[] for _ in subjects]
                error = _measure_round(subjects, work, loaded, shards_of_round, results)
                if processes.count > 1:  # what processes exchange is not to be captured
                    _detach_all(subjects)
                gathered = processes.gather([_whole(found) for found in results] if error is None else [], error)
                for place, subject in enumerate(subjects):
                    _record(subject, [result for of_process in gathered for result in of_process[place]])
                results = []
                if recorders:
                    show(min(recorder.reached for recorder in recorders))
        except BaseException:
            if processes.count == 1:  # what this round has measured by now; of several processes it need not be consecutive
                for subject, found in zip(subjects, results, strict=False):
                    _record(subject, [result for result in _whole(found) if _is_whole(result, work)])
            for subject in subjects:
                if subject.recorder is not None:
                    subject.recorder.write()
            raise
        for subject in subjects:
            if subject.recorder is not None:
                with subject.stopwatch.running():
                    subject.recorder.complete()


def _record(subject: Subject, results: Sequence[ItemResult]) -> None:
    if subject.recorder is not None:
        with subject.stopwatch.running():
            subject.recorder.add(sorted(results, key=lambda result: result.item))


def _is_whole(result: ItemResult, work: Work) -> bool:
    """Whether all pieces of an item are there."""
    return len(work.plan.pieces) == 1 or result.reason is not None or len(result.variants) == len(work.variants)


def _rounds(shards: int, processes: int, most: int) -> list[range]:
    """Numbers of the shards of each round: one a process at first, then more, up to `most`; a small rest joins the last round."""
    rounds, start, size = [], 0, 1
    while start < shards:
        stop = start + size * processes
        stop = stop if stop + size * processes // 2 < shards else shards
        rounds.append(range(start, stop))
        start, size = stop, min(2 * size, most)
    return rounds


def _load(work: Work, shards: Sequence[tuple[int, ...]]) -> Iterator[list[Sample]]:
    """The samples of shards, piece by piece."""
    units = [Unit(shard, piece) for shard in shards for piece in work.plan.pieces]
    unit_bytes = work.image_bytes * work.plan.images // len(work.plan.pieces)
    ahead = min(max(2 * work.workers, SHARDS_AHEAD * SHARDS_PER_ROUND), BYTES_AHEAD // max(1, unit_bytes))
    return load_units(work.reader, units, work.variants, workers=work.workers, ahead=-(-ahead // max(1, work.workers)))


def _measure_round(
    subjects: Sequence[Subject],
    work: Work,
    loaded: Iterator[list[Sample]],
    shards: Sequence[tuple[int, ...]],
    results: Sequence[list[ItemResult]],
) -> OverfocusError | None:
    """Add to the results of each model those of this process's shards of a round; what went wrong, for all processes to know.

    Images that are read in pieces are measured piece by piece, so that one piece is in memory at a time.
    """
    pieces = len(work.plan.pieces)
    together = 1 if pieces > 1 else len(shards)
    try:
        with out_of_memory_as(RunError, f"try a smaller batch_size than {subjects[0].batch_size}; what is measured is kept"):
            for _ in range(0, len(shards) * pieces, max(1, together)):
                began = time.perf_counter()
                units = list(islice(loaded, together))
                waited = (time.perf_counter() - began) / len(subjects)
                for samples in units:
                    _require_sound(samples, strict=work.strict)
                for subject, found in zip(subjects, results, strict=True):
                    subject.stopwatch.waited(waited)
                    _attach_only(subject, subjects)
                    with subject.stopwatch.running():
                        for samples in units:
                            if samples[-1].item >= subject.done:
                                found += subject.measure(samples, work.plan)
    except OverfocusError as error:
        return error
    return None


def _attach_only(subject: Subject, subjects: Sequence[Subject]) -> None:
    """Let one model after the other capture, never two at once: torch runs some attention otherwise under a foreign mode."""
    for other in subjects:
        if other is not subject:
            other.detach()
    subject.attach()


def _detach_all(subjects: Sequence[Subject]) -> None:
    for subject in subjects:
        subject.detach()


def _require_sound(samples: Sequence[Sample], *, strict: bool) -> None:
    """Raise what is wrong with the data, or with one image where that is enough."""
    for sample in samples:
        if sample.reason is not None and (sample.fatal or strict):
            raise (sample.fatal or ImageError)(sample.reason)


def _whole(results: Sequence[ItemResult]) -> list[ItemResult]:
    """Results by item, the variants of one put together where they came in pieces."""
    whole: list[ItemResult] = []
    for _, group in groupby(results, key=lambda result: result.item):
        pieces = list(group)
        first = next((piece for piece in pieces if piece.reason is not None), pieces[0])
        if first.reason is None:
            for piece in pieces[1:]:
                first.variants = [*first.variants, *piece.variants]
                for probe, columns in piece.columns.items():
                    own = first.columns[probe]
                    for name, column in columns.items():
                        own[name] = _joined(own[name], column)
        whole.append(first)
    return whole


def _joined(before: Column, after: Column) -> Column:
    if isinstance(before, np.ndarray) and isinstance(after, np.ndarray):
        return np.concatenate([before, after])
    return [*before, *after]
