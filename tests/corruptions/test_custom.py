"""Functions of the user as corruptions."""

import numpy as np
import pytest

from overfocus.corruptions.custom import CustomCorruption, choose_corruptions
from overfocus.errors import CorruptionError

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)

ELSEWHERE = np.random.default_rng(1)


def unchanged(rgb, _severity, _generator):
    return rgb


def streaks(rgb, severity, generator):
    rows = generator.random(len(rgb)) < 0.1 * severity
    return np.where(rows[:, None, None], np.uint8(255), rgb)


def test_the_generator_depends_on_the_image_the_severity_and_the_seed_alone():
    corruption = CustomCorruption("streaks", streaks)
    first = corruption(RGB, 3, seed=1)
    assert np.array_equal(first, corruption(RGB, 3, seed=1))
    assert not np.array_equal(first, corruption(RGB, 3, seed=2))
    assert not np.array_equal(first == 255, corruption(RGB[::-1].copy(), 3, seed=1) == 255)


def test_names_groups_and_functions_together():
    names, custom = choose_corruptions(["fog", streaks, "noise", ("mine", unchanged), "fog"])
    assert names == ["fog", "streaks", "gaussian_noise", "shot_noise", "impulse_noise", "mine"]
    assert list(custom) == ["streaks", "mine"]
    assert choose_corruptions(streaks)[0] == ["streaks"]
    assert choose_corruptions([])[0] == []


def test_a_function_is_told_by_what_it_makes():
    same = CustomCorruption("s", streaks).fingerprint([1, 3])
    assert same == CustomCorruption("s", streaks).fingerprint([1, 3])
    assert same != CustomCorruption("s", unchanged).fingerprint([1, 3])


def test_the_image_is_not_changed():
    before = RGB.copy()

    def black(rgb, _severity, _generator):
        rgb[:] = 0
        return rgb

    assert CustomCorruption("black", black)(RGB, 1).max() == 0
    assert np.array_equal(RGB, before)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([lambda rgb, _severity, _generator: rgb], "expected a corruption with a name"),
        ([5], "expected the name of a corruption, or a function, got 5"),
        (5, "expected the name of a corruption, or a function, got 5"),
        (["nothing"], "unknown corruption"),
        ([("fog", streaks)], "fog is the name of a built-in"),
        ([("other image", streaks)], "other image is the name of a built-in"),
        ([("a\u202eb", streaks)], "printable characters"),
        ([streaks, streaks], "streaks twice"),
    ],
)
def test_what_is_no_corruption(given, says):
    with pytest.raises(CorruptionError, match=says):
        choose_corruptions(given)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda rgb, _severity, _generator: rgb / 255.0, "got float64"),
        (lambda rgb, _severity, _generator: rgb[:5], r"got uint8 \(5, "),
        (lambda _rgb, _severity, _generator: None, "got NoneType"),
        (lambda _rgb, _severity, _generator: 1 / 0, "ZeroDivisionError"),
        (lambda rgb: rgb, "it is called with"),
        (lambda rgb, _severity, _generator: ELSEWHERE.integers(0, 256, rgb.shape, dtype=np.uint8), "when called again"),
    ],
)
def test_a_function_that_gives_something_else(function, says):
    with pytest.raises(CorruptionError, match=says):
        CustomCorruption("mine", function).fingerprint([2])
