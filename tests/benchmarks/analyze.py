"""Time `analyze` end to end against the plain forwards that it needs, and show where the rest goes.

    export OMP_WAIT_POLICY=PASSIVE    # as the program `overfocus` does by itself
    python tests/benchmarks/analyze.py [MODEL] [--images N] [--batch-size N] [--corruption NAME]... [--workers N] [--rounds N]

Each round times the plain forwards of all images, `analyze`, and the plain forwards again. Wall time says how long a user
waits; processor time (of this process and its workers) is hardly disturbed by what else the machine does. Weights are random: the
time does not depend on them.
"""

import argparse
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import overfocus
from overfocus.sweep.reading import plan_pairs
from overfocus.variants import list_variants


def main() -> None:
    """Print the ratios of each round and their median."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="deit_small_patch16_224")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--corruption", action="append", dest="corruptions")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    corruptions = arguments.corruptions or ["gaussian_noise", "defocus_blur", "fog", "jpeg_compression"]

    wall, processor = compare_with_plain(
        arguments.model, arguments.images, corruptions, arguments.batch_size, arguments.workers, arguments.rounds
    )
    print(f"median: {wall:.2f}× wall time, {processor:.2f}× processor time")


def compare_with_plain(
    name: str, images: int, corruptions: list[str], batch_size: int, workers: int | None, rounds: int
) -> tuple[float, float]:
    """Medians over the rounds of the time of `analyze` over that of the plain forwards: wall and processor time."""
    loaded = overfocus.load_model(name, pretrained=False)
    variants = len(list_variants(corruptions, [3])) + 1  # and the control
    plan = plan_pairs(variants, batch_size)
    sizes = [len(shard) * len(members) for shard in plan.shards(images) for members in plan.batches]
    forwards = {size: torch.randn(size, *loaded.input_size) for size in sizes}

    def plain() -> None:
        with torch.no_grad():
            for size in sizes:
                loaded.model(forwards[size])

    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder) / "photos", images)
        output = Path(folder) / "run"

        def analyze() -> None:
            overfocus.analyze(
                loaded,
                photos,
                corruptions=corruptions,
                severities=[3],
                output=output,
                batch_size=batch_size,
                workers=workers,
                progress=False,
            )

        print(f"{name}, {images} images × {', '.join(corruptions)}, batches of {sizes}, {torch.get_num_threads()} threads")
        timed(plain)
        ratios = []
        for number in range(rounds):
            before, whole, after = timed(plain), timed(analyze), timed(plain)
            reference = [(first + second) / 2 for first, second in zip(before, after, strict=True)]
            ratios.append([measured / expected for measured, expected in zip(whole, reference, strict=True)])
            timing = overfocus.Run(output).description.timing
            parts = ", ".join(
                f"{part} {timing[part]:.1f}" for part in ("forward", "capture", "waiting", "normalising", "writing")
            )
            print(
                f"round {number + 1}: plain {reference[0]:.1f} s, analyze {whole[0]:.1f} s = {ratios[-1][0]:.2f}× "
                f"(processor time {ratios[-1][1]:.2f}×); seconds: {parts}, loop {timing['seconds']:.1f}"
            )
            shutil.rmtree(output)
    wall, processor = (statistics.median(column) for column in zip(*ratios, strict=True))
    return wall, processor


def timed(action: Callable[[], None]) -> tuple[float, float]:
    """Wall seconds, and processor seconds of this process and of the workers that it waited for."""
    began, used = time.perf_counter(), processor_seconds()
    action()
    return time.perf_counter() - began, processor_seconds() - used


def processor_seconds() -> float:
    """User and system time so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def write_photos(folder: Path, number: int) -> Path:
    """JPEG files of 500×375 pixels, the usual size in ImageNet, with structure and noise as photographs have."""
    folder.mkdir()
    for index in range(number):
        rng = np.random.default_rng(index)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.asarray(coarse).astype(np.int16) + rng.normal(0, 8, (375, 500, 3)).astype(np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{index:05d}.jpg", quality=90)
    return folder


if __name__ == "__main__":
    main()
