"""`analyze`: images × corruptions × severities through one model, attention measured on the way, into a run folder."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from overfocus.analysis.description import describe_checkpoint, describe_versions, find_sites
from overfocus.analysis.display import choose_displayed
from overfocus.analysis.folder import RunFolder
from overfocus.analysis.labels import Classes, match_labels
from overfocus.analysis.measuring import precision
from overfocus.analysis.session import continue_run
from overfocus.analysis.settings import (
    Settings,
    choose_corruptions,
    choose_device,
    choose_severities,
    choose_workers,
    describe_source,
)
from overfocus.errors import RunError
from overfocus.images.reading import MAX_PIXELS
from overfocus.images.sources import ImageSource, find_images
from overfocus.run import FORMAT, Run
from overfocus.version import __version__

if TYPE_CHECKING:
    from overfocus.checkpoints.load import LoadedModel


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
    batch_size: int = 16,
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

    Each corrupted picture is compared with its clean one, layer by layer, while the model runs: memory grows neither with the
    number of images nor with the depth of the model. Interrupted at any moment, the same call continues where it stopped
    and ends with the same tables.

    Args:
        checkpoint: a file, a hub folder, a timm name or a `LoadedModel`; None takes the bundled one.
        images: a folder (class sub-folders give labels), picture files, a text list, or None for the bundled samples.
        corruptions: names or groups of `overfocus.corruptions`; None takes one of each group, an empty list none.
        severities: from 1 to 5; None takes 1, 3 and 5.
        output: the run folder.
        model: architecture, where the checkpoint does not say it.
        use_ema: take weights averaged over training where the checkpoint holds them.
        image_size: side of the model's input in pixels, instead of the checkpoint's.
        device: "cpu", "cuda", "cuda:1"; None takes a CUDA device where there is one, and a `LoadedModel` where it is.
        batch_size: pictures that go through the model at once; a corrupted one needs its clean one beside it, so at least two.
        amp: mixed precision, bfloat16 (float16 on a GPU without it); the metrics are computed in float32.
        workers: processes that read and corrupt images beside the model; 0 does it in this one.
        seed: of the corruptions.
        layers: attention layers to measure, counted in call order from 0, from the end where negative; None for all.
        per_head: a row for each head instead of the mean over heads.
        limit: take only so many images, spread evenly over the list.
        top_fraction: share of the patches that counts as the top in `top_share` and `top_overlap`.
        displayed: images to keep pictures and full maps of, for the report.
        maps_limit: images to keep received attention of; the tables hold all.
        max_pixels: larger pictures are refused before they are decoded.
        strict: raise on the first image that cannot be read, instead of skipping and counting it.
        overwrite: replace a run that lies in `output` (other files there are left alone).
        progress: show a progress bar; None shows it on a terminal.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        CorruptionError: a corruption or severity does not exist.
        ImageError: no image can be read, or one cannot with `strict`.
        CaptureError: the model has no attention over tokens, or attention with NaN.
        RunError: a setting is out of range, or the folder holds something else or cannot be written.
    """
    settings = Settings(
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
        device=str(_device_of(checkpoint) if device is None else choose_device(device)),
        workers=choose_workers(workers),
        strict=bool(strict),
        image_size=image_size,
        displayed=displayed,
        maps_limit=maps_limit,
        max_pixels=max_pixels,
    )
    loaded = _load(checkpoint, settings, model=model, use_ema=use_ema)
    sources = _spread(find_images(images, loaded.input_size), limit)
    classes = match_labels((source.label for source in sources), loaded.class_names, loaded.num_classes)
    wanted = {
        "format": FORMAT,
        "overfocus": __version__,
        "settings": settings.as_dict(),
        "checkpoint": describe_checkpoint(loaded),
        "class_names": classes.names,
        "images": [_describe_image(number, source) for number, source in enumerate(sources)],
    }
    folder = RunFolder(Path(output))
    info = folder.open(wanted, overwrite=overwrite)
    if info is None:
        info = _begin(folder, wanted, loaded, sources, classes, settings)
    if info["status"] != "complete":
        continue_run(folder, info, loaded, sources, settings, classes.ids, progress=progress)
    return Run(folder.path)


def _device_of(checkpoint: object) -> torch.device:
    """Where a loaded model is; else a CUDA device where there is one."""
    parameters = getattr(getattr(checkpoint, "model", None), "parameters", None)
    first = next(iter(parameters()), None) if parameters else None
    return choose_device(None) if first is None else first.device


def _load(
    checkpoint: "str | Path | LoadedModel | None", settings: Settings, *, model: str | None, use_ema: bool
) -> "LoadedModel":
    from overfocus.checkpoints.load import LoadedModel, load_model

    if isinstance(checkpoint, LoadedModel):
        if model is not None or settings.image_size is not None:
            raise RunError(
                "model and image_size say how to load a checkpoint, but a loaded model was given; pass them to load_model"
            )
        checkpoint.model.to(settings.device).eval()
        return checkpoint
    if checkpoint is None:
        from overfocus.samples import sample_checkpoint

        checkpoint = sample_checkpoint()
    return load_model(checkpoint, model=model, use_ema=use_ema, image_size=settings.image_size, device=settings.device)


def _spread(sources: list[ImageSource], limit: int | None) -> list[ImageSource]:
    """At most `limit` of the images, spread evenly, so that a list sorted by class gives all classes."""
    if limit is None or limit >= len(sources):
        return sources
    return [sources[number * len(sources) // limit] for number in range(limit)]


def _describe_image(number: int, source: ImageSource) -> dict[str, Any]:
    return {"image": number, "name": source.name, "path": str(source.path), "label": source.label, "width": None, "height": None}


def _begin(
    folder: RunFolder,
    wanted: dict[str, Any],
    loaded: "LoadedModel",
    sources: Sequence[ImageSource],
    classes: Classes,
    settings: Settings,
) -> dict[str, Any]:
    """Write run.json of a new run: beside what was `wanted` its layers, coverage, displayed images.

    Where the windows of its layers lie is too long for run.json and is written beside the maps.
    """
    displayed = choose_displayed(sources, settings)
    picture = loaded.preprocess(displayed.example).to(settings.device)
    with precision(torch.device(settings.device), amp=settings.amp):
        sites = find_sites(loaded.model, torch.stack([picture, picture]), settings.layers)
    labels = {source.label for source in sources if source.label is not None}
    unknown = sorted(labels - classes.ids.keys())
    notes = [f"{len(unknown)} of {len(labels)} labels mean no class of the model ({', '.join(unknown[:3])})"] if unknown else []
    info = wanted | {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "running",
        "done": 0,
        "layers": sites.layers,
        "coverage": sites.coverage,
        "skipped": [],
        "displayed": displayed.images,
        "notes": notes,
        "versions": describe_versions(),
        "timing": {},
    }
    folder.write_info(info)
    if sites.partitions:
        folder.write_arrays("maps/windows.npz", {f"layer_{number:02d}": kept for number, kept in sites.partitions.items()})
    return info
