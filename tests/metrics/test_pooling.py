"""Matrices of long sequences, averaged over blocks of patches."""

import numpy as np
import pytest

from overfocus.metrics.pooling import MOST_BLOCKS, block_numbers, block_side, pool_matrix


def test_blocks_number_prefix_tokens_first_and_then_squares_of_patches():
    assert block_numbers(6, (2, 2), 1).tolist() == [0, 1, 2, 3, 4, 5]
    assert block_numbers(5, (2, 2), 2).tolist() == [0, 1, 1, 1, 1]
    ragged = block_numbers(9, (3, 3), 2)
    assert ragged.tolist() == [0, 0, 1, 0, 0, 1, 2, 2, 3]
    assert block_numbers(4, None, 2).tolist() == [0, 1, 2, 3]


def test_pooling_averages_each_pair_of_blocks():
    rng = np.random.default_rng(0)
    weights = rng.random((10, 10))
    blocks = block_numbers(10, (3, 3), 2)
    pooled = pool_matrix(weights, blocks, blocks)
    assert pooled.shape == (5, 5)
    for row in range(5):
        for column in range(5):
            assert pooled[row, column] == pytest.approx(weights[np.ix_(blocks == row, blocks == column)].mean())


@pytest.mark.parametrize(("tokens", "grid"), [(1370, (37, 37)), (577, (24, 24)), (16385, (128, 128)), (5 + 3 * 700, (3, 700))])
def test_sides_are_the_smallest_that_fit(tokens, grid):
    side = block_side(tokens, grid)
    assert block_numbers(tokens, grid, side).max() + 1 <= MOST_BLOCKS
    assert block_numbers(tokens, grid, side - 1).max() + 1 > MOST_BLOCKS


def test_few_tokens_and_tokens_without_a_grid_stay():
    assert block_side(197, (14, 14)) == 1
    assert block_side(4000, None) == 1
    assert block_side(700, (20, 20)) == 20  # 300 prefix tokens are too many already: one block for all patches
