"""What loading costs: `overfocus inspect` beside importing torch and timm, building the same model and loading the same file.

    OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/loading.py               # some three minutes
    python tests/benchmarks/loading.py --rounds 3 --threads 1

Every round starts each program once, in turn; printed are medians of wall time and of processor time, and the medians of the
ratios within a round. The checkpoint is a ViT-B of random values (343 MB), with its architecture's name in the file and without;
then the peak memory of loading a ViT-L (1.2 GB), over what the imports take, in copies of its weights.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch

ROOT = Path(__file__).parents[2]
PLAIN = "import sys, torch, timm; m = timm.create_model(sys.argv[2]); m.load_state_dict(torch.load(sys.argv[1])); m.eval()"
INSPECT = "from overfocus_cli.main import run; run()"
IMPORTS = "import torch, timm, overfocus.checkpoints.load"
LOAD = "import sys, overfocus; overfocus.load_model(sys.argv[1])"
PEAK = "; import re, pathlib; print(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])"


def spent(code: str, *arguments: str, threads: int) -> tuple[float, float]:
    """(seconds, seconds of the processor) of a new Python program."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "cli", "reports"))}
    environment["OMP_NUM_THREADS"] = str(threads)
    began = time.perf_counter()
    with Path(os.devnull).open("wb") as nothing:
        actions = [(os.POSIX_SPAWN_DUP2, nothing.fileno(), 1)]
        child = os.posix_spawn(sys.executable, [sys.executable, "-c", code, *arguments], environment, file_actions=actions)
        _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"the program failed: {code} {' '.join(arguments)}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime


def peak(code: str, *arguments: str) -> int:
    """Bytes at the peak of a new Python program, as Linux tells it; what `wait4` tells includes its parent's."""
    found = subprocess.run([sys.executable, "-c", code + PEAK, *arguments], check=True, capture_output=True, text=True)
    return int(found.stdout.split()[-1]) * 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base, named, large = (Path(folder) / name for name in ("base.pth", "named.pth", "large.pth"))
        state = timm.create_model("vit_base_patch16_224").state_dict()
        torch.save(state, base)
        torch.save({"arch": "vit_base_patch16_224", "state_dict": state}, named)
        programs = {
            "import torch and timm, build, load": (PLAIN, str(base), "vit_base_patch16_224"),
            "overfocus inspect": (INSPECT, "inspect", str(base)),
            "overfocus inspect, architecture in the file": (INSPECT, "inspect", str(named)),
            "… and with the name in --model": (INSPECT, "inspect", "--model", "vit_base_patch16_224", str(base)),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
        for turn in range(given.rounds + 1):
            for name, program in programs.items():
                measured = spent(*program, threads=given.threads)
                if turn:  # the first fills the file cache
                    times[name].append(measured)
        plain = times["import torch and timm, build, load"]
        print(f"{given.rounds} rounds, {given.threads} threads, {base.stat().st_size / 1e6:.0f} MB")
        for name, measured in times.items():
            wall, processor = (statistics.median(row[n] for row in measured) for n in (0, 1))
            ratios = [statistics.median(a[n] / b[n] for a, b in zip(measured, plain, strict=True)) for n in (0, 1)]
            print(f"{name}: {wall:.2f} s, {processor:.2f} s of processor; ÷ plain {ratios[0]:.2f}, {ratios[1]:.2f} (target 1.3)")
        without, told = times["overfocus inspect"], times["… and with the name in --model"]
        added = [statistics.median(a[n] - b[n] for a, b in zip(without, told, strict=True)) for n in (0, 1)]
        print(f"finding the architecture: {added[0]:+.2f} s, {added[1]:+.2f} s of processor (target 0.5)")
        torch.save(timm.create_model("vit_large_patch16_224").state_dict(), large)
        held = peak(LOAD, str(large)) - peak(IMPORTS)
        print(
            f"peak of loading a ViT-L: {held / large.stat().st_size:.2f} copies of {large.stat().st_size / 1e6:.0f} MB (target 1)"
        )


if __name__ == "__main__":
    main()
