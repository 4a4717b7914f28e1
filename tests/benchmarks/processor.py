"""The table of what overfocus costs on a processor, every row measured in one run: ÷ the plain forward or step beside it.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/processor.py             # a quarter of an hour on two quiet cores
    python tests/benchmarks/processor.py --only capture --only step --rounds 5

Each row is a median of interleaved rounds, of wall time and of processor time. Rows: capture with every metric beside the plain
forward, and timm's AttentionExtract with the same metrics, on fused and on unfused models; long sequences; `analyze`; a training
step with TAP and ADL; `evaluate` (images/s over those of the plain forward); `overfocus analyze` of the bundled model as a
program, the second start.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import analyze
import capture
import torch
import train

Row = tuple[str, float, float | None, str, str]
"""What, wall, processor, the figures of version 0.1.0, the target."""


def capture_rows(rounds: int) -> Iterator[Row]:
    """Capture with every metric at 224 pixels, and the peer."""
    targets = {"base": ("1.11", "1.05"), "small": ("1.18", "1.10"), "tiny": ("1.28–1.34", "1.15")}
    for name, (before, target) in targets.items():
        size = capture.SIZES[name]
        what = f"{size.model}, batch {size.batch}"
        ways = [way for way in capture.WAYS if way != "keeping"]
        times = capture.time_ways(size, ways, rounds)
        yield f"capture + all metrics ÷ plain, {what}", *times["streaming"][1:], before, target
        yield "… with exact=True", *times["exact"][1:], before, ""
        yield "AttentionExtract + the same metrics ÷ plain (fused)", *times["extract"][1:], "1.02–1.21", ""
        yield f"capture + all metrics ÷ plain, unfused {what}", *times["unfused streaming"][1:], "1.27–1.33", target
        unfused = [extract / plain for extract, plain in zip(times["extract"][1:], times["unfused"][1:], strict=True)]
        yield "AttentionExtract + the same metrics ÷ plain (unfused)", *unfused, "", ""


def long_rows(rounds: int) -> Iterator[Row]:
    """Capture of long sequences."""
    for name, before, target in (("small-512", "1.63", "1.35"), ("small-1024", "2.74", "1.9")):
        times = capture.time_ways(capture.SIZES[name], ["plain", "streaming"], max(3, rounds // 2))
        yield f"capture + all metrics ÷ plain, ViT-S at {capture.SIZES[name].pixels}", *times["streaming"][1:], before, target


def analyze_rows(rounds: int) -> Iterator[Row]:
    """`analyze` of 64 images in four corruptions, the control's forwards included in the plain ones."""
    corruptions = ["gaussian_noise", "defocus_blur", "fog", "jpeg_compression"]
    wall, processor = analyze.compare_with_plain("deit_small_patch16_224", 64, corruptions, 16, None, max(2, rounds // 3))
    yield "analyze ÷ plain forwards, 64 × 4", wall, processor, "1.50", "1.20"


def step_rows(rounds: int) -> Iterator[Row]:
    """A training step."""
    ratios = train.compare_steps(_arguments(rounds))
    for name, before, target in (("TAP", "", ""), ("ADL", "", ""), ("TAP + ADL", "1.39", "1.25")):
        yield f"training step with {name} ÷ baseline", *ratios[name], before, target


def evaluate_rows(rounds: int) -> Iterator[Row]:
    """Evaluation."""
    yield "evaluate ÷ plain forward, images/s", train.compare_evaluation(_arguments(max(2, rounds // 2))), None, "0.86", "0.95"


def program_rows(rounds: int) -> Iterator[Row]:
    """The bundled model, from the command line."""
    del rounds
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2):
            began = time.perf_counter()
            command = [sys.executable, "-m", "overfocus", "analyze", "--output", str(Path(folder) / f"run-{number}")]
            subprocess.run(command, check=True, capture_output=True)
            seconds = time.perf_counter() - began
    yield "overfocus analyze, bundled model, second start: seconds", seconds, None, "30", "12"


ROWS: dict[str, Callable[[int], Iterator[Row]]] = {
    "capture": capture_rows,
    "long": long_rows,
    "analyze": analyze_rows,
    "step": step_rows,
    "evaluate": evaluate_rows,
    "program": program_rows,
}


def _arguments(rounds: int) -> argparse.Namespace:
    return argparse.Namespace(
        model="vit_small_patch16_224", batch_size=16, rounds=rounds, threads=torch.get_num_threads(), only=None
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=ROWS)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    started = time.perf_counter()
    rows = []
    for name in arguments.only or ROWS:
        try:
            rows += list(ROWS[name](arguments.rounds))
        except Exception as error:
            rows.append((f"{name}: {type(error).__name__}: {str(error)[:80]}", float("nan"), None, "", ""))
        print(f"{name} done after {time.perf_counter() - started:.0f} s", flush=True)
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n")
    print("| measured in one run | wall | processor | 0.1.0 | to reach |")
    print("|---|---|---|---|---|")
    for what, wall, processor, before, target in rows:
        print(f"| {what} | {wall:.2f} | {'' if processor is None else f'{processor:.2f}'} | {before} | {target} |")


if __name__ == "__main__":
    main()
