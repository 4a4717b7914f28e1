"""Attention matrices of long sequences, averaged over blocks of neighbouring patches so that they stay small enough to keep."""

from typing import Any

import numpy as np
import numpy.typing as npt

MOST_BLOCKS = 256
"""Rows and columns that a pooled matrix has at most."""

Weights = npt.NDArray[np.floating[Any]]


def block_side(tokens: int, grid: tuple[int, int] | None, most: int = MOST_BLOCKS) -> int:
    """Side of the smallest square blocks of patches that leave at most `most` rows or columns; 1 keeps every token.

    Tokens without a grid have no neighbours to be averaged with: 1.

    >>> block_side(1370, (37, 37)), block_side(197, (14, 14))
    (3, 1)
    """
    if grid is None:
        return 1
    prefix = tokens - grid[0] * grid[1]
    sides = range(1, max(grid) + 1)
    return next((side for side in sides if prefix + -(-grid[0] // side) * -(-grid[1] // side) <= most), max(grid))


def block_numbers(tokens: int, grid: tuple[int, int] | None, block: int) -> npt.NDArray[np.intp]:
    """Number of the block that each token falls in: every prefix token its own, then block × block patches, row by row.

    Without a grid each token stays on its own. Blocks at the right and bottom edge may be smaller.
    """
    if grid is None or block == 1:
        return np.arange(tokens)
    rows, columns = grid
    prefix = tokens - rows * columns
    row, column = np.divmod(np.arange(rows * columns), columns)
    patches = prefix + (row // block) * -(-columns // block) + column // block
    return np.concatenate([np.arange(prefix), patches])


def averaging(blocks: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    """(blocks, tokens): what takes the mean over the tokens of each block."""
    member: npt.NDArray[np.float32] = (np.arange(blocks.max() + 1)[:, None] == blocks).astype(np.float32)
    return member / member.sum(1, keepdims=True)


def pool_matrix(weights: Weights, query_blocks: npt.NDArray[np.intp], key_blocks: npt.NDArray[np.intp]) -> Weights:
    """Mean weight of each pair of blocks: (…, queries, keys) to (…, query blocks, key blocks)."""
    for blocks in (query_blocks, key_blocks):
        if len(blocks) > blocks.max() + 1:
            weights = averaging(blocks) @ weights
        weights = weights.swapaxes(-1, -2)
    return weights
