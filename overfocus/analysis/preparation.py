"""What comes before the measuring: the model loaded, the images found, the run folder opened."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from overfocus.analysis.description import describe_checkpoint, describe_versions, find_sites
from overfocus.analysis.display import choose_displayed
from overfocus.analysis.folder import RunFolder
from overfocus.analysis.labels import Classes, match_labels
from overfocus.analysis.masked import MaskedSource, masked_sources
from overfocus.analysis.measuring import precision
from overfocus.analysis.pixels import describe_pixels
from overfocus.analysis.pixelwise import BATCH_SIZE, SEGMENTATION, predicts_pixels
from overfocus.analysis.settings import Settings, choose_device
from overfocus.analysis.turns import ModelRun
from overfocus.datasets.class_colours import class_colours
from overfocus.datasets.masks import IGNORED
from overfocus.errors import RunError
from overfocus.images.sources import ImageSource, find_images
from overfocus.run import FORMAT
from overfocus.version import __version__

if TYPE_CHECKING:
    from overfocus.checkpoints.load import LoadedModel
    from overfocus.preprocessing import Preprocess


def place_of(checkpoint: object, device: str | torch.device | None) -> torch.device:
    """The device asked for; else where a loaded model is, or a CUDA device where there is one.

    Raises:
        RunError: there is no such device.
    """
    parameters = getattr(getattr(checkpoint, "model", None), "parameters", None)
    first = next(iter(parameters()), None) if device is None and parameters else None
    return choose_device(device) if first is None else first.device


def load_for_run(
    checkpoint: "str | Path | LoadedModel | None",
    device: str | torch.device,
    *,
    model: str | None,
    use_ema: bool,
    image_size: int | None,
) -> "LoadedModel":
    """The model of a run on its device; None loads the bundled one.

    Raises:
        CheckpointError: it cannot be loaded.
        RunError: a loaded model was given together with how to load it.
    """
    from overfocus.checkpoints.load import LoadedModel, load_model

    if isinstance(checkpoint, LoadedModel):
        if model is not None or image_size is not None:
            raise RunError(
                "model and image_size say how to load a checkpoint, but a loaded model was given; pass them to load_model"
            )
        checkpoint.model.to(device).eval()
        return checkpoint
    if checkpoint is None:
        from overfocus.samples import sample_checkpoint

        checkpoint = sample_checkpoint()
    return load_model(checkpoint, model=model, use_ema=use_ema, image_size=image_size, device=device)


def choose_images(
    images: str | Path | Sequence[str | Path] | None, loaded: "LoadedModel", limit: int | None
) -> list[ImageSource]:
    """The images that a run takes; the bundled ones that suit the model where `images` is None.

    For a segmentation model a data set with masks gives these too; sub-folders of pictures mean nothing for it.

    Raises:
        ImageError: there are none.
    """
    if not predicts_pixels(loaded):
        return _spread(find_images(images, loaded.input_size), limit)
    masked = masked_sources(images, loaded)
    if masked is not None:
        return _spread(masked, limit)
    unlabelled = [replace(source, label=None) for source in find_images(images, loaded.input_size)]
    return _spread(unlabelled, limit)


def fit_batches(settings: Settings, asked: int | None, models: "Sequence[LoadedModel]") -> Settings:
    """The settings with a batch size that suits the models, where none was asked for."""
    if asked is None and any(predicts_pixels(loaded) for loaded in models):
        return replace(settings, batch_size=min(settings.batch_size, BATCH_SIZE))
    return settings


def open_run(
    folder: Path,
    loaded: "LoadedModel",
    sources: Sequence[ImageSource],
    settings: Settings,
    preprocess: "Preprocess",
    *,
    overwrite: bool,
) -> ModelRun:
    """The run that lies in a folder, or a new one; `preprocess` says at which geometry images are corrupted.

    Raises:
        RunError: the folder holds something else or cannot be written.
        CaptureError: the model has no attention over tokens.
        ImageError: no image can be read.
    """
    segmented = predicts_pixels(loaded)
    classes = _classes_of_pixels(loaded, sources) if segmented else _classes_of_images(loaded, sources)
    wanted = {
        "format": FORMAT,
        "overfocus": __version__,
        "settings": settings.as_dict(),
        "checkpoint": describe_checkpoint(loaded),
        "pixels": describe_pixels(preprocess),
        "class_names": classes.names,
        **(_describe_pixels_task(loaded, classes) if segmented else {}),
        "images": [_describe_image(number, source) for number, source in enumerate(sources)],
    }
    run_folder = RunFolder(folder)
    info = run_folder.open(wanted, overwrite=overwrite)
    if info is None:
        info = _begin(run_folder, wanted, loaded, sources, classes, settings)
    return ModelRun(run_folder, info, loaded, classes.ids)


def _classes_of_images(loaded: "LoadedModel", sources: Sequence[ImageSource]) -> Classes:
    return match_labels((source.label for source in sources), loaded.class_names, loaded.num_classes)


def _classes_of_pixels(loaded: "LoadedModel", sources: Sequence[ImageSource]) -> Classes:
    """The classes as the model names them, or else the data set, where it has as many."""
    there = sources[0].images.class_names if isinstance(sources[0], MaskedSource) else None
    names = loaded.class_names or (there if there and len(there) == loaded.num_classes else None)
    return Classes(list(names) if names else None, {})


def _describe_pixels_task(loaded: "LoadedModel", classes: Classes) -> dict[str, Any]:
    if loaded.num_classes > IGNORED:
        raise RunError(f"expected a model of at most {IGNORED} classes of pixels, as masks can hold, got {loaded.num_classes}")
    names = classes.names or [str(number) for number in range(loaded.num_classes)]
    return {"task": SEGMENTATION, "class_colours": loaded.class_colours or class_colours(names).tolist()}


def _spread(sources: Sequence[ImageSource], limit: int | None) -> list[ImageSource]:
    """At most `limit` of the images, spread evenly, so that a list sorted by class gives all classes."""
    if limit is None or limit >= len(sources):
        return list(sources)
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
        "attention_layers": sites.count,
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
