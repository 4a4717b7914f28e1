"""Coverage of intervals and level of tests by simulation: samples whose true values are known.

    python -m tests.statistics.simulation [--samples 4000]

prints the tables that `overfocus/statistics/README.md` shows; the tests of this folder hold the same figures to their targets.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from overfocus.statistics.differences import paired_differences, retained_differences
from overfocus.statistics.intervals import (
    Ends,
    mcnemar_test,
    mean_interval,
    rate_difference_interval,
    rate_interval,
    ratio_difference_interval,
    ratio_swap_test,
    sign_flip_test,
)

Array = np.ndarray[Any, Any]
IMAGES = (20, 50, 200)
LEVEL = 0.05


def covered(ends: Ends, truth: float) -> float:
    """Share of the intervals that hold the true value."""
    return float(np.mean((ends.low <= truth) & (ends.high >= truth)))


def of_means(draw: str, images: int, samples: int) -> float:
    """Student's t interval of the mean of "normal" or "exponential" values."""
    random = np.random.default_rng(7)
    if draw == "normal":
        return covered(mean_interval(random.normal(size=(images, samples))), 0.0)
    return covered(mean_interval(random.exponential(size=(images, samples))), 1.0)


def of_rates(images: int, samples: int) -> tuple[float, float, float]:
    """Wilson's, that of six outcomes for each image, and Newcombe's, on average over true rates from 0.02 to 0.98.

    Differences are of −0.2, 0 and 0.2, with outcomes that go together not at all, half of the time, mostly.
    """
    random = np.random.default_rng(11)
    rates, clusters, differences = [], [], []
    for first in np.linspace(0.02, 0.98, 9):
        outcomes = (random.random((images, samples)) < first).astype(float)
        rates.append(covered(rate_interval(outcomes), first))
        spread = random.beta(first * 2, (1 - first) * 2, (images, samples))  # outcomes of one image resemble each other
        shares = random.binomial(6, spread) / 6
        clusters.append(covered(rate_interval(shares, np.full(shares.shape, 6)), first))
        for step in (-0.2, 0.0, 0.2):
            second = float(np.clip(first + step, 0.02, 0.98))
            for alike in (0.0, 0.5, 0.9):
                level = random.random((images, samples))
                other = np.where(random.random(level.shape) < alike, level, random.random(level.shape))
                ends = rate_difference_interval((level < first).astype(float), (other < second).astype(float))
                differences.append(covered(ends, first - second))
    return float(np.mean(rates)), float(np.mean(clusters)), float(np.mean(differences))


def of_ratios(images: int, samples: int) -> float:
    """The bootstrap of a ratio of means, skewed distances over normal controls."""
    random = np.random.default_rng(5)
    control = random.normal(1, 0.2, (images, samples))
    distance = 0.4 * random.exponential(size=(images, samples))
    return covered(ratio_difference_interval(distance, control, resamples=1000), 0.4)


def of_groups(runs: int, images: int, samples: int, *, retained: bool = False) -> float:
    """The interval over images and runs: models that differ by nothing, runs of each that differ by as much as images do.

    Each value is an effect of its image, one of its run, and one of both; of what is `retained`, a distance over a control.
    """
    random = np.random.default_rng(runs)
    image = random.normal(size=(images, samples))
    sides = []
    for _ in range(2):
        own = image + random.normal(size=(images, samples))
        of_run = random.normal(size=(runs, 1, samples)) * np.sqrt(1 / images)
        sides.append(own + of_run + random.normal(size=(runs, images, samples)))
    if not retained:
        found = paired_differences(*sides)
    else:
        parts = [(4 + side, 10 + random.normal(size=side.shape)) for side in sides]
        found = retained_differences(*parts, resamples=100)
    return covered(Ends(found.low, found.high), 0.0)


def level_of_tests(images: int, samples: int) -> dict[str, float]:
    """How often each test finds a difference where there is none; at most 0.05 is right."""
    random = np.random.default_rng(images)

    def share(p_values: Array) -> float:
        return float(np.mean(p_values < LEVEL))

    found = {
        "sign flips, normal": share(sign_flip_test(random.normal(size=(images, samples)))),
        "sign flips, t of 2": share(sign_flip_test(random.standard_t(2, size=(images, samples)))),
        "McNemar": share(mcnemar_test(*(random.random((2, images, samples)) < 0.3).astype(float))),
    }
    control, other = random.normal(1, 0.2, (2, images, samples))
    first, second = 0.4 * control + random.random(control.shape), 0.4 * other + random.random(other.shape)
    found["swaps"] = share(ratio_swap_test(first, control, second, other))
    second = 0.1 * other + 0.25 * random.random(other.shape)
    found["swaps, scales 1 and ¼"] = share(ratio_swap_test(first, control, second, other / 4))
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000)
    samples = parser.parse_args().samples
    rates = [of_rates(images, samples // 4) for images in IMAGES]
    rows: dict[str, Callable[[int], float]] = {
        "mean, normal": lambda images: of_means("normal", images, samples),
        "mean, exponential": lambda images: of_means("exponential", images, samples),
        "rate": lambda images: rates[IMAGES.index(images)][0],
        "rate, six outcomes an image": lambda images: rates[IMAGES.index(images)][1],
        "difference of paired rates": lambda images: rates[IMAGES.index(images)][2],
        "ratio of means": lambda images: of_ratios(images, samples // 2),
        "difference, 2 runs a model": lambda images: of_groups(2, images, samples),
        "difference, 3 runs a model": lambda images: of_groups(3, images, samples),
        "difference of retained, 3 runs a model": lambda images: of_groups(3, images, samples, retained=True),
    }
    heads = " | ".join(f"{images} images" for images in IMAGES)
    print(f"| interval | {heads} |\n|---|{'---|' * len(IMAGES)}")
    for name, measure in rows.items():
        print(f"| {name} | {' | '.join(f'{measure(images):.3f}' for images in IMAGES)} |", flush=True)
    levels = [level_of_tests(images, samples) for images in IMAGES]
    print(f"\n| test, differences found where there are none | {heads} |\n|---|{'---|' * len(IMAGES)}")
    for name in levels[0]:
        print(f"| {name} | {' | '.join(f'{level[name]:.3f}' for level in levels)} |")


if __name__ == "__main__":
    main()
