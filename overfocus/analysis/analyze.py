"""`analyze`: images × corruptions × severities through one model, attention measured on the way, into a run folder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from overfocus.checkpoints.load import resolve_model
from overfocus.datasets.class_colours import class_colours
from overfocus.datasets.masked import MaskedSource, masked_sources
from overfocus.datasets.masks import IGNORED
from overfocus.errors import RunError
from overfocus.images.labels import Classes, match_labels
from overfocus.images.reading import MAX_PIXELS
from overfocus.images.sources import ImageSource, find_images, spread
from overfocus.probes.attention import AttentionProbe
from overfocus.probes.classes import ClassesProbe
from overfocus.probes.pixels import BATCH_SIZE, SEGMENTATION, PixelsProbe, predicts_pixels
from overfocus.probes.probe import Probe
from overfocus.processes import Processes, join_processes
from overfocus.run import Run
from overfocus.runs.description import FORMAT, RunDescription, RunSettings
from overfocus.sweep.opening import (
    choose_corruptions,
    choose_displayed,
    choose_severities,
    describe_checkpoint,
    describe_images,
    describe_source,
    open_run,
    place_of,
    require_at_least,
)
from overfocus.sweep.reading import ImageReader, InputSize, choose_workers, describe_pixels
from overfocus.sweep.stopwatch import Stopwatch
from overfocus.sweep.sweep import Subject, Work, pack_pairs, sweep
from overfocus.variants import CONTROL_VARIANT, list_variants
from overfocus.version import __version__

if TYPE_CHECKING:
    from overfocus.checkpoints.load import LoadedModel

DEFAULT_BATCH_SIZE = 16


def analyze(
    checkpoint: "str | Path | LoadedModel | None" = None,
    images: str | Path | Sequence[str | Path] | None = None,
    corruptions: str | Sequence[str] | None = None,
    severities: int | Sequence[int] | None = None,
    output: str | Path = "overfocus-run",
    *,
    model: str | None = None,
    use_ema: bool = True,
    image_size: int | None = None,
    device: str | torch.device | None = None,
    batch_size: int | None = None,
    amp: bool = False,
    workers: int | None = None,
    seed: int = 0,
    layers: Sequence[int] | None = None,
    per_head: bool = False,
    limit: int | None = None,
    top_fraction: float = 0.05,
    displayed: int = 4,
    maps_limit: int = 1000,
    max_pixels: int = MAX_PIXELS,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Run:
    """Measure the attention of a model on images and on corrupted versions of them, and write a run folder.

    Each corrupted image is compared with its clean one, layer by layer, while the model runs: memory grows neither with the
    number of images nor with the depth of the model. As a control, each clean image is compared with another clean image as
    well. Interrupted at any moment, the same call continues where it stopped and ends with the same tables. Started by
    `torchrun` or `accelerate launch`, the processes share the images.

    Args:
        checkpoint: a file, a hub folder, a timm name or a `LoadedModel`; None takes the bundled one.
        images: a folder (class sub-folders give labels), image files, a text list, or None for the bundled samples; for a
            segmentation model also a data set with masks to score against (Cityscapes, ACDC, images/ beside masks/).
        corruptions: names or groups of `overfocus.corruptions`; None takes one of each group, an empty list none.
        severities: from 1 to 5; None takes 1, 3 and 5.
        output: the run folder.
        model: architecture, where the checkpoint does not say it.
        use_ema: take weights averaged over training where the checkpoint holds them.
        image_size: side of the model's input in pixels, instead of the checkpoint's.
        device: "cpu", "cuda", "cuda:1"; None takes a CUDA device where there is one, and a `LoadedModel` where it is.
        batch_size: images that go through the model at once; a corrupted one needs its clean one beside it, so at least two.
            None takes 16, and 4 for segmentation.
        amp: mixed precision, bfloat16 (float16 on a GPU without it); the metrics are computed in float32.
        workers: processes that read and corrupt images beside the model; 0 does it in this one.
        seed: of the corruptions and of the control.
        layers: attention layers to measure, counted in call order from 0, from the end where negative; None for all.
        per_head: a row for each head instead of the mean over heads.
        limit: take only so many images, spread evenly over the list.
        top_fraction: share of the patches that counts as the top in `top_share` and `top_overlap`.
        displayed: images to keep pictures and full maps of, for the report.
        maps_limit: images to keep received attention of; the tables hold all.
        max_pixels: larger images are refused before they are decoded.
        strict: raise on the first image that cannot be read, instead of skipping and counting it.
        overwrite: replace a run that lies in `output` (other files there are left alone).
        progress: show a progress bar; None shows it on a terminal.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        CorruptionError: a corruption or severity does not exist.
        ImageError: no image can be read, or one cannot with `strict`.
        CaptureError: the model has no attention over tokens, or attention with NaN.
        RunError: a setting is out of range, the folder holds something else or cannot be written, or memory ran out.
    """
    settings = choose_settings(
        images=images,
        corruptions=corruptions,
        severities=severities,
        batch_size=batch_size,
        amp=amp,
        workers=workers,
        seed=seed,
        layers=layers,
        per_head=per_head,
        limit=limit,
        top_fraction=top_fraction,
        image_size=image_size,
        displayed=displayed,
        maps_limit=maps_limit,
        max_pixels=max_pixels,
        strict=strict,
    )
    processes = join_processes(place_of(checkpoint, device))
    loaded = resolve_model(checkpoint, device=processes.device, model=model, use_ema=use_ema, image_size=image_size)
    return analyze_models([loaded], [Path(output)], images, settings, processes, overwrite=overwrite, progress=progress)[0]


def choose_settings(
    *,
    images: Any,
    corruptions: str | Sequence[str] | None,
    severities: int | Sequence[int] | None,
    batch_size: int | None,
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
) -> RunSettings:
    """The settings that the arguments of `analyze` mean; what depends on the models is filled in by `analyze_models`.

    Raises:
        CorruptionError: a corruption or severity does not exist.
        RunError: a setting is out of range.
    """
    lowest = {"batch_size": 1, "workers": 0, "displayed": 0, "maps_limit": 0, "max_pixels": 1, "limit": 1, "image_size": 1}
    require_at_least(lowest, locals())
    if not 0 < top_fraction <= 1:
        raise RunError(f"top_fraction must be above 0 and at most 1, got {top_fraction}")
    return RunSettings(
        images=describe_source(images),
        corruptions=choose_corruptions(corruptions),
        severities=choose_severities(severities),
        seed=int(seed),
        batch_size=batch_size,
        top_fraction=float(top_fraction),
        layers=None if layers is None else [int(layer) for layer in layers],
        per_head=bool(per_head),
        limit=limit,
        amp=bool(amp),
        workers=choose_workers(workers),
        strict=bool(strict),
        image_size=image_size,
        displayed=displayed,
        maps_limit=maps_limit,
        max_pixels=max_pixels,
    )


@dataclass(frozen=True)
class _Model:
    """A model and what its predictions mean."""

    loaded: "LoadedModel"
    segmented: bool
    classes: Classes


def analyze_models(
    models: "Sequence[LoadedModel]",
    folders: Sequence[Path],
    images: Any,
    settings: RunSettings,
    processes: Processes,
    *,
    overwrite: bool = False,
    progress: bool | None = None,
    probes: "Sequence[Probe]" = (),
) -> list[Run]:
    """Measure models on the same images with the same pixels, prepared as for the first; each writes a run into its folder.

    Raises:
        CaptureError, ImageError, RunError: as `analyze` says.
    """
    first = models[0]
    segmented = [predicts_pixels(loaded) for loaded in models]
    usual = BATCH_SIZE if any(segmented) else DEFAULT_BATCH_SIZE
    settings = replace(settings, batch_size=settings.batch_size or usual, device=processes.device.type)
    assert settings.batch_size is not None
    sources = choose_images(images, first, settings.limit)
    variants = [*list_variants(settings.corruptions, settings.severities), *([CONTROL_VARIANT] if len(sources) > 1 else [])]
    sizes = tuple(dict.fromkeys(InputSize.of(loaded.preprocess) for loaded in models))
    reader = ImageReader(sources, variants, first.preprocess, settings.seed, settings.max_pixels or MAX_PIXELS, sizes)
    work = Work(
        reader,
        range(len(sources)),
        variants,
        pack_pairs(len(variants), settings.batch_size),
        workers=settings.workers or 0,
        strict=settings.strict,
        image_bytes=reader.image_bytes,
    )
    displayed, example = processes.decide(
        lambda: choose_displayed(sources, settings.displayed or 0, settings.max_pixels or MAX_PIXELS, strict=settings.strict)
    )
    subjects = []
    for loaded, folder, pixelwise in zip(models, folders, segmented, strict=True):
        classes = _classes_of_pixels(loaded, sources) if pixelwise else _classes_of_images(loaded, sources)
        wanted = _describe(_Model(loaded, pixelwise, classes), sources, settings, displayed, pixels=first)
        stopwatch = Stopwatch()
        targets = [classes.ids.get(source.label, -1) if source.label is not None else -1 for source in sources]
        predictions: Probe = PixelsProbe(loaded) if pixelwise else ClassesProbe(loaded, targets)
        attention = AttentionProbe(
            loaded,
            stopwatch,
            layers=settings.layers,
            top_fraction=settings.top_fraction,
            per_head=settings.per_head,
            amp=settings.amp,
            maps_limit=settings.maps_limit or 0,
        )
        subject = Subject(
            loaded,
            [attention, predictions, *probes],
            stopwatch,
            device=processes.device,
            input_size=InputSize.of(loaded.preprocess),
            batch_size=settings.batch_size,
            amp=settings.amp,
        )
        description = open_run(subject, folder, wanted, work, processes, example=example, overwrite=overwrite)
        if not description.complete:
            subjects.append(subject)
    if subjects:
        sweep(subjects, work, processes, progress=progress)
    processes.wait()
    return [Run(folder) for folder in folders]


def choose_images(images: Any, loaded: "LoadedModel", limit: int | None) -> list[ImageSource]:
    """The images that a run takes; the bundled ones that suit the model where `images` is None.

    For a segmentation model a data set with masks gives these too; sub-folders of images mean nothing for it.

    Raises:
        ImageError: there are none.
    """
    if not predicts_pixels(loaded):
        return spread(find_images(images, loaded.input_size), limit)
    masked = masked_sources(images, loaded)
    if masked is not None:
        return spread(masked, limit)
    return spread([replace(source, label=None) for source in find_images(images, loaded.input_size)], limit)


def _describe(
    model: _Model, sources: Sequence[ImageSource], settings: RunSettings, displayed: list[int], *, pixels: "LoadedModel"
) -> RunDescription:
    """What a new run says before the probes have seen the model."""
    labels = {source.label for source in sources if source.label is not None}
    unknown = [] if model.segmented else sorted(labels - model.classes.ids.keys())
    notes = [f"{len(unknown)} of {len(labels)} labels mean no class of the model ({', '.join(unknown[:3])})"] if unknown else []
    return RunDescription(
        format=FORMAT,
        overfocus=__version__,
        kind="analysis",
        status="running",
        done=0,
        parts=[],
        checkpoint=describe_checkpoint(model.loaded),
        settings=settings,
        images=describe_images(sources),
        class_names=model.classes.names,
        task=SEGMENTATION if model.segmented else None,
        class_colours=_colours(model) if model.segmented else None,
        pixels=describe_pixels(pixels.preprocess),
        displayed=displayed,
        notes=notes,
    )


def _classes_of_images(loaded: "LoadedModel", sources: Sequence[ImageSource]) -> Classes:
    return match_labels((source.label for source in sources), loaded.class_names, loaded.num_classes)


def _classes_of_pixels(loaded: "LoadedModel", sources: Sequence[ImageSource]) -> Classes:
    """The classes as the model names them, or else the data set, where it has as many."""
    there = sources[0].images.class_names if isinstance(sources[0], MaskedSource) else None
    names = loaded.class_names or (there if there and len(there) == loaded.num_classes else None)
    return Classes(list(names) if names else None, {})


def _colours(model: _Model) -> list[list[int]]:
    classes = model.loaded.num_classes
    if classes > IGNORED:
        raise RunError(f"expected a model of at most {IGNORED} classes of pixels, as masks can hold, got {classes}")
    names = model.classes.names or [str(number) for number in range(classes)]
    colours: list[list[int]] = model.loaded.class_colours or class_colours(names).tolist()
    return colours
