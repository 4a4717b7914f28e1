"""Processor time of each corruption per picture: python tests/benchmarks/corruptions.py [--size PIXELS] [--repeats N]."""

import argparse
import statistics
import time

import numpy as np

from overfocus.corruptions import CORRUPTIONS, corrupt, prepare_corruptions


def main() -> None:
    """Print the median over severities and repeats, slowest first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    prepare_corruptions(CORRUPTIONS)
    pictures = np.random.default_rng(0).integers(0, 256, (arguments.repeats, arguments.size, arguments.size, 3)).astype(np.uint8)
    milliseconds = {name: statistics.median(timed(picture, name) for picture in pictures) for name in CORRUPTIONS}
    for name, value in sorted(milliseconds.items(), key=lambda item: -item[1]):
        print(f"{name:20s} {value:7.1f} ms")


def timed(picture: np.ndarray, name: str) -> float:
    """Milliseconds of processor time for one picture, averaged over the five severities."""
    began = time.process_time()
    for severity in range(1, 6):
        corrupt(picture, name, severity)
    return (time.process_time() - began) * 1000 / 5


if __name__ == "__main__":
    main()
