"""Pictures under attention maps."""

import numpy as np
import pytest

from overfocus.figures.overlay import OPACITY, attention_norm, blended, highest, largest_places
from overfocus.figures.style import lookup_table


def test_blend_mixes_each_cell_with_its_colour():
    picture = np.full((8, 8, 3), 100, np.uint8)
    values = np.array([[0.125, 8.0], [np.nan, 1.0]])
    mixed = blended(picture, values, attention_norm(3.0))
    table = lookup_table("viridis").astype(float)
    assert mixed.shape == (224, 224, 3)
    for corner, entry in (((0, 0), 0), ((0, -1), 255), ((-1, -1), 128)):
        expected = (1 - OPACITY) * 100 + OPACITY * table[entry]
        np.testing.assert_allclose(mixed[corner], expected, atol=2)
    np.testing.assert_array_equal(mixed[-1, 0], [100, 100, 100])


@pytest.mark.parametrize(("values", "power"), [([1.0], 2), ([5.0], 3), ([1000.0], 8), ([np.nan], 2), ([np.nan, 16.0], 4)])
def test_scale_holds_the_largest_value(values, power):
    assert highest([np.array([[value]]) for value in values]) == power


def test_largest_places_leave_out_what_is_unknown():
    assert largest_places(np.array([[0.2, np.nan], [0.5, 0.5]]), 0.7) == [2, 3]
