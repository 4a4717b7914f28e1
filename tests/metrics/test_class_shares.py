"""The share of attention that each class of a mask receives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overfocus.metrics.received import class_areas, received_shares


def test_areas_of_a_mask_whose_edges_lie_on_tokens():
    mask = np.zeros((4, 8), np.uint8)
    mask[:2, :2] = 3  # the first of 2×4 tokens of 2×2 pixels
    mask[2:, 6:] = [[3, 255], [0, 255]]
    classes, areas = class_areas(mask, (2, 4))
    assert classes.tolist() == [0, 3]
    assert areas[1].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0.25]]
    assert areas[0].tolist() == [[0, 1, 1, 1], [1, 1, 1, 0.25]]  # half of the last token is ignored


def test_a_pixel_on_the_edge_of_two_tokens_counts_in_both():
    mask = np.array([[1, 1, 0]], np.uint8)  # two tokens of one and a half pixels
    _, areas = class_areas(mask, (1, 2))
    np.testing.assert_allclose(areas, [[[0, 2 / 3]], [[1, 1 / 3]]])


def test_shares_by_hand():
    # object on the left half; the left token receives 0.75, the middle one 0.2, of which half lies on the object
    mask = np.array([[1, 1, 1, 0, 0, 0]], np.uint8)
    _, areas = class_areas(mask, (1, 3))
    shares = received_shares(np.array([[[0.75, 0.2, 0.05]], [[1 / 3, 1 / 3, 1 / 3]]]), areas)
    np.testing.assert_allclose(shares, [[0.15, 0.85], [0.5, 0.5]])


@given(st.data())
def test_agrees_with_counting_pixels(data):
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    height, width = rows * data.draw(st.integers(1, 3)), columns * data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    mask = rng.choice([0, 1, 5, 255], (height, width)).astype(np.uint8)
    received = rng.dirichlet(np.ones(rows * columns)).reshape(rows, columns)
    spread = np.kron(received, np.ones((height // rows, width // columns))) * (rows * columns) / (height * width)
    classes, areas = class_areas(mask, (rows, columns))
    expected = [spread[mask == number].sum() for number in classes]
    np.testing.assert_allclose(received_shares(received, areas), expected, atol=1e-12)
    np.testing.assert_allclose(areas.mean((1, 2)), [(mask == number).mean() for number in classes], atol=1e-12)


def test_uniform_attention_gives_each_class_its_area():
    mask = np.random.default_rng(0).integers(0, 4, (37, 53)).astype(np.uint8)
    classes, areas = class_areas(mask, (5, 7))
    np.testing.assert_allclose(areas.sum(0), 1)
    np.testing.assert_allclose(received_shares(np.full((5, 7), 1 / 35), areas), [(mask == number).mean() for number in classes])


def test_undefined_attention_stays_undefined():
    _, areas = class_areas(np.zeros((2, 2), np.uint8), (1, 1))
    assert np.isnan(received_shares(np.array([[np.nan]]), areas)).all()


def test_a_mask_that_ignores_everything_has_no_classes():
    classes, areas = class_areas(np.full((2, 2), 255, np.uint8), (2, 2))
    assert classes.size == 0
    assert received_shares(np.full((3, 2, 2), 0.25), areas).shape == (3, 0)


@pytest.mark.parametrize("grid", [(3, 5), (7, 2)])
def test_tokens_share_out_every_pixel(grid):
    mask = np.zeros((16, 16), np.uint8)
    _, areas = class_areas(mask, grid)
    np.testing.assert_allclose(areas, 1)
