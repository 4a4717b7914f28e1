"""Sliding-window inference at 1024×2048 beside the plain forwards of the same crops; memory for few and for many windows.

    python tests/benchmarks/segmentation.py                      # a few minutes on two cores
    python tests/benchmarks/segmentation.py --model tap_fan_small_12_p4_hybrid_segformer --rounds 9

Crops of 1024×1024 with a stride of 768, as Cityscapes is evaluated: three an image. Sliding takes from normalised pixels to a
logit for every class and pixel and to the class of every pixel; the plain forwards put the same crops through the model in the
same batches and drop what comes out. Both follow each other in every round of one process. Peak memory is that of one process
per number of windows, above what it holds with the model and the image made. Weights are random: nothing here depends on them.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import timm
import torch
from side_by_side import measure, median, median_ratio, peak_memory
from torch import Tensor, nn

import overfocus.models  # noqa: F401  registers the models
from overfocus.segmentation.inference import Inference, class_map, window_starts

MODEL = "tap_fan_tiny_8_p4_hybrid_segformer"
HEIGHT, WIDTH, CROP, STRIDE = 1024, 2048, 1024, 768
STRIDES = (1024, 768, 256, 64)
"""2, 3, 5 and 17 windows an image."""
TOGETHER = 1
TARGET = 0.85


def build(model: str) -> tuple[nn.Module, Tensor]:
    """The model and an image."""
    torch.manual_seed(0)
    return timm.create_model(model).eval(), torch.randn(1, 3, HEIGHT, WIDTH)


def slide(model: nn.Module, image: Tensor, stride: int, together: int) -> Tensor:
    """The class of every pixel."""
    inference = Inference((CROP, CROP), (stride, stride), together)
    return class_map(inference.logits(model, image), (HEIGHT, WIDTH))


def crops_of(image: Tensor, stride: int) -> Tensor:
    """The same windows, side by side."""
    return torch.cat([image[..., left : left + CROP] for left in window_starts(WIDTH, CROP, stride)])


def print_times(name: str, rounds: int, together: int) -> None:
    """Images/s of both ways, and their ratio."""
    model, image = build(name)
    crops = crops_of(image, STRIDE)
    forms = {
        "sliding": lambda: slide(model, image, STRIDE, together),
        "crops": lambda: [model(part) for part in crops.split(together)],
    }
    with torch.no_grad():
        model(crops[:together])
        times = measure(forms, rounds, warm_up=0)
    print(
        f"{name}, {len(crops)} windows of {CROP} in {WIDTH}×{HEIGHT}, {together} in a forward, {torch.get_num_threads()} threads"
    )
    for form in forms:
        milliseconds = median(times, "wall", form)
        print(f"  {form:8} {milliseconds:9.0f} ms   {1e3 / milliseconds:6.3f} images/s")
    for clock in times:
        ratio = median_ratio(times, clock, "crops", "sliding")
        print(f"  images/s of sliding over crops, {clock:9} time: {ratio:.3f} (target {TARGET})")


def print_memory(name: str, together: int) -> None:
    """Peak memory by number of windows, each in a process of its own."""
    print("peak memory above what the model and the image take")
    for stride in (0, *STRIDES):
        command = [sys.executable, __file__, "--model", name, "--together", str(together), "--memory", str(stride)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        what = f"{len(window_starts(WIDTH, CROP, stride)):3} windows" if stride else "forward of one crop"
        print(f"  {what:20} {float(done.stdout):6.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=Path(__file__).stem)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--together", type=int, default=TOGETHER, help="windows in one forward")
    parser.add_argument(
        "--memory", type=int, metavar="STRIDE", help="print megabytes for windows of this stride (0: a crop) only"
    )
    arguments = parser.parse_args()
    if arguments.memory is None:
        print_times(arguments.model, arguments.rounds, arguments.together)
        if not arguments.no_memory:
            print_memory(arguments.model, arguments.together)
        return
    model, image = build(arguments.model)
    small = image[..., :64, :64]
    stride, crop = arguments.memory, image[..., :CROP]
    with torch.no_grad():
        run = (lambda: slide(model, image, stride, arguments.together)) if stride else (lambda: model(crop))
        print(peak_memory(lambda: model(small), run))


if __name__ == "__main__":
    main()
