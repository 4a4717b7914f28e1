"""Time FAN with and without TAP, ours against the textbook form, side by side in one run.

    python tests/benchmarks/fan.py [--batch-size N] [--rounds N] [--threads N] [--train]

Each round runs the four networks one after the other; the ratios are medians over the rounds. Wall time is what a user waits;
processor time of the process is hardly disturbed by what else the machine does, if there is one thread. Memory is the peak
above the built model, of one forward in a process of its own. Weights are random: neither depends on them.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from textbook_fan import textbook_form

import overfocus.models  # noqa: F401  registers the models

TAP, PLAIN = "tap_fan_base_16_p4_hybrid", "fan_base_16_p4_hybrid"
NETWORKS = {"textbook, TAP": (TAP, True), "textbook": (PLAIN, True), "ours, TAP": (TAP, False), "ours": (PLAIN, False)}
RATIOS = [
    ("textbook, TAP", "ours, TAP"),
    ("textbook, TAP", "ours"),
    ("textbook", "ours"),
    ("textbook, TAP", "textbook"),
    ("ours, TAP", "ours"),
]


def main() -> None:
    """Print time and memory of each network and the ratios between them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--train", action="store_true", help="time forward and backward in training mode")
    parser.add_argument("--memory-of", choices=NETWORKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        network = NETWORKS[arguments.memory_of]
        print(peak_memory(step(*network, 1, arguments.train), step(*network, arguments.batch_size, arguments.train)))
        return

    check_same_logits()
    steps = {name: step(*network, arguments.batch_size, arguments.train) for name, network in NETWORKS.items()}
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in NETWORKS} for clock in clocks}
    for round_number in range(arguments.rounds + 1):
        for name, run in steps.items():
            before = {clock: read() for clock, read in clocks.items()}
            run()
            if round_number > 0:
                for clock, read in clocks.items():
                    times[clock][name].append(read() - before[clock])

    what = "forward and backward" if arguments.train else "forward"
    print(f"FAN-B-Hybrid, {what}, batch {arguments.batch_size}, {arguments.threads} threads, {arguments.rounds} rounds")
    print(f"{'':16} {'wall, s':>9} {'processor, s':>13} {'memory, MB':>11}")
    for name in NETWORKS:
        wall, processor = (statistics.median(times[clock][name]) for clock in clocks)
        options = [f"--batch-size={arguments.batch_size}", f"--threads={arguments.threads}"] + ["--train"] * arguments.train
        memory = subprocess.run(
            [sys.executable, __file__, "--memory-of", name, *options], capture_output=True, text=True, check=True
        )
        print(f"{name:16} {wall:9.3f} {processor:13.3f} {float(memory.stdout.split()[-1]):11.0f}")
    for above, below in RATIOS:
        wall, processor = (
            statistics.median(a / b for a, b in zip(times[clock][above], times[clock][below], strict=True)) for clock in clocks
        )
        print(f"{above:>14} / {below:10} {wall:6.2f} × wall {processor:6.2f} × processor")


def check_same_logits() -> None:
    """Raise AssertionError unless both forms of the network with TAP give the same logits."""
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        model = timm.create_model(TAP).eval()
        ours = model(images)
        torch.testing.assert_close(textbook_form(model)(images), ours, atol=1e-4 * ours.std().item(), rtol=0)


def step(model_name: str, textbook: bool, batch_size: int, train: bool) -> Callable[[], None]:
    """One forward, or one forward and backward, of a network on random images."""
    torch.manual_seed(0)
    model = timm.create_model(model_name).train(train)
    model = textbook_form(model) if textbook else model
    images = torch.randn(batch_size, 3, 224, 224)

    def run() -> None:
        if train:
            model.zero_grad()
            model(images).square().mean().backward()
        else:
            with torch.inference_mode():
                model(images)

    return run


def peak_memory(warm_up: Callable[[], None], run: Callable[[], None]) -> float:
    """Megabytes that the process grew by at most during `run`, after `warm_up` has loaded what any run needs (Linux)."""
    warm_up()
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """Resident memory of this process in megabytes: now (VmRSS) or at its highest (VmHWM)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
