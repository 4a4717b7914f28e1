"""How much faster two processes measure than one: `analyze` of DeiT-Ti, 64 images × 4 corruptions, one thread each.

    python tests/benchmarks/processes.py [--images N] [--rounds N]

Rounds of one process and of two alternate. The clock runs while the sweep does: importing, building the model, describing it and
its numerical noise, which one process does for all, and the report are left out. The tables must be identical. Beside it stands
what the machine gives: how much more forwards of the plain model two processes run than one, in the same round.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from analyze import write_photos

ROOT = Path(__file__).parents[2]
CORRUPTIONS = ["gaussian_noise", "defocus_blur", "fog", "jpeg_compression"]
BATCH, FORWARDS = 12, 12
"""Of the plain model."""


def main() -> None:
    """Print the seconds of each round and the median of the ratios, or, in a process that was launched, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.images)
        return
    from overfocus import Run

    ratios, given = [], []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            write_photos(Path(folder) / "photos", arguments.images)
            seconds = {count: launch(count, Path(folder), arguments.images) for count in (1, 2)}
            one, two = (Run(Path(folder) / f"run-{count}") for count in (1, 2))
            same = one.table.equals(two.table) and one.predictions.equals(two.predictions)
            plain = {count: float((Path(folder) / f"plain-{count}").read_text()) for count in (1, 2)}
        ratios.append(seconds[1] / seconds[2])
        given.append(2 * plain[1] / plain[2])
        print(
            f"round {number + 1}: {seconds[1]:.1f} s with one process, {seconds[2]:.1f} s with two, {ratios[-1]:.2f}×; "
            f"tables identical: {same}; plain forwards {given[-1]:.2f}×"
        )
    print(f"median: {statistics.median(ratios):.2f}× faster with two processes; plain forwards {statistics.median(given):.2f}×")


def launch(processes: int, folder: Path, images: int) -> float:
    """Seconds that so many processes measure."""
    paths = [str(ROOT), str(ROOT / "cli"), str(ROOT / "reports"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, __file__, "--images", str(images), "--measure", str(folder)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return float((folder / f"seconds-{processes}").read_text())


def measure(folder: Path, images: int) -> None:
    """Time `analyze` in this process, one of a group."""
    import torch

    import overfocus
    from overfocus import analysis
    from overfocus.processes import is_main_process, started_together

    torch.manual_seed(0)
    loaded = overfocus.load_model("deit_tiny_patch16_224", pretrained=False)
    count = started_together()
    options = {"corruptions": CORRUPTIONS, "severities": [3], "workers": 0, "device": "cpu", "displayed": 0, "progress": False}
    overfocus.analyze(loaded, folder / "photos", limit=2, output=folder / f"warm-{count}", **options)
    sweep, seconds = analysis.sweep, []

    def timed(*arguments: Any, **keywords: Any) -> None:
        began = time.perf_counter()
        sweep(*arguments, **keywords)
        seconds.append(time.perf_counter() - began)

    analysis.sweep = timed
    overfocus.analyze(loaded, folder / "photos", limit=images, output=folder / f"run-{count}", **options)
    batch = torch.randn(BATCH, 3, 224, 224)
    began = time.perf_counter()
    with torch.inference_mode():
        for _ in range(FORWARDS):
            loaded.model(batch)
    if is_main_process():
        (folder / f"seconds-{count}").write_text(str(seconds[0]))
        (folder / f"plain-{count}").write_text(str(time.perf_counter() - began))


if __name__ == "__main__":
    main()
