"""Each corruption ours ÷ imagecorruptions: python tests/benchmarks/corruptions.py [--size PIXELS] [--repeats N] [--pixels].

Processor time of one image with ImageNet-C's constants, mean over the severities, median over repeats, ours and the package's in
turn; and the share of values that agree within one grey level, both with the same random numbers. The package has another
algorithm for elastic transform and frost, where ours has the published one, and draws glass blur from a generator of numba's that
a call does not seed, so that their pixels differ here; the tests hold glass blur to the package with equal numbers. Where ours is
a call of the package the ratio is what the call costs besides. `--pixels` compares pixels alone: they do not depend on load.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from skimage import data

from overfocus.corruptions import CORRUPTIONS, corrupt, prepare_corruptions
from overfocus.corruptions.apply import FROM_PACKAGE, _from_package, random_words


def main() -> None:
    """Print a row for each corruption, those that gain most first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pixels", action="store_true")
    arguments = parser.parse_args()
    prepare_corruptions(CORRUPTIONS)
    photo = data.astronaut()[: arguments.size, : arguments.size]
    print(f"{photo.shape[1]}×{photo.shape[0]} pixels, load {os.getloadavg()[0]:.1f}")
    print(f"{'':20} {'package ms':>10} {'ours ms':>10} {'package ÷ ours':>15} {'pixels equal':>13}")
    rows = []
    for name in CORRUPTIONS:
        equal = np.mean([np.abs(ours(photo, name, s).astype(int) - package(photo, name, s)) <= 1 for s in range(1, 6)])
        times = [[timed(function, photo, name) for function in (package, ours)] for _ in range(0 if arguments.pixels else 1)]
        times += [[timed(function, photo, name) for function in (package, ours)] for _ in range(len(times) * arguments.repeats)]
        taken = [statistics.median(values) for values in zip(*times[1:], strict=True)] or [float("nan")] * 2
        rows.append((taken[0] / taken[1], name, *taken, equal))
    for ratio, name, theirs, mine, equal in sorted(rows, key=lambda row: (-row[0], row[1])):
        note = "  a call of the package" if name in FROM_PACKAGE else ""
        print(f"{name:20} {theirs:10.1f} {mine:10.1f} {ratio:15.1f} {equal:13.2%}{note}")


def ours(image: np.ndarray, name: str, severity: int) -> np.ndarray:
    """What overfocus makes of an image."""
    return corrupt(image, name, severity, constants="imagenet-c")


def package(image: np.ndarray, name: str, severity: int) -> np.ndarray:
    """What imagecorruptions makes of it with the same random numbers."""
    return _from_package(image, name, severity, random_words(image, name, severity, 0))


def timed(function: Callable[[np.ndarray, str, int], np.ndarray], image: np.ndarray, name: str) -> float:
    """Milliseconds of processor time for one image, mean over the five severities."""
    began = time.process_time()
    for severity in range(1, 6):
        function(image, name, severity)
    return (time.process_time() - began) * 1000 / 5


if __name__ == "__main__":
    main()
