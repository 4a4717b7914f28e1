"""`analyze`: images × corruptions × severities through one model, attention measured on the way, into a run folder."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfocus.checkpoints.load import resolve_model
from overfocus.corruptions import choose_constants, open_cache
from overfocus.corruptions.custom import CustomCorruption
from overfocus.datasets.masks import IGNORED, class_colours
from overfocus.datasets.segmented import MaskedSource, masked_sources
from overfocus.errors import RunError, out_of_memory_as
from overfocus.images.labels import Classes, match_labels
from overfocus.images.live import identify, image_sources, numbering
from overfocus.images.sources import ImageSource, spread
from overfocus.probes.attention import AttentionProbe, fingerprint_metric
from overfocus.probes.predictions import BATCH_SIZE, SEGMENTATION, ClassesProbe, PixelsProbe, predicts_pixels
from overfocus.probes.probe import Probe
from overfocus.processes import Processes, join_processes
from overfocus.run import Run
from overfocus.runs.description import FORMAT, RunDescription, RunSettings
from overfocus.settings import MAX_PIXELS, takes
from overfocus.sweep.reading import ImageReader, InputSize, Work, choose_workers, describe_pixels, plan_pairs
from overfocus.sweep.recorder import Stopwatch
from overfocus.sweep.settings import AnalyzeSettings, CompareSettings, listed
from overfocus.sweep.sweep import (
    Subject,
    choose_displayed,
    describe_checkpoint,
    describe_images,
    describe_source,
    described_size,
    inputs_taken,
    open_run,
    place_of,
    sweep,
)
from overfocus.variants import CONTROL_VARIANT, list_variants
from overfocus.version import __version__

if TYPE_CHECKING:
    from overfocus.checkpoints.load import LoadedModel

DEFAULT_BATCH_SIZE = 16


@takes(AnalyzeSettings)
def analyze(settings: AnalyzeSettings) -> Run:
    """Measure the attention of a model on images and on corrupted versions of them, and write a run folder.

    Each corrupted image is compared with its clean one, layer by layer, while the model runs: memory grows neither with the
    number of images nor with the depth of the model. As a control, each clean image is compared with another clean image as
    well. Interrupted at any moment, the same call continues where it stopped and ends with the same tables. Started by
    `torchrun` or `accelerate launch`, the processes share the images.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        CorruptionError: a corruption or severity does not exist.
        ImageError: no image can be read, or one cannot with `strict`.
        CaptureError: the model has no attention over tokens, or attention with NaN.
        RunError: a setting is out of range, the folder holds something else or cannot be written, or memory ran out.
    """
    names, custom = settings.chosen_corruptions()
    wanted = run_settings(settings, names)
    processes = join_processes(place_of(settings.checkpoint, settings.device))
    loaded = resolve_model(settings.checkpoint, device=processes.device, **settings.loading())
    return analyze_models([loaded], [Path(settings.output)], wanted, settings, processes, custom)[0]


def run_settings(settings: AnalyzeSettings | CompareSettings, corruptions: Sequence[str]) -> RunSettings:
    """The settings of each run; what depends on the models is filled in by `analyze_models`."""
    return RunSettings(
        images=describe_source(settings.images),
        corruptions=list(corruptions),
        severities=settings.chosen_severities(),
        class_map=None if settings.class_map is None else str(settings.class_map),
        constants=settings.constants,
        seed=settings.seed,
        batch_size=settings.batch_size,
        top_fraction=settings.top_fraction,
        layers=None if settings.layers is None else list(settings.layers),
        per_head=settings.per_head,
        limit=settings.limit,
        amp=settings.amp,
        exact=settings.exact,
        workers=choose_workers(settings.workers),
        strict=settings.strict,
        image_size=described_size(settings.image_size),
        displayed=settings.displayed,
        maps_limit=settings.maps_limit,
        max_pixels=settings.max_pixels,
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
    settings: RunSettings,
    asked: AnalyzeSettings | CompareSettings,
    processes: Processes,
    custom: Mapping[str, CustomCorruption],
) -> list[Run]:
    """Measure models on the same images with the same pixels, prepared as for the first; each writes a run into its folder.

    Raises:
        CaptureError, ImageError, RunError: as `analyze` says.
    """
    first = models[0]
    segmented = [gives_pixels(loaded) for loaded in models]
    usual = BATCH_SIZE if any(segmented) else DEFAULT_BATCH_SIZE
    settings = replace(
        settings,
        batch_size=settings.batch_size or usual,
        device=processes.device.type,
        constants=settings.constants or choose_constants(min(first.input_size[1:])),
    )
    assert settings.batch_size is not None
    sources = choose_images(asked.images, first, settings.limit, segmented=segmented[0])
    variants = [*list_variants(settings.corruptions, settings.severities), *([CONTROL_VARIANT] if len(sources) > 1 else [])]
    sizes = tuple(dict.fromkeys(InputSize.of(loaded.preprocess) for loaded in models))
    reader = ImageReader(
        sources,
        variants,
        first.preprocess,
        settings.seed,
        settings.max_pixels or MAX_PIXELS,
        sizes,
        settings.constants,
        custom,
        open_cache(asked.cache),
    )
    functions = {name: corruption.fingerprint(settings.severities) for name, corruption in custom.items()}
    work = Work(
        reader,
        range(len(sources)),
        variants,
        plan_pairs(len(variants), settings.batch_size),
        workers=settings.workers or 0,
        strict=settings.strict,
        image_bytes=reader.image_bytes,
    )
    displayed, example = processes.decide(
        lambda: choose_displayed(
            sources,
            [loaded.preprocess for loaded in models],
            settings.displayed or 0,
            settings.max_pixels or MAX_PIXELS,
            strict=settings.strict,
        )
    )
    subjects = []
    for loaded, folder, pixelwise in zip(models, folders, segmented, strict=True):
        classes = _classes_of_pixels(loaded, sources) if pixelwise else _classes_of_images(loaded, sources, asked.class_map)
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
            exact=settings.exact,
            maps_limit=settings.maps_limit or 0,
            metrics=asked.metrics or (),
        )
        probes = [attention, predictions, *custom_probes(asked.probes)]
        wanted = _describe(_Model(loaded, pixelwise, classes), sources, settings, displayed, probes, pixels=first)
        own = {metric.name: fingerprint_metric(metric) for metric in attention.metrics if metric.function is not None}
        wanted = replace(wanted, functions=functions | own | loaded.preprocess.fingerprints())
        subject = Subject(
            loaded,
            probes,
            stopwatch,
            device=processes.device,
            input_size=InputSize.of(loaded.preprocess),
            batch_size=settings.batch_size,
            amp=settings.amp,
        )
        description = open_run(subject, folder, wanted, work, processes, example=example, overwrite=asked.overwrite)
        if not description.complete:
            subjects.append(subject)
    if subjects:
        sweep(subjects, work, processes, progress=asked.progress)
    processes.wait()
    return [Run(folder) for folder in folders]


def gives_pixels(loaded: "LoadedModel") -> bool:
    """Whether a model gives a class for every pixel; some are run on an image to see.

    Raises:
        RunError: memory ran out, or the model fails on an image of its input size.
    """
    with out_of_memory_as(RunError, "one image at a time does not fit; try a smaller image_size"), inputs_taken(loaded):
        return predicts_pixels(loaded)


def choose_images(images: Any, loaded: "LoadedModel", limit: int | None, *, segmented: bool) -> list[ImageSource]:
    """The images that a run takes; the bundled ones that suit the model where `images` is None.

    For a segmentation model a data set with masks gives these too; sub-folders of images mean nothing for it.

    Raises:
        ImageError: there are none.
    """
    if not segmented:
        return identify(spread(image_sources(images, loaded.input_size), limit))
    masked = masked_sources(images, loaded)
    if masked is not None:
        return list(spread(masked, limit))
    found = identify(spread(image_sources(images, loaded.input_size), limit))
    return [replace(source, label=None) for source in found]


def custom_probes(probes: Any) -> list[Probe]:
    """The probes of the user, copied, so that each model has its own.

    Raises:
        RunError: one is no probe, or two have the same name.
    """
    chosen = [] if probes is None else listed(probes)
    names = [AttentionProbe.name, ClassesProbe.name, PixelsProbe.name]
    for probe in chosen:
        if not isinstance(probe, Probe) or not probe.name or probe.owns_forward:
            raise RunError(f"expected probes with a name (see overfocus.probes.probe.Probe), got {probe!r}")
        if probe.name in names:
            raise RunError(
                f"expected probes with different names, got {probe.name!r} twice; built-in ones are {', '.join(names[:3])}"
            )
        names.append(probe.name)
    return [copy.copy(probe) for probe in chosen]


def _describe(
    model: _Model,
    sources: Sequence[ImageSource],
    settings: RunSettings,
    displayed: list[int],
    probes: Sequence[Probe],
    *,
    pixels: "LoadedModel",
) -> RunDescription:
    """What a new run says before the probes have seen the model."""
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
        label_classes=model.classes.ids,
        task=SEGMENTATION if model.segmented else None,
        class_colours=_colours(model) if model.segmented else None,
        pixels=describe_pixels(pixels.preprocess),
        displayed=displayed,
        measures=[measure for probe in probes for measure in probe.measures],
        notes=list(model.classes.notes),
    )


def _classes_of_images(loaded: "LoadedModel", sources: Sequence[ImageSource], class_map: str | Path | None) -> Classes:
    return match_labels(
        (source.label for source in sources),
        loaded.class_names,
        loaded.num_classes,
        class_map=class_map,
        numbering=numbering(sources),
    )


def _classes_of_pixels(loaded: "LoadedModel", sources: Sequence[ImageSource]) -> Classes:
    """The classes as the model names them, or else the data set, where it has as many."""
    there = sources[0].images.class_names if isinstance(sources[0], MaskedSource) else None
    names = loaded.class_names or (there if there and len(there) == loaded.num_classes else None)
    return Classes(list(names) if names else None, {})


def _colours(model: _Model) -> list[list[int]]:
    classes = model.loaded.num_classes
    if classes > IGNORED:
        raise RunError(f"expected a model with at most {IGNORED} pixel classes, as many as masks can hold, got {classes}")
    names = model.classes.names or [str(number) for number in range(classes)]
    colours: list[list[int]] = model.loaded.class_colours or class_colours(names).tolist()
    return colours
