"""`ablate`: take out or corrupt the patches that receive most attention, and see what the predictions do."""

from pathlib import Path

from overfocus.analysis import choose_images, gives_pixels
from overfocus.checkpoints.load import resolve_model
from overfocus.corruptions import choose_constants, open_cache
from overfocus.probes.ablation import AblationProbe
from overfocus.processes import join_processes
from overfocus.results.ablation import Ablation, write_tables
from overfocus.runs.description import FORMAT, RunDescription, RunSettings
from overfocus.settings import takes
from overfocus.sweep.reading import ImageReader, InputSize, Work, choose_workers, describe_pixels, plan_pairs
from overfocus.sweep.recorder import Stopwatch
from overfocus.sweep.settings import AblateSettings
from overfocus.sweep.sweep import (
    Subject,
    choose_displayed,
    describe_checkpoint,
    describe_images,
    describe_source,
    described_size,
    open_run,
    place_of,
    sweep,
)
from overfocus.variants import list_variants
from overfocus.version import __version__


@takes(AblateSettings)
def ablate(settings: AblateSettings) -> Ablation:
    """Measure what predictions lose without the most attended patches, against other ones.

    The others are as many random ones, as many that receive least attention, and random ones that together receive as much as
    the most attended ones, drawn from those that are not among these.

    With `how="remove"`, in every layer over tokens, the k patch tokens that receive most of its attention (in a forward of the
    same image with all tokens) are hidden as keys: their weights become 0 and the others are normalised again. The same is done
    under corruption.

    With `how="corrupt"`, the model sees the clean image with the corrupted pixels of k patches only. Patches are the cells of
    the image's patch grid at the model's input size, the finest that its layers have; what each receives is averaged over the
    layers of the forward of the clean image (`overfocus.probes.ablation` has the rule). Outputs are compared with that for the
    clean image.

    Nothing of the model is changed, and no map is kept. Interrupted at any moment, the same call continues; started by
    `torchrun` or `accelerate launch`, the processes share the images.

    Raises:
        RunError: a setting is out of range, the folder holds something else or cannot be written, or memory ran out.
        CaptureError: the model has no attention over tokens, some that keys cannot be taken out of, or, to corrupt patches, none
            over a known patch grid.
        CheckpointError, CorruptionError, ImageError: as `analyze` says.
    """
    corruptions, custom = settings.chosen_corruptions()
    if settings.how == "corrupt" and not corruptions:
        settings.refuse("corruptions", "must name at least one for how='corrupt', such as fog, got none")
    draws = settings.draws or (5 if settings.how == "corrupt" else 1)
    folder = Path(settings.output)
    processes = join_processes(place_of(settings.checkpoint, settings.device))
    loaded = resolve_model(settings.checkpoint, device=processes.device, **settings.loading())
    segmented = gives_pixels(loaded)
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
        image_size=described_size(settings.image_size),
        max_pixels=settings.max_pixels,
        fractions=fractions,
        how=settings.how,
        draws=draws,
    )
    variants = list_variants(corruptions, described.severities)
    reader = ImageReader(
        sources,
        variants,
        loaded.preprocess,
        settings.seed,
        settings.max_pixels,
        constants=described.constants,
        custom=custom,
        cache=open_cache(settings.cache),
    )
    work = Work(
        reader,
        range(len(sources)),
        variants,
        plan_pairs(len(variants), settings.batch_size),
        workers=described.workers or 0,
        strict=settings.strict,
        image_bytes=reader.image_bytes,
    )
    _, example = processes.decide(
        lambda: choose_displayed(sources, [loaded.preprocess], 0, settings.max_pixels, strict=settings.strict)
    )
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
        functions={name: corruption.fingerprint(described.severities) for name, corruption in custom.items()}
        | loaded.preprocess.fingerprints(),
    )
    probe = AblationProbe(loaded, fractions, how=settings.how, draws=draws, seed=settings.seed)
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
