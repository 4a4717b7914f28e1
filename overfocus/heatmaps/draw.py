"""From a checkpoint and pictures to heat map files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from overfocus.checkpoints.load import resolve_model
from overfocus.corruptions import check_severity, resolve_corruptions
from overfocus.errors import ImageError, RunError
from overfocus.figures.style import styled
from overfocus.heatmaps.maps import HeatMapRequest, heat_maps
from overfocus.heatmaps.sheet import heat_map_sheet
from overfocus.images.sources import find_images
from overfocus.memory import out_of_memory_as
from overfocus.processes import choose_device
from overfocus.sweep.opening import place_of
from overfocus.sweep.reading import ImageReader, InputSize
from overfocus.variants import Variant, list_variants

if TYPE_CHECKING:
    from overfocus.checkpoints.load import LoadedModel


def draw_heat_maps(
    checkpoint: "str | Path | LoadedModel | None",
    images: str | Path | Sequence[str | Path] | None = None,
    request: HeatMapRequest | None = None,
    *,
    corruptions: str | Sequence[str] = (),
    severity: int = 3,
    seed: int = 0,
    output: str | Path = "overfocus-heatmaps",
    model: str | None = None,
    use_ema: bool = True,
    image_size: int | None = None,
    device: str | torch.device | None = None,
) -> list[Path]:
    """Write one PNG per picture into `output`: the picture, clean and under each corruption, below its attention.

    Without `checkpoint` or `images` the bundled ones are taken. Values are multiples of uniform attention on one logarithmic
    scale per file. Pictures are resized and cropped as the model's input is, and corrupted after that.

    Raises:
        CheckpointError, ImageError, CorruptionError, CaptureError: what was given cannot be loaded, read or shown.
        RunError: `output` cannot be written.
    """
    request = request or HeatMapRequest()
    check_severity(severity)
    variants = list_variants(resolve_corruptions(corruptions), [severity])
    place = choose_device(place_of(checkpoint, device))
    loaded = resolve_model(checkpoint, device=place, model=model, use_ema=use_ema, image_size=image_size)
    reader = ImageReader(find_images(images, loaded.input_size), variants, loaded.preprocess, seed)
    written: dict[Path, None] = {}
    for number, image in enumerate(reader.sources):
        sample = reader(number, range(len(variants)))
        if sample.reason is not None:
            raise ImageError(sample.reason)
        pictures = sample.pixels[InputSize.of(loaded.preprocess)]
        with out_of_memory_as(RunError, "try fewer corruptions, or a smaller image_size"):
            maps = heat_maps(loaded.model, loaded.preprocess.normalize_batch(list(pictures), place), request)
        with styled():
            heading = f"{loaded.name} · {image.name} · {describe(request)}"
            figure = heat_map_sheet(pictures, [variant.label for variant in variants], maps, heading, counted(request))
            path = unused(Path(output), f"{Path(image.name).stem}-{file_part(request, variants)}", written)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(path)
            except OSError as error:
                raise RunError(f"{path}: cannot be written ({error.strerror or error}); choose another output folder") from error
        written[path] = None
    return list(written)


def describe(request: HeatMapRequest) -> str:
    """The request in words: "attended by patch 3,4, head 2"."""
    asking = (
        "" if request.query is None else "the class token" if request.query == "class" else "patch {},{}".format(*request.query)
    )
    names = {
        "received": "received attention",
        "row": f"attended by {asking or 'one token'}",
        "rollout": f"rollout{' of ' if asking else ''}{asking}",
    }
    head = "" if request.head is None else f", head {request.head}"
    fusion = f", {request.head_fusion} of heads" if request.method == "rollout" and request.head is None else ""
    discard = f", {request.discard_ratio:.0%} discarded" if request.discard_ratio else ""
    return names[request.method] + head + fusion + discard


def counted(request: HeatMapRequest) -> str:
    """What the colours count."""
    return {"received": "received attention", "row": "attention", "rollout": "share of the token"}[request.method]


def file_part(request: HeatMapRequest, variants: list[Variant]) -> str:
    """The part of a file's name that tells requests apart."""
    query = "" if request.query is None else "-class" if request.query == "class" else "-{}-{}".format(*request.query)
    layer = "" if request.layer is None else f"-layer-{request.layer}"
    head = "" if request.head is None else f"-head-{request.head}"
    corrupted = "".join(f"-{variant.corruption}" for variant in variants[1:]) + (
        f"-{variants[1].severity}" if variants[1:] else ""
    )
    return f"{request.method}{query}{layer}{head}{corrupted}"


def unused(folder: Path, name: str, taken: dict[Path, None]) -> Path:
    """A path in `folder` that none of this call's files has: pictures of different folders may share a name."""
    path, number = folder / f"{name}.png", 2
    while path in taken:
        path, number = folder / f"{name}-{number}.png", number + 1
    return path
