"""What the page shows of single images: pixels, maps and matrices, as fine as the page has room for, and encoded as text."""

import base64
import io
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from overfocus.figures.images import ReceivedMaps, top_places
from overfocus.metrics.catalogue import CATALOGUE
from overfocus.metrics.pooling import Weights, averaging, block_numbers, block_side
from overfocus.runs.description import Layer
from overfocus.variants import Variant, middle_severity

if TYPE_CHECKING:
    from overfocus.run import Run


FLOOR = -6.0
"""Log2 of the smallest value, in multiples of uniform attention, that is distinguished from none."""


@dataclass(frozen=True)
class Codes:
    """Byte 0 is "less than the floor"; byte b is 2^(FLOOR + (b − 1) / per_octave) times uniform attention."""

    per_octave: int

    def encode(self, multiples: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
        """Multiples of uniform attention to bytes."""
        with np.errstate(divide="ignore"):
            octaves = np.log2(multiples.astype(np.float32))
        return np.clip(np.round((octaves - FLOOR) * self.per_octave) + 1, 0, 255).astype(np.uint8)

    def decode(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Bytes to multiples of uniform attention; 0 for byte 0."""
        values: npt.NDArray[np.float64] = np.exp2(FLOOR + (codes.astype(np.float64) - 1) / self.per_octave)
        return np.where(codes == 0, 0.0, values)


def png(codes: npt.NDArray[np.uint8]) -> str:
    """Bytes of any shape ending in (rows, columns) as a base64 greyscale PNG, leading axes stacked downwards."""
    return base64_of(Image.fromarray(codes.reshape(-1, codes.shape[-1])), "PNG", optimize=True)


def image_uri(pixels: npt.NDArray[np.uint8], longest: int, quality: int) -> str:
    """A photograph (height, width, 3) as a data URI, at most `longest` pixels a side; PNG where it is tiny."""
    image = Image.fromarray(pixels)
    if max(image.size) <= 96:
        return "data:image/png;base64," + base64_of(image, "PNG", optimize=True)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return "data:image/jpeg;base64," + base64_of(image, "JPEG", quality=quality, optimize=True)


def base64_of(image: Image.Image, kind: str, **options: object) -> str:
    """An encoded image as text."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def number(value: float, digits: int = 6) -> float | None:
    """A number as written in JSON: short, and null where undefined."""
    return None if not math.isfinite(value) else float(f"{value:.{digits}g}")


def numbers(values: npt.NDArray[np.floating[Any]]) -> object:
    """An array as nested lists of such numbers."""
    if values.ndim == 0:
        return number(float(values))
    return [numbers(part) for part in values]


RECEIVED = Codes(per_octave=18)
"""Scale of the received attention: steps of 4 %, up to 256 times uniform."""
IMAGES = ((224, 85), (224, 75), (192, 72), (160, 68), (128, 62), (112, 55), (96, 50))
"""Longest side in pixels and JPEG quality, from the finest that is tried."""
LARGE_IMAGES = ((1024, 82), (768, 82), (640, 80), (512, 78), (448, 76), (384, 74), (320, 72), *IMAGES)
"""The same for segmentation, where single pixels are looked at."""
MANY = 128
"""Images above which only the middle severity of each corruption is shown."""
SHEET = 256
"""Columns of the sheet that one image's received attention, all layers in a row, is laid out on."""


@dataclass(frozen=True)
class Displayed:
    """The displayed images in the variants that fit."""

    run: "Run"
    layers: list[Layer]
    variants: list[Variant]
    """All variants of the run; numbers of variants count from here."""

    @cached_property
    def received_maps(self) -> ReceivedMaps:
        """Received attention by image and variant."""
        return ReceivedMaps(self.run)

    @cached_property
    def middle(self) -> list[int]:
        """Numbers of the clean variant and of each corruption at its middle severity."""
        middle = middle_severity([variant.severity for variant in self.variants if variant.severity] or [0])
        return [number for number, variant in enumerate(self.variants) if variant.severity in (0, middle)]

    @cached_property
    def shown(self) -> list[int]:
        """Numbers of the variants to show: all, or the middle ones where that would be too many images."""
        few = len(self.run.displayed) * len(self.variants) <= MANY
        return list(range(len(self.variants))) if few else self.middle

    def images(self, room: int) -> dict[int, dict[int, str]]:
        """Image → variant → data URI, as fine as `room` characters allow."""
        pixels = {image: self.run.maps(image, ()).pixels for image in self.run.displayed}
        sizes = LARGE_IMAGES if self.run.segmented else IMAGES
        longest, quality = sizes[-1]
        for longest, quality in sizes:
            sample = [
                len(image_uri(kept[number], longest, quality)) for kept in list(pixels.values())[:2] for number in self.shown
            ]
            if sum(sample) / max(1, len(sample)) * len(self.shown) * len(pixels) <= room:
                break
        return {
            image: {number: image_uri(kept[number], longest, quality) for number in self.shown} for image, kept in pixels.items()
        }

    def same_images(self, other: "Displayed") -> bool:
        """Whether both show the very same pixels."""
        if self.run.displayed != other.run.displayed:
            return False
        shown = self.run.displayed
        return all(np.array_equal(self.run.maps(image, ()).pixels, other.run.maps(image, ()).pixels) for image in shown)

    def sheets(self) -> dict[int, dict[int, dict[str, Any]]]:
        """Image → variant → {"sheet": PNG of all layers' maps in a row, "top": places of the top k, layer by layer}."""
        return {image: {number: self.sheet_of(image, number) for number in self.shown} for image in self.run.displayed}

    def sheet_of(self, image: int, number: int) -> dict[str, Any]:
        """The received attention of one image in multiples of uniform attention."""
        maps = self.received_maps(image, self.variants[number])
        flat = [profile.ravel() * profile.size for profile in maps if profile is not None]
        if not flat:
            return {"sheet": None, "top": [[] for _ in maps]}
        codes = RECEIVED.encode(np.concatenate(flat))
        sheet = np.zeros(-(-len(codes) // SHEET) * SHEET, dtype=np.uint8)
        sheet[: len(codes)] = codes
        top = [top_places(profile, layer) for profile, layer in zip(maps, self.layers, strict=True)]
        return {"sheet": png(sheet.reshape(-1, SHEET)), "top": top}


Array = npt.NDArray[np.float64]
RANKED_BY = "received_shift"
"""What galleries are ranked by: it weighs by mass, so that flat attention does not count as unstable."""


@dataclass(frozen=True)
class ImageValues:
    """Stability of every single image; head means where the run kept heads."""

    images: list[int]
    """Image numbers, the last axis of `values`."""
    values: dict[str, Array]
    """Metric → (variants, layers, images); NaN for the clean variant."""

    @cached_property
    def over_layers(self) -> dict[str, Array]:
        """Metric → (variants, images), the mean over layers that have a value."""
        return {name: mean_over_layers(values) for name, values in self.values.items()}

    def worst(self, metric: str, among: list[int] | None = None) -> tuple[npt.NDArray[np.int64], Array]:
        """Number and value of the image whose attention changed most, (variants, 1 + layers): over layers, then layer by layer.

        The number is −1 where no image of `among` (all by default) has a value.
        """
        values = np.concatenate([self.over_layers[metric][:, None], self.values[metric]], axis=1)
        if among is not None:
            values = np.where(np.isin(self.images, among), values, np.nan)
        changed = -values if CATALOGUE[metric].overfocused == "low" else values
        place = np.where(np.isnan(changed), -np.inf, changed).argmax(axis=2)
        found = np.take_along_axis(values, place[..., None], axis=2)[..., 0]
        return np.where(np.isnan(found), -1, np.array(self.images)[place]), found

    def gallery(self, variant: int, size: int) -> tuple[list[int], list[int]]:
        """Numbers of the images whose attention moved most, worst first, and of those where it moved least, best first.

        Both hold at most `size` images, and no image is in both.
        """
        moved = self.over_layers[RANKED_BY][variant]
        order = [int(place) for place in np.argsort(-moved, kind="stable") if not np.isnan(moved[place])]
        half = min(size, (len(order) + 1) // 2)
        rest = order[half:][::-1][:size]
        return [self.images[place] for place in order[:half]], [self.images[place] for place in rest]

    def moved(self, variant: int, image: int) -> float:
        """Share of attention that moved in one image, the mean over layers."""
        return float(self.over_layers[RANKED_BY][variant, self.images.index(image)])


def image_values(run: "Run", variants: list[Variant], layers: list[Layer]) -> ImageValues:
    """Read the stability metrics of every image from the table, heads averaged."""
    cells = run.cells
    there = np.flatnonzero(cells.present[:, :-1].any(1))
    places = [cells.variants.index(variant) for variant in variants]
    columns = [[layer.number for layer in run.description.layers].index(layer.number) for layer in layers]
    values = {
        name: cells[name][there][:, places][:, :, columns].transpose(1, 2, 0)
        for name, metric in CATALOGUE.items()
        if metric.group == "stability" and name in cells
    }
    return ImageValues([int(number) for number in cells.numbers[there]], values)


def mean_over_layers(values: Array) -> Array:
    """Mean over the layers that have a value, (variants, layers, images) to (variants, images); NaN where none has."""
    known = np.isfinite(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class Detail:
    """How finely a layer's matrices are kept."""

    query_block: int
    """Side of the blocks of queries that are averaged, in units of the least one of the shape."""
    key_block: int
    per_octave: int
    """Steps of the values per doubling."""


LADDER = (
    Detail(1, 1, 16),
    Detail(1, 1, 4),
    Detail(2, 1, 8),
    Detail(2, 1, 4),
    Detail(3, 1, 4),
    Detail(4, 1, 4),
    Detail(4, 2, 4),
    Detail(4, 4, 4),
    None,
)
"""From the finest detail to none at all; blocks are in units of those that a matrix has to be pooled by in any case. Queries
give way before keys: neighbours attend alike, and it is the columns of the keys that overfocusing is seen in."""


@dataclass(frozen=True)
class MatrixShape:
    """Tokens of a layer's matrix: prefix tokens at the front, then the patches of a grid."""

    queries: int
    keys: int
    query_grid: tuple[int, int] | None
    key_grid: tuple[int, int] | None

    @property
    def least(self) -> tuple[int, int]:
        """Side of the blocks of queries and of keys that any matrix of this shape is pooled by."""
        return block_side(self.queries, self.query_grid), block_side(self.keys, self.key_grid)

    def encode(self, weights: Weights, detail: Detail) -> npt.NDArray[np.uint8]:
        """Weights (windows, queries, keys) as bytes of the multiples of uniform attention, blocks averaged.

        Weights that were pooled before, as runs keep those of long sequences, are pooled further.
        """
        sides = (self.queries, self.query_grid, detail.query_block), (self.keys, self.key_grid, detail.key_block)
        pooled = weights.astype(np.float32)
        for (tokens, grid, coarser), least in zip(sides, self.least, strict=True):
            pooled = self._pooled(pooled, tokens, grid, least, coarser).swapaxes(-1, -2)
        return Codes(detail.per_octave).encode(pooled * self.keys)

    @staticmethod
    def _pooled(weights: Weights, tokens: int, grid: tuple[int, int] | None, least: int, coarser: int) -> Weights:
        """Rows averaged over blocks; each row counts as often as it stands for tokens."""
        blocks = block_numbers(tokens, grid, least * coarser)
        if weights.shape[-2] == tokens:
            return averaging(blocks) @ weights if blocks.max() + 1 < tokens else weights
        kept = block_numbers(tokens, grid, least)
        if coarser == 1:
            return weights
        sizes = np.bincount(kept)
        first = np.unique(kept, return_index=True)[1]
        share = averaging(blocks)[:, first] * sizes
        result: Weights = share.astype(np.float32) @ weights
        return result

    def describe(self, detail: Detail) -> dict[str, Any]:
        """For the page's script."""
        return {
            "queries": self.queries,
            "keys": self.keys,
            "queryGrid": self.query_grid,
            "keyGrid": self.key_grid,
            "queryBlock": self.least[0] * detail.query_block,
            "keyBlock": self.least[1] * detail.key_block,
            "perOctave": detail.per_octave,
        }


Sample = tuple[MatrixShape, Weights]


def shape_of(layer: Layer) -> MatrixShape:
    """Where the patches are in the matrix of a layer."""
    query_grid = None if layer.kind == "class" else fitting(layer.grid, layer.queries)
    return MatrixShape(layer.queries, layer.keys, query_grid, fitting(layer.key_grid or layer.grid, layer.keys))


def fitting(grid: tuple[int, int] | None, tokens: int) -> tuple[int, int] | None:
    """The grid, if that many tokens can hold it."""
    return grid if grid and grid[0] * grid[1] <= tokens else None


@dataclass(frozen=True)
class Matrices:
    """The matrices that the page holds."""

    described: list[dict[str, Any] | None]
    """Per layer, what the script has to know to read them; None where the page has none."""
    encoded: dict[int, dict[int, list[str | None]]]
    """Image → variant → one PNG per layer; the matrices of a layer of windows lie one below the other."""


def matrices_of(displayed: Displayed, room: int) -> Matrices:
    """The matrices of the displayed images in about `room` characters of base64.

    For every shown variant if each key still gets a column of its own; otherwise only for the middle severities, as fine as
    they fit.
    """
    images, numbers = displayed.run.displayed, displayed.shown
    samples = sample_matrices(displayed)
    known: dict[tuple[int, int], float] = {}
    details = choose_details(samples, len(images) * len(numbers), room, known)
    if any(sample and (detail is None or detail.key_block > 1) for sample, detail in zip(samples, details, strict=True)):
        numbers = displayed.middle
        details = choose_details(samples, len(images) * len(numbers), room, known)
    shapes = [sample[0][0] if sample else None for sample in samples]
    described = [shape.describe(detail) if shape and detail else None for shape, detail in zip(shapes, details, strict=True)]
    encoded: dict[int, dict[int, list[str | None]]] = {}
    for image in images:
        attention = displayed.run.maps(image).attention
        encoded[image] = {
            number: [
                png(shape.encode(attention[layer.number][number], detail)) if shape and detail else None
                for layer, shape, detail in zip(displayed.layers, shapes, details, strict=True)
            ]
            for number in numbers
        }
    return Matrices(described, encoded)


def sample_matrices(displayed: Displayed) -> list[list[Sample]]:
    """Two matrices of the first image per layer, whose size stands for all; none for a layer whose matrices were not kept."""
    if not displayed.run.displayed:
        return [[] for _ in displayed.layers]
    attention = displayed.run.maps(displayed.run.displayed[0]).attention
    chosen = (displayed.shown[0], displayed.shown[-1])
    return [
        [(shape_of(layer), attention[layer.number][number]) for number in chosen] if layer.number in attention else []
        for layer in displayed.layers
    ]


def choose_details(
    samples: list[list[Sample]], matrices_per_layer: int, room: int, known: dict[tuple[int, int], float] | None = None
) -> list[Detail | None]:
    """The finest detail of each layer with which all matrices together take at most `room` characters of base64.

    The layer that takes most gives way first, one step of the ladder at a time. `known` keeps the sizes found, by layer and
    step, for another choice from the same samples.
    """
    known = {} if known is None else known

    def size(layer: int, step: int) -> float:
        if (layer, step) not in known:
            known[layer, step] = sample_size(samples[layer], LADDER[step])
        return known[layer, step]

    steps = [0 if kept else len(LADDER) - 1 for kept in samples]
    sizes = [size(layer, step) for layer, step in enumerate(steps)]
    while sum(sizes) * matrices_per_layer > room:
        heaviest = int(np.argmax(sizes))
        steps[heaviest] += 1
        sizes[heaviest] = size(heaviest, steps[heaviest])
    return [LADDER[step] for step in steps]


def sample_size(samples: list[Sample], detail: Detail | None) -> float:
    """Mean length of the encoded samples."""
    if detail is None or not samples:
        return 0.0
    return sum(len(png(shape.encode(weights, detail))) for shape, weights in samples) / len(samples)
