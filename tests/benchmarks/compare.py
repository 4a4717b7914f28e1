"""Time `compare` against the analyses that it contains, and the bootstrap behind its intervals.

    export OMP_WAIT_POLICY=PASSIVE    # as the program `overfocus` does by itself
    python tests/benchmarks/compare.py [MODEL] [--models N] [--images N] [--corruption NAME]... [--workers N] [--rounds N]

Each round times the analyses one by one, then the comparison, which measures the same, tests it and writes its tables. Weights
are random: the time does not depend on them.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from analyze import timed, write_photos

import overfocus
from overfocus.statistics.intervals import ratio_difference_interval


def main() -> None:
    """Print the ratio of each round and the seconds of the bootstrap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="vit_tiny_patch16_224")
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--corruption", action="append", dest="corruptions")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    corruptions = arguments.corruptions or ["gaussian_noise", "defocus_blur", "fog", "jpeg_compression"]

    time_bootstrap()
    models = []
    for number in range(arguments.models):
        torch.manual_seed(number)
        models.append(overfocus.load_model(arguments.model, pretrained=False))
    asked = {"corruptions": corruptions, "severities": [3], "workers": arguments.workers, "progress": False}
    print(
        f"{arguments.models} × {arguments.model}, {arguments.images} images × {', '.join(corruptions)}, "
        f"{torch.get_num_threads()} threads"
    )
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder) / "photos", arguments.images)
        overfocus.analyze(models[0], photos, output=Path(folder, "first"), limit=8, **asked)  # what only the first run pays
        for number in range(arguments.rounds):
            analyses = [
                timed(
                    lambda place=place, number=number: overfocus.analyze(
                        models[place], photos, output=Path(folder, f"run-{number}-{place}"), **asked
                    )
                )
                for place in range(arguments.models)
            ]
            whole = timed(
                lambda number=number: overfocus.compare(
                    models, images=photos, output=Path(folder, f"comparison-{number}"), **asked
                )
            )
            apart = [sum(clock) for clock in zip(*analyses, strict=True)]
            ratios.append([together / alone for together, alone in zip(whole, apart, strict=True)])
            print(
                f"round {number + 1}: analyses {apart[0]:.1f} s, compare {whole[0]:.1f} s = {ratios[-1][0]:.2f}× "
                f"(processor time {ratios[-1][1]:.2f}×)"
            )
    wall, processor = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"median: {wall:.2f}× wall time, {processor:.2f}× processor time")


def time_bootstrap() -> None:
    """Print the seconds of 10,000 resamples of 1,000 images, for one quantity and for all of a large table."""
    for columns in (1, 100, 1000):
        parts = np.random.default_rng(0).random((4, 1000, columns)) + 1
        seconds, processor = timed(lambda parts=parts: ratio_difference_interval(*parts, resamples=10_000))
        print(f"bootstrap of 10,000 × 1,000 images, {columns} intervals: {seconds:.2f} s ({processor:.2f} s of processor)")


if __name__ == "__main__":
    main()
