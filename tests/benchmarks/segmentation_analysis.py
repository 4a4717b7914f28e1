"""Peak memory of `analyze` on segmentation models at 1024×1024 pixels, above that of the plain forward of the same images.

    python tests/benchmarks/segmentation_analysis.py [MODEL]... [--batch-size N] [--image-size PIXELS] [--variants N]

Each number is that of one process of its own: the plain forward of the largest batch that `analyze` makes, and `analyze` of one
image in that many variants, masks and class maps included. Workers that read and corrupt images are processes beside it; the
largest is given, and shares its pages of the model with the main process. Weights are random: memory does not depend on them. On
two cores a model takes some minutes.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import overfocus
from overfocus.corruptions import resolve_corruptions
from overfocus.sweep.reading import plan_pairs

MODELS = (
    "tap_fan_tiny_8_p4_hybrid_segformer",
    "tap_fan_small_12_p4_hybrid_segformer",
    "swin_tiny_patch4_window7_224_segformer",
)
LIMIT = 1536
"""Megabytes that analyze may take above the plain forward."""


def main() -> None:
    """Print a row for each model and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--variants", type=int, default=4, help="the clean image and up to 15 corruptions of it")
    parser.add_argument("--way", choices=("plain", "analyze"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(run(arguments.models[0], arguments.way, arguments)))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batches of {arguments.batch_size}")
    print("| model | way | seconds | peak MB | above plain MB | largest worker MB |")
    print("|---|---|---|---|---|---|")
    for model in arguments.models:
        plain = {}
        for way in ("plain", "analyze"):
            options = [
                f"--{name}={getattr(arguments, name.replace('-', '_'))}" for name in ("batch-size", "image-size", "variants")
            ]
            command = [sys.executable, __file__, model, "--way", way, *options]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
            plain = plain or found
            above = found["peak"] - plain["peak"]
            verdict = f"{above:+.0f} ({'within' if above <= LIMIT else 'above'} {LIMIT})" if way == "analyze" else "0"
            print(
                f"| {model} | {way} | {found['seconds']:.0f} | {found['peak']:.0f} | {verdict} | {found['worker']:.0f} |",
                flush=True,
            )


def run(model: str, way: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds and peak megabytes of one way."""
    torch.manual_seed(0)
    loaded = overfocus.load_model(model, pretrained=False, device="cpu", image_size=arguments.image_size)
    began = time.perf_counter()
    if way == "plain":
        largest = max(len(batch) for batch in plan_pairs(arguments.variants, arguments.batch_size).batches)
        images = torch.randn(largest, *loaded.input_size)
        with torch.no_grad():
            loaded.model(images)
    else:
        with tempfile.TemporaryDirectory() as folder:
            data = write_data(Path(folder) / "data", arguments.image_size, loaded.num_classes)
            overfocus.analyze(
                loaded,
                data,
                corruptions=resolve_corruptions("common")[: arguments.variants - 1],
                severities=[3],
                output=Path(folder) / "run",
                batch_size=arguments.batch_size,
                progress=False,
            )
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"seconds": time.perf_counter() - began, "peak": peak_memory(), "worker": worker if way == "analyze" else 0.0}


def write_data(folder: Path, side: int, classes: int) -> Path:
    """One image of smooth colours with noise, and its mask."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)).resize(
        (2 * side, side), Image.Resampling.BICUBIC
    )
    coarse.save(folder / "images" / "0.png")
    mask = rng.integers(0, classes, (8, 16)).astype(np.uint8)
    Image.fromarray(mask).resize((2 * side, side), Image.Resampling.NEAREST).save(folder / "masks" / "0.png")
    (folder / "classes.txt").write_text("\n".join(f"class {number}" for number in range(classes)), encoding="utf-8")
    return folder


def peak_memory() -> float:
    """The most memory that this process has held so far, MB (Linux; a process begins with its parent's `ru_maxrss`)."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
