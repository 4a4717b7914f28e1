import base64
import io

import numpy as np
import pytest
from PIL import Image

from overfocus_reports.encoding import FLOOR, Codes, number, numbers, picture_uri, png


def decoded(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@pytest.mark.parametrize("per_octave", [4, 8, 16, 18])
def test_values_come_back_within_half_a_step(per_octave):
    codes = Codes(per_octave)
    highest = min(8.0, FLOOR + 250 / per_octave)
    multiples = np.exp2(np.random.default_rng(0).uniform(FLOOR, highest, 1000))
    error = np.abs(np.log2(codes.decode(codes.encode(multiples)) / multiples))
    assert error.max() <= 0.5 / per_octave + 1e-3


def test_nothing_and_less_than_the_floor_become_zero():
    codes = Codes(4)
    assert codes.encode(np.array([0.0, 2.0 ** (FLOOR - 1)])).tolist() == [0, 0]
    assert codes.decode(np.array([0], dtype=np.uint8)).tolist() == [0.0]


def test_uniform_attention_is_exact():
    codes = Codes(18)
    assert codes.decode(codes.encode(np.array([1.0])))[0] == 1.0


def test_png_is_greyscale_and_exact():
    values = np.random.default_rng(0).integers(0, 256, (2, 3, 5)).astype(np.uint8)
    found = decoded(png(values))
    assert found.shape == (6, 5)
    np.testing.assert_array_equal(found, values.reshape(6, 5))


def test_small_pictures_stay_exact_and_large_ones_shrink():
    small = np.random.default_rng(0).integers(0, 256, (28, 28, 3)).astype(np.uint8)
    kind, data = picture_uri(small, 224, 85).split(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(decoded(data), small)
    kind, data = picture_uri(np.zeros((300, 200, 3), np.uint8), 150, 85).split(",")
    assert kind == "data:image/jpeg;base64"
    assert decoded(data).shape == (150, 100, 3)


def test_numbers_are_short_and_null_where_undefined():
    assert number(0.123456) == 0.1235
    assert numbers(np.array([[1.0, np.nan], [np.inf, 2.5]])) == [[1.0, None], [None, 2.5]]
