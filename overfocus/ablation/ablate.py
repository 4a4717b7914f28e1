"""`ablate`: take the most attended tokens out of the attention of every layer, and see what the predictions do."""

from pathlib import Path

from overfocus.ablation.ablation import Ablation, write_tables
from overfocus.analysis.analyze import choose_images
from overfocus.checkpoints.load import resolve_model
from overfocus.corruptions import choose_constants
from overfocus.errors import RunError
from overfocus.memory import out_of_memory_as
from overfocus.probes.ablation import AblationProbe
from overfocus.probes.pixels import predicts_pixels
from overfocus.processes import join_processes
from overfocus.runs.description import FORMAT, RunDescription, RunSettings
from overfocus.settings import takes
from overfocus.sweep.opening import (
    choose_displayed,
    describe_checkpoint,
    describe_images,
    describe_source,
    open_run,
    place_of,
)
from overfocus.sweep.reading import ImageReader, InputSize, choose_workers, describe_pixels
from overfocus.sweep.settings import AblateSettings
from overfocus.sweep.stopwatch import Stopwatch
from overfocus.sweep.sweep import Subject, Work, pack_pairs, sweep
from overfocus.variants import list_variants
from overfocus.version import __version__


@takes(AblateSettings)
def ablate(settings: AblateSettings) -> Ablation:
    """Measure what predictions lose without the most attended tokens, against as many random and as many least attended ones.

    In every layer over tokens, the k patch tokens that receive most of its attention (in a forward of the same image with
    all tokens) are hidden as keys: their weights become 0 and the others are normalised again. The same is done under
    corruption. Nothing of the model is changed, and no map is kept. Interrupted at any moment, the same call continues; started
    by `torchrun` or `accelerate launch`, the processes share the images.

    Raises:
        RunError: a setting is out of range, the folder holds something else or cannot be written, or memory ran out.
        CaptureError: the model has no attention over tokens, or some that keys cannot be taken out of.
        CheckpointError, CorruptionError, ImageError: as `analyze` says.
    """
    corruptions = settings.chosen_corruptions()
    folder = Path(settings.output)
    processes = join_processes(place_of(settings.checkpoint, settings.device))
    loaded = resolve_model(settings.checkpoint, device=processes.device, **settings.loading())
    with out_of_memory_as(RunError, f"try a smaller batch_size than {settings.batch_size}"):
        segmented = predicts_pixels(loaded)
    sources = choose_images(settings.images, loaded, settings.limit, segmented=segmented)
    fractions = sorted(set(settings.fractions))
    described = RunSettings(
        images=describe_source(settings.images),
        corruptions=corruptions,
        severities=settings.chosen_severities(usual=(3,)),
        constants=settings.constants or choose_constants(min(loaded.input_size[1:])),
        seed=settings.seed,
        batch_size=settings.batch_size,
        limit=settings.limit,
        device=processes.device.type,
        workers=choose_workers(settings.workers),
        strict=settings.strict,
        image_size=settings.image_size,
        max_pixels=settings.max_pixels,
        fractions=fractions,
    )
    variants = list_variants(corruptions, described.severities)
    reader = ImageReader(sources, variants, loaded.preprocess, settings.seed, settings.max_pixels, constants=described.constants)
    work = Work(
        reader,
        range(len(sources)),
        variants,
        pack_pairs(len(variants), settings.batch_size),
        workers=described.workers or 0,
        strict=settings.strict,
        image_bytes=reader.image_bytes,
    )
    _, example = processes.decide(lambda: choose_displayed(sources, 0, settings.max_pixels, strict=settings.strict))
    wanted = RunDescription(
        format=FORMAT,
        overfocus=__version__,
        kind="ablation",
        status="running",
        done=0,
        parts=[],
        checkpoint=describe_checkpoint(loaded),
        settings=described,
        images=describe_images(sources),
        pixels=describe_pixels(loaded.preprocess),
    )
    probe = AblationProbe(loaded, fractions, batch_size=settings.batch_size, seed=settings.seed)
    subject = Subject(
        loaded,
        [probe],
        Stopwatch(),
        device=processes.device,
        input_size=InputSize.of(loaded.preprocess),
        batch_size=settings.batch_size,
    )
    description = open_run(subject, folder, wanted, work, processes, example=example, overwrite=settings.overwrite)
    if not description.complete:
        sweep([subject], work, processes, progress=settings.progress)
    processes.decide(lambda: write_tables(folder))
    return Ablation(folder)
