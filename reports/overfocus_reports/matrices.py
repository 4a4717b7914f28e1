"""Attention matrices for the page: pooled to what it has room for, and encoded."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from overfocus.runs.description import Layer
from overfocus_reports.displayed import Displayed
from overfocus_reports.encoding import Codes, png

Array = npt.NDArray[np.floating[Any]]


def block_numbers(tokens: int, grid: tuple[int, int] | None, block: int) -> npt.NDArray[np.intp]:
    """Number of the block that each token falls in: every prefix token its own, then block × block patches, row by row.

    Without a grid the tokens have no place; each stays on its own. Blocks at the right and bottom edge may be smaller.
    """
    if grid is None or block == 1:
        return np.arange(tokens)
    rows, columns = grid
    prefix = tokens - rows * columns
    row, column = np.divmod(np.arange(rows * columns), columns)
    patches = prefix + (row // block) * -(-columns // block) + column // block
    return np.concatenate([np.arange(prefix), patches])


def pool_matrix(weights: Array, query_blocks: npt.NDArray[np.intp], key_blocks: npt.NDArray[np.intp]) -> Array:
    """Mean weight of each pair of blocks: (…, queries, keys) to (…, query blocks, key blocks)."""
    return block_mean(block_mean(weights, query_blocks).swapaxes(-1, -2), key_blocks).swapaxes(-1, -2)


def block_mean(values: Array, blocks: npt.NDArray[np.intp]) -> Array:
    """Mean over the second to last axis within each block."""
    count = int(blocks.max()) + 1
    if count == len(blocks):
        return values
    order = np.argsort(blocks, kind="stable")
    starts = np.searchsorted(blocks[order], np.arange(count))
    sums: Array = np.add.reduceat(values[..., order, :], starts, axis=-2)
    return sums / np.bincount(blocks)[:, None]


@dataclass(frozen=True)
class Detail:
    """How finely a layer's matrices are kept."""

    query_block: int
    """Side of the blocks of query patches that are averaged; 1 keeps every patch."""
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
"""From the finest detail to none at all. Queries give way before keys: neighbours attend alike, and it is the columns of the
keys that overfocusing is seen in."""


@dataclass(frozen=True)
class MatrixShape:
    """Tokens of a layer's matrix: prefix tokens at the front, then the patches of a grid."""

    queries: int
    keys: int
    query_grid: tuple[int, int] | None
    key_grid: tuple[int, int] | None

    def encode(self, weights: Array, detail: Detail) -> npt.NDArray[np.uint8]:
        """Weights (windows, queries, keys) as bytes of the multiples of uniform attention, blocks averaged."""
        queries = block_numbers(self.queries, self.query_grid, detail.query_block)
        keys = block_numbers(self.keys, self.key_grid, detail.key_block)
        return Codes(detail.per_octave).encode(pool_matrix(weights.astype(np.float32), queries, keys) * self.keys)

    def describe(self, detail: Detail) -> dict[str, Any]:
        """For the page's script."""
        return {
            "queries": self.queries,
            "keys": self.keys,
            "queryGrid": self.query_grid,
            "keyGrid": self.key_grid,
            "queryBlock": detail.query_block,
            "keyBlock": detail.key_block,
            "perOctave": detail.per_octave,
        }


Sample = tuple[MatrixShape, Array]


def shape_of(layer: Layer, weights: Array) -> MatrixShape:
    """Where the patches lie in the matrix of a layer."""
    queries, keys = weights.shape[-2:]
    query_grid = None if layer.kind == "class" else fitting(layer.grid, queries)
    return MatrixShape(queries, keys, query_grid, fitting(layer.key_grid or layer.grid, keys))


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

    Of every shown variant where each key still gets a column of its own; else only of the middle severities, as fine as
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
        [(shape_of(layer, attention[layer.number]), attention[layer.number][number]) for number in chosen]
        if layer.number in attention
        else []
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
