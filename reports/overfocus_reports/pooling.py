"""Attention matrices made smaller for the page: blocks of patches averaged, prefix tokens kept."""

from typing import Any

import numpy as np
import numpy.typing as npt

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
