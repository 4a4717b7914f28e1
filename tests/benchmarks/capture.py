"""Time and memory of capture with every metric, beside the plain forward and timm's AttentionExtract with the same metrics.

    python tests/benchmarks/capture.py                   # every size but the largest; a quarter of an hour on two cores
    python tests/benchmarks/capture.py --size base       # one of them: tiny, small, base, small-512, small-1024, small-2048
    python tests/benchmarks/capture.py --rounds 9        # more rounds for steadier medians

Ways: the plain fused forward; ours streaming (summed in `reduce`, no map outlives its layer), as `analyze` does it, the weights
giving the block's output too; the same beside the model's own fused attention (exact); ours keeping (maps first, measured after);
timm's AttentionExtract on an unfused model, its maps measured by the same `measure`; the plain forward of the unfused model, and
ours on it.

Times of a round follow each other in one process. Given are the median time, and the medians of the ratios to the plain forward
of the same round (of the unfused model where it is ours on that), of wall time and of processor time (which other programs
hardly disturb). Peak memory is that of one process
per way, above what it holds with the model built and inputs made. Weights are random: nothing here depends on them.
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import set_fused_attn
from timm.utils import AttentionExtract
from torch import Tensor, nn

import overfocus
from overfocus.attention import AttentionMap
from overfocus.capturing.sources import ArrangedWeights, Arrangement, MaterialisedWeights
from overfocus.metrics import ForwardMeasurement, measure


@dataclass(frozen=True)
class Size:
    """A model and what it is given."""

    model: str
    pixels: int
    batch: int
    extract: bool = True
    """Whether timm's way is tried, which stores every map of the model."""


SIZES = {
    "tiny": Size("vit_tiny_patch16_224", 224, 16),
    "small": Size("vit_small_patch16_224", 224, 8),
    "base": Size("vit_base_patch16_224", 224, 4),
    "small-512": Size("vit_small_patch16_224", 512, 1),
    "small-1024": Size("vit_small_patch16_224", 1024, 1),
    "small-2048": Size("vit_small_patch16_224", 2048, 1, extract=False),
}
WAYS = ("plain", "streaming", "exact", "keeping", "extract", "unfused", "unfused streaming")
UNFUSED = ("extract", "unfused", "unfused streaming")
BASES = {"unfused": "plain", "unfused streaming": "unfused"}
"""What a way is divided by, where it is not the plain forward."""


def build(size: Size, way: str) -> tuple[Callable[[], Any], Tensor]:
    """What to run for a way, and its input."""
    torch.manual_seed(0)
    set_fused_attn(way not in UNFUSED)
    model = timm.create_model(size.model, img_size=size.pixels).eval()
    set_fused_attn(True)
    images = torch.randn(size.batch, 3, size.pixels, size.pixels)
    runs: dict[str, Callable[[], Any]] = {
        "plain": lambda: model(images),
        "streaming": lambda: stream(model, images),
        "exact": lambda: stream(model, images, exact=True),
        "unfused": lambda: model(images),
        "unfused streaming": lambda: stream(model, images),
        "keeping": lambda: keep(model, images),
        "extract": lambda: extract(model, images),
    }
    return runs[way], images


def stream(model: nn.Module, images: Tensor, *, exact: bool = False) -> Any:
    """Measure each map while its layer runs, as `analyze` does."""
    measurement = ForwardMeasurement(profiles=False)
    measurement.begin()
    with overfocus.capture(model, reduce=measurement.add, exact=exact):
        model(images)
    return measurement.finish()


def keep(model: nn.Module, images: Tensor) -> Any:
    """Keep all maps, then measure them."""
    with overfocus.capture(model) as captured:
        model(images)
    return [measure(attention) for attention in captured.maps]


def extract(model: nn.Module, images: Tensor) -> Any:
    """Take the maps with timm, then measure them."""
    extractor = AttentionExtract(model, method="hook")
    maps = extractor(images)
    extractor.hooks = None  # timm leaves its hooks on the model; new ones come with every call
    for module in model.modules():
        module._forward_hooks.clear()
    side = images.shape[-1] // 16
    arrangement = Arrangement((("image",), ("head",)), ((-1,), (next(iter(maps.values())).shape[1],)))
    return [
        measure(
            AttentionMap(
                name, "global", ArrangedWeights(MaterialisedWeights(weights), arrangement),
                prefix_tokens=1, key_prefix_tokens=1, grid=(side, side), key_grid=(side, side), image_grid=(side, side),
            )
        )
        for name, weights in maps.items()
    ]  # fmt: skip


def peak_memory() -> float:
    """The most memory that this process has held so far, MB."""
    status = Path("/proc/self/status")
    if status.exists():  # a process begins with its parent's `ru_maxrss`, and with a `VmHWM` of its own
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


@torch.inference_mode()
def measure_memory(size: Size, way: str) -> float:
    """Peak memory of a run above what the process held before, MB."""
    run, _ = build(size, way)
    before = peak_memory()
    run()
    return peak_memory() - before


def memory_of(name: str, way: str) -> float:
    """`measure_memory` in a process of its own."""
    command = [sys.executable, __file__, "--size", name, "--memory-of", way]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(result.stdout))


@torch.inference_mode()
def time_ways(size: Size, ways: list[str], rounds: int) -> dict[str, list[float]]:
    """Median wall seconds of each way, and medians of its ratios to the plain forward of each round: wall and processor time."""
    runs = {way: build(size, way)[0] for way in ways}
    for run in runs.values():
        run()
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in runs.items():
            start, used = time.perf_counter(), time.process_time()
            run()
            times[way].append((time.perf_counter() - start, time.process_time() - used))
    medians = {}
    for way in ways:
        ratios = [
            [mine / plain for mine, plain in zip(*pair, strict=True)]
            for pair in zip(times[way], times[BASES.get(way, "plain")], strict=True)
        ]
        medians[way] = [statistics.median(column) for column in zip(*times[way], strict=True)][:1]
        medians[way] += [statistics.median(column) for column in zip(*ratios, strict=True)]
    return medians


def main() -> None:
    """Print a table of every size and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", dest="sizes", choices=list(SIZES))
    parser.add_argument("--way", action="append", dest="ways", choices=WAYS, help="plain always first; all by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--skip-time", action="store_true")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.sizes or [name for name in SIZES if name != "small-2048"]
    if arguments.memory_of:
        print(json.dumps(measure_memory(SIZES[names[0]], arguments.memory_of)))
        return
    print(f"torch {torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} threads")
    print("| model | pixels | batch | way | seconds | × plain | × plain, processor time | peak MB | above plain MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        size = SIZES[name]
        ways = [way for way in arguments.ways or WAYS if way not in UNFUSED or size.extract]
        rounds = max(1, arguments.rounds // (1 + size.pixels // 512))
        times = {} if arguments.skip_time else time_ways(size, ways, rounds)
        memory = {} if arguments.skip_memory else {way: memory_of(name, way) for way in ways}
        for way in ways:
            cells = [size.model, str(size.pixels), str(size.batch), way]
            cells += [f"{value:.2f}" for value in times.get(way, [])] or ["–"] * 3
            cells += [f"{memory[way]:.0f}", f"{memory[way] - memory['plain']:+.0f}"] if memory else ["–"] * 2
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
