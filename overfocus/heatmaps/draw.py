"""From a model and images to heat maps: in Python, and as files."""

import difflib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from overfocus.checkpoints.load import resolve_model
from overfocus.corruptions import check_severity, resolve_corruptions
from overfocus.errors import CaptureError, ImageError, RunError, out_of_memory_as
from overfocus.figures.images import add_scale, attention_norm, draw_overlay, frame_patch, highest, largest_places
from overfocus.figures.style import save_figure, styled
from overfocus.heatmaps.maps import HeatMap, heat_maps
from overfocus.images.labels import class_named
from overfocus.images.live import image_sources
from overfocus.images.sources import ImageSource
from overfocus.processes import choose_device
from overfocus.settings import typed
from overfocus.sweep.reading import ImageReader, InputSize
from overfocus.sweep.settings import HeatMapMethod, HeatMapRequest, HeatMapSettings
from overfocus.sweep.sweep import place_of
from overfocus.text import printable
from overfocus.variants import Variant, list_variants

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from overfocus.checkpoints.load import LoadedModel

ACROSS = 6
"""Layers in a row."""
TOP_FRACTION = 0.05
"""Share of the patches that are outlined as the most attended."""


@dataclass(frozen=True)
class HeatMaps:
    """The heat maps of one image, clean and under corruptions; shows itself as a figure in a notebook."""

    maps: list[HeatMap]
    """One for each layer (or head) asked for; `values` has the versions on its first axis."""
    pixels: npt.NDArray[np.uint8] = field(repr=False)
    """(versions, height, width, 3), as the model sees them."""
    variants: list[Variant]
    """Clean first."""
    request: HeatMapRequest
    name: str
    """Of the model and the image."""
    class_names: list[str] | None = field(default=None, repr=False)

    def figure(self) -> "Figure":
        """Draw them on one sheet."""
        target = self.maps[0].target
        known = self.class_names is not None and target is not None and target < len(self.class_names)
        of_class = "" if target is None else f" for class {target}" + (f" ({self.class_names[target]})" if known else "")  # type: ignore[index]
        with styled():
            heading = f"{printable(self.name)} · {describe(self.request)}{of_class}"
            return heat_map_sheet(
                self.pixels, [variant.label for variant in self.variants], self.maps, heading, counted(self.request)
            )

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.figure().savefig(file, format="png")
        return file.getvalue()


@typed(CaptureError)
def heatmap(
    model: Any,
    image: "str | Path | Image.Image | npt.NDArray[Any] | Tensor | None" = None,
    method: HeatMapMethod = "received",
    *,
    corruptions: str | Sequence[str] = (),
    severity: int = 3,
    seed: int = 0,
    device: str | torch.device | None = None,
    **options: Any,
) -> HeatMaps:
    """Attention of one image as heat maps.

        overfocus.heatmap(model, "cat.jpg", method="grad-cam", layer=-1)

    Args:
        model: a checkpoint's path, a timm name, a module, a `LoadedModel`, or None for the bundled one.
        image: a path, a PIL image, an array or a tensor, or None for the first bundled image.
        method: "received", "row", "rollout", "gradient-rollout" or "grad-cam", see `HeatMapRequest`.
        corruptions: shown beside the clean image.
        severity: of the corruptions, 1 … 5.
        seed: of the corruptions.
        device: where the model runs; by default where it is.
        **options: further fields of `HeatMapRequest`: layer, head, query, target …

    Returns:
        Maps (versions, rows, columns) in multiples of uniform attention (for a class, of their mean); shown in notebooks.

    Raises:
        CheckpointError, ImageError, CorruptionError, CaptureError: what was given cannot be loaded, read or shown, or an
            option has no meaning for the method.
    """
    request = HeatMapRequest(method, **options)
    loaded = resolve_model(model, device=place_of(model, device))
    source = image_sources(image, loaded.input_size)[:1]
    return next(_heat_maps(loaded, source, request, corruptions, severity, seed))


def _heat_maps(
    loaded: "LoadedModel",
    sources: Sequence[ImageSource],
    request: HeatMapRequest,
    corruptions: str | Sequence[str],
    severity: int,
    seed: int,
) -> Iterator[HeatMaps]:
    """The heat maps of each image."""
    check_severity(severity)
    variants = list_variants(resolve_corruptions(corruptions), [severity])
    request = replace(request, target=class_number(request.target, loaded.class_names))
    device = next(loaded.model.parameters()).device
    reader = ImageReader(sources, variants, loaded.preprocess, seed)
    for number, image in enumerate(sources):
        sample = reader(number, range(len(variants)))
        if sample.reason is not None:
            raise ImageError(sample.reason)
        images = sample.pixels[InputSize.of(loaded.preprocess)]
        with out_of_memory_as(RunError, "try fewer corruptions, or a smaller image_size"):
            maps = heat_maps(loaded.model, loaded.preprocess.normalize_batch(list(images), device), request)
        yield HeatMaps(maps, images, variants, request, f"{loaded.name} · {image.name}", loaded.class_names)


def class_number(target: int | str | None, names: Sequence[str] | None) -> int | None:
    """The class by number or name; of a name with synonyms ("tabby, tabby cat") one is enough, whatever its case.

    Raises:
        CaptureError: no class has that name, or the model does not know the names.
    """
    if not isinstance(target, str):
        return target
    if names is not None and target in names:
        return list(names).index(target)
    if target.isdecimal():
        return int(target)
    if names is None:
        raise CaptureError(
            f"expected the number of a class, since the model does not name its classes, got {printable(target)!r}"
        )
    if (number := class_named(target, names)) is not None:
        return number
    synonyms = [synonym.strip() for name in names for synonym in name.split(",")]
    close = difflib.get_close_matches(target, synonyms, 1)
    hint = f"; did you mean {printable(close[0])!r}?" if close else ""
    raise CaptureError(f"expected a class that the model names, such as {printable(names[0])!r}, got {printable(target)!r}{hint}")


def draw_heat_maps(settings: HeatMapSettings) -> list[Path]:
    """Write one PNG per image into `settings.output`: the image, clean and under each corruption, below its attention.

    Without `checkpoint` or `images` the bundled ones are taken. Values are multiples of uniform attention on one logarithmic
    scale per file. Images are resized and cropped as the model's input is, and corrupted after that.

    Raises:
        CheckpointError, ImageError, CorruptionError, CaptureError: what was given cannot be loaded, read or shown.
        RunError: `output` cannot be written.
    """
    checkpoint = settings.checkpoint
    place = choose_device(place_of(checkpoint, settings.device))
    loaded = resolve_model(checkpoint, device=place, **settings.loading())
    sources = image_sources(settings.images, loaded.input_size)
    drawings = _heat_maps(loaded, sources, settings, settings.corruptions or (), settings.severity, settings.seed)
    written: dict[Path, None] = {}
    for image, drawn in zip(sources, drawings, strict=True):
        path = unused(Path(settings.output), f"{Path(image.name).stem}-{file_part(drawn, drawn.variants)}", written)
        with styled():
            save_figure(drawn.figure(), path)
        written[path] = None
    return list(written)


def describe(request: HeatMapRequest) -> str:
    """The request in words: "attended by patch 3,4, head 2"."""
    asking = (
        "" if request.query is None else "the class token" if request.query == "class" else "patch {},{}".format(*request.query)
    )
    of_token = f" of {asking}" if asking else ""
    names = {
        "received": "received attention",
        "row": f"attended by {asking or 'one token'}",
        "rollout": f"rollout{of_token}",
        "gradient-rollout": f"attention × gradient rollout{of_token}",
        "grad-cam": "Grad-CAM of the tokens",
    }
    head = "" if request.head is None else ", all heads" if request.head == "all" else f", head {request.head}"
    fusion = f", {request.head_fusion} of heads" if request.method == "rollout" and request.head is None else ""
    discard = f", {request.discard_ratio:.0%} discarded" if request.discard_ratio else ""
    return names[request.method] + head + fusion + discard


def counted(request: HeatMapRequest) -> str:
    """What the colours count."""
    counted_in_uniform = {"received": "received attention", "row": "attention", "rollout": "share of the token"}
    known = counted_in_uniform.get(request.method)
    return "relevance, × its mean" if known is None else f"{known}, × uniform"


def file_part(drawn: HeatMaps, variants: Sequence[Variant]) -> str:
    """The part of a file's name that tells requests apart; layers and heads counted from the first, whatever was asked."""
    request, first = drawn.request, drawn.maps[0]
    query = "" if request.query is None else "-class" if request.query == "class" else "-{}-{}".format(*request.query)
    layer = "" if request.layer is None else f"-layer-{first.layer}"
    head = "" if request.head is None else "-heads" if request.head == "all" else f"-head-{first.head}"
    target = "" if request.target is None else f"-for-{first.target}"
    corrupted = "".join(f"-{variant.corruption}" for variant in variants[1:]) + (
        f"-{variants[1].severity}" if variants[1:] else ""
    )
    return f"{request.method}{query}{layer}{head}{target}{corrupted}"


def unused(folder: Path, name: str, taken: dict[Path, None]) -> Path:
    """A path in `folder` that none of this call's files has: images of different folders may share a name."""
    path, number = folder / f"{name}.png", 2
    while path in taken:
        path, number = folder / f"{name}-{number}.png", number + 1
    return path


def heat_map_sheet(images: npt.NDArray[np.uint8], versions: list[str], maps: list[HeatMap], heading: str, what: str) -> "Figure":
    """Draw (versions, height, width, 3) images under their maps; call inside `styled()`.

    One map: each version's image, plain and covered. Several layers: a block of rows with one row per version for every
    six layers; several heads: one such block for each layer. `what` says what the colours count.
    """
    from matplotlib.figure import Figure

    values = [map.values.float().cpu().numpy() for map in maps]
    by_layer: dict[int | None, list[int]] = {}
    for number, map in enumerate(maps):
        by_layer.setdefault(map.layer, []).append(number)
    heads = max(len(numbers) for numbers in by_layer.values())
    order = list(range(len(maps)))
    if heads > 1:  # layers of fewer heads leave places free
        order = [number for numbers in by_layer.values() for number in numbers + [len(maps)] * (heads - len(numbers))]
    across = heads if heads > 1 else min(ACROSS, len(maps))
    columns = across + 1
    blocks = -(-len(order) // across)
    side = 1.5 if len(maps) > 1 else 2.8
    height_of_one = side * images.shape[1] / images.shape[2]
    rows = blocks * len(versions)
    left, right, top, below = 0.25, 0.95, 0.62, 0.32
    width, height = left + side * columns + right, top + rows * (height_of_one + 0.2) + below
    height = max(height, 2.6)
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(
        rows, columns, squeeze=False,
        gridspec_kw={"left": left / width, "right": 1 - right / width, "top": 1 - top / height, "bottom": below / height,
                     "wspace": 0.04, "hspace": 0.2 / height_of_one},
    )  # fmt: skip
    high = highest(values)
    norm = attention_norm(high)
    for row in range(rows):
        block, version = divmod(row, len(versions))
        image = images[version]
        draw_overlay(axes[row, 0], image, None, norm)
        axes[row, 0].set_title(versions[version], fontsize=8, pad=3)
        for column in range(1, columns):
            place = block * across + column - 1
            number = order[place] if place < len(order) else len(maps)
            if number >= len(maps):
                axes[row, column].set_axis_off()
                continue
            shown = values[number][version]
            top_k = [place for place in largest_places(shown, TOP_FRACTION) if shown.flat[place] > 0]
            draw_overlay(axes[row, column], image, shown, norm, top_k)
            query, grid = maps[number].query, maps[number].query_grid
            if query and grid:
                frame_patch(axes[row, column], query, grid, image.shape[:2], "#ffffff", 2.0)
            if version == 0:
                module = f" ({maps[number].module})" if len(maps) == 1 and maps[number].module else ""
                axes[row, column].set_title(maps[number].label + module, fontsize=8, pad=3)
    figure.text(left / width, 1 - 0.2 / height, heading, fontsize=10, va="center")
    asking = "; white: the query patch" if any(map.query for map in maps) else ""
    outlined = f"orange: the {100 * TOP_FRACTION:g} % most {'attended' if maps[0].target is None else 'relevant'} patches{asking}"
    figure.text(left / width, 0.12 / height, outlined, fontsize=7.5)
    add_scale(figure, (1 - 0.82 / width, 0.16, 0.14 / width, 0.64), high, what)
    return figure
