"""Averages over corruptions: what they are over, and that none is silently partial."""

import numpy as np
import pytest

from overfocus.corruptions import CORRUPTIONS, GROUPS
from overfocus.evaluation.results import CITYSCAPES_C, average_corruptions


def mious(names: tuple[str, ...] = CORRUPTIONS, levels: tuple[int, ...] = (1, 2, 3, 4, 5)) -> dict[tuple[str, int], float]:
    return {(name, level): CORRUPTIONS.index(name) / 100 + level / 1000 for name in names for level in levels}


def test_the_published_average_leaves_out_strong_noise() -> None:
    assert len(CITYSCAPES_C) == len(set(CITYSCAPES_C)) == 16
    assert set(CORRUPTIONS) - set(CITYSCAPES_C) == {"zoom_blur", "elastic_transform", "pixelate"}
    values = mious()
    published, common, measured = average_corruptions(values)
    noise = ("gaussian_noise", "shot_noise", "speckle_noise", "impulse_noise")
    by_hand = [
        np.mean([values[name, level] for level in ((1, 2, 3) if name in noise else (1, 2, 3, 4, 5))]) for name in CITYSCAPES_C
    ]
    assert published.miou == pytest.approx(np.mean(by_hand))
    assert "noise at severities 1–3" in published.label
    assert common.miou == pytest.approx(np.mean([values[name, level] for name in GROUPS["common"] for level in range(1, 6)]))
    assert (measured.label, measured.miou) == (
        "the 19 corruptions measured, at severities 1–5",
        pytest.approx(np.mean([*values.values()])),
    )


def test_what_was_measured_in_full_is_not_said_twice() -> None:
    assert [average.name for average in average_corruptions(mious(GROUPS["common"]))] == ["cityscapes_c", "common"]


def test_nothing_is_partial_without_a_word() -> None:
    values = mious()
    del values["fog", 3], values["gaussian_noise", 5]
    published, common, measured = average_corruptions(values)
    assert (published.miou, published.missing) == (None, ["fog 3"])
    assert (common.miou, common.missing) == (None, ["gaussian_noise 5", "fog 3"])
    assert measured.label == "the 19 corruptions measured, at the severities measured of each"
    assert measured.missing == []


def test_a_single_corruption() -> None:
    *_, measured = average_corruptions({("fog", 2): 0.5})
    assert (measured.label, measured.miou) == ("fog, at severity 2", 0.5)


def test_no_corruption() -> None:
    assert average_corruptions({}) == []
