import base64
import io

import numpy as np
import pytest
from PIL import Image

from overfocus_reports.displayed import Displayed
from overfocus_reports.encoding import Codes
from overfocus_reports.matrices import LADDER, Detail, MatrixShape, block_numbers, choose_details, matrices_of, pool_matrix


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


def test_uniform_attention_is_one_at_every_detail():
    shape = MatrixShape(10, 10, (3, 3), (3, 3))
    for detail in LADDER:
        if detail is not None:
            codes = shape.encode(np.full((1, 10, 10), 0.1, dtype=np.float16), detail)
            np.testing.assert_allclose(Codes(detail.per_octave).decode(codes), 1.0, rtol=0.01)


def test_details_fit_the_room_and_use_it():
    rng = np.random.default_rng(0)
    shape = MatrixShape(65, 65, (8, 8), (8, 8))
    samples = [[(shape, rng.dirichlet(np.ones(65), (1, 65)).astype(np.float32))] for _ in range(3)]
    kept = [choose_details(samples, 10, room) for room in (10**9, 60_000, 20_000, 0)]
    assert kept[0] == [LADDER[0]] * 3
    assert kept[-1] == [None] * 3
    ranks = [[LADDER.index(detail) for detail in details] for details in kept]
    assert ranks == sorted(ranks)
    assert len({tuple(rank) for rank in ranks}) == 4


def test_a_layer_without_matrix_stays_without():
    shape = MatrixShape(4, 4, (2, 2), (2, 2))
    assert choose_details([[], [(shape, np.full((1, 4, 4), 0.25))]], 1, 10**6) == [None, LADDER[0]]


def test_matrices_of_a_run_are_its_attention(run):
    displayed = Displayed(run, run.description.layers, run.variants)
    found = matrices_of(displayed, 10**9)
    assert found.described[0] is not None
    assert found.described[0]["queries"] == found.described[0]["keys"] == 37
    assert found.described[0]["queryGrid"] == (6, 6)
    kept = run.maps(1)
    for number, layer in ((0, 0), (4, 3)):
        text = found.encoded[1][number][layer]
        assert text is not None
        codes = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
        weights = kept.attention[layer][number][0].astype(float)
        shown = Codes(LADDER[0].per_octave).decode(codes) / 37
        np.testing.assert_allclose(shown[weights * 37 > 0.02], weights[weights * 37 > 0.02], rtol=0.03)


def test_little_room_keeps_the_middle_severity_only(run):
    displayed = Displayed(run, run.description.layers, run.variants)
    full = matrices_of(displayed, 10**9)
    assert list(full.encoded[0]) == [0, 1, 2, 3, 4]
    size = sum(len(text) for image in full.encoded.values() for row in image.values() for text in row if text)
    scarce = matrices_of(displayed, size // 12)
    assert list(scarce.encoded[0]) == [0, 2, 4]
    assert [displayed.variants[number].severity for number in scarce.encoded[0]] == [0, 3, 3]


def test_windows_lie_one_below_the_other():
    shape = MatrixShape(4, 4, (2, 2), (2, 2))
    codes = shape.encode(np.full((3, 4, 4), 0.25), Detail(1, 1, 4))
    assert codes.shape == (3, 4, 4)
