"""`analyze`: images × corruptions × severities through one model, attention measured on the way, into a run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from overfocus.analysis.preparation import choose_images, fit_batches, load_for_run, open_run, place_of
from overfocus.analysis.session import continue_runs
from overfocus.analysis.settings import DEFAULT_BATCH_SIZE, choose_settings
from overfocus.images.reading import MAX_PIXELS
from overfocus.run import Run

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

    Each corrupted picture is compared with its clean one, layer by layer, while the model runs: memory grows neither with the
    number of images nor with the depth of the model. Interrupted at any moment, the same call continues where it stopped
    and ends with the same tables.

    Args:
        checkpoint: a file, a hub folder, a timm name or a `LoadedModel`; None takes the bundled one.
        images: a folder (class sub-folders give labels), picture files, a text list, or None for the bundled samples; for a
            segmentation model also a data set with masks to score against (Cityscapes, ACDC, images/ beside masks/).
        corruptions: names or groups of `overfocus.corruptions`; None takes one of each group, an empty list none.
        severities: from 1 to 5; None takes 1, 3 and 5.
        output: the run folder.
        model: architecture, where the checkpoint does not say it.
        use_ema: take weights averaged over training where the checkpoint holds them.
        image_size: side of the model's input in pixels, instead of the checkpoint's.
        device: "cpu", "cuda", "cuda:1"; None takes a CUDA device where there is one, and a `LoadedModel` where it is.
        batch_size: pictures that go through the model at once; a corrupted one needs its clean one beside it, so at least two.
            None takes 16, and 4 for segmentation.
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
    settings = choose_settings(
        images=images,
        corruptions=corruptions,
        severities=severities,
        device=place_of(checkpoint, device),
        batch_size=DEFAULT_BATCH_SIZE if batch_size is None else batch_size,
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
    loaded = load_for_run(checkpoint, settings.device, model=model, use_ema=use_ema, image_size=image_size)
    settings = fit_batches(settings, batch_size, [loaded])
    sources = choose_images(images, loaded, limit)
    run = open_run(Path(output), loaded, sources, settings, loaded.preprocess, overwrite=overwrite)
    if run.info["status"] != "complete":
        continue_runs([run], sources, settings, loaded.preprocess, progress=progress)
    return Run(run.folder.path)
