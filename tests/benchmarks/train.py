"""Time of a training step with TAP and ADL, the share of waiting for images, and evaluation beside the plain forward.

    python tests/benchmarks/train.py [--model NAME] [--batch-size N] [--rounds N] [--threads N] [--only step|waiting|evaluate]

step: steps of the trainer itself (forward, loss, backward, clipping, AdamW), one variant after the other in each round; ratios
are medians over the rounds. Attention is sharpened first (query and key weights × 4), so that ADL has something to do.
waiting: a training on photographs of 500×400 pixels with the augmentations of the recipe `fan`, read by two worker processes.
evaluate: images per second with five corruptions made on the fly, beside forwards of the same batches that are there already.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from side_by_side import CLOCKS, measure, median, median_ratio

from overfocus.checkpoints.metadata import save_checkpoint
from overfocus.evaluation.evaluate import evaluate
from overfocus.models import add_tap
from overfocus.preprocessing import Preprocess
from overfocus.samples import sample_images
from overfocus.training.data import Batch
from overfocus.training.loop import LearningRate, Pace, Trainer, make_optimizer
from overfocus.training.objective import Classification, Diversity
from overfocus.training.session import make_accelerator
from overfocus.training.settings import load_recipe
from overfocus.training.train import train

VARIANTS = {"baseline": (None, 0.0), "TAP": (4, 0.0), "ADL": (None, 1.0), "TAP + ADL": (4, 1.0)}
CORRUPTIONS = ["gaussian_noise", "motion_blur", "fog", "contrast", "jpeg_compression"]


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("step", "waiting", "evaluate"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only in (None, "step"):
        compare_steps(arguments)
    if arguments.only in (None, "waiting"):
        show_waiting(arguments)
    if arguments.only in (None, "evaluate"):
        compare_evaluation(arguments)


def compare_steps(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Training steps of the variants; the ratios of each to the baseline, by wall and by processor time."""
    steps: dict[str, Callable[[], object]] = {name: Stepper(arguments, *options) for name, options in VARIANTS.items()}
    times = measure(steps, arguments.rounds, warm_up=1)
    print(
        f"Training step of {arguments.model}, batch {arguments.batch_size}, "
        f"{arguments.threads} threads, {arguments.rounds} rounds"
    )
    print(f"{'':12} {'wall, s':>8} {'processor, s':>13} {'× wall':>7} {'× processor':>12}")
    found = {}
    for name in VARIANTS:
        seconds = [median(times, clock, name) / 1e3 for clock in CLOCKS]
        ratios = [median_ratio(times, clock, name, "baseline") for clock in CLOCKS]
        found[name] = ratios
        print(f"{name:12} {seconds[0]:8.2f} {seconds[1]:13.2f} {ratios[0]:7.2f} {ratios[1]:12.2f}")
    return found


class Stepper:
    """Takes one step of the trainer at each call."""

    def __init__(self, arguments: argparse.Namespace, branches: int | None, adl: float) -> None:
        recipe = load_recipe("small").changed({"batch_size": arguments.batch_size, "adl": adl, "warmup_epochs": 0})
        torch.manual_seed(0)
        model = timm.create_model(arguments.model)
        if branches is not None:
            add_tap(model, branches)
        for name, parameter in model.named_parameters():
            if name.endswith("qkv.weight"):
                parameter.data[: 2 * len(parameter) // 3] *= 4
        accelerator = make_accelerator(recipe, Path(), device="cpu", trackers=[], compiled=False, has_unused=False)
        optimizer = make_optimizer(model, recipe, arguments.batch_size)
        rate = LearningRate(optimizer, recipe, 1000)
        prepared, optimizer = accelerator.prepare(model, optimizer)
        self.trainer = Trainer(
            accelerator,
            prepared,
            bare=model,
            average=None,
            optimizer=optimizer,
            rate=rate,
            recipe=recipe,
            objective=Classification(recipe, 1000),
            diversity=Diversity(recipe, 1000),
            pace=Pace(1000, 1000, 1000, 1000, None),
            seed=0,
            folder=Path(),
        )
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(arguments.batch_size, 3, 224, 224, generator=generator)
        labels = torch.randint(1000, (arguments.batch_size,), generator=generator)
        self.batches: Iterator[Batch] = repeat((images, labels))

    def __call__(self) -> None:
        self.trainer._take_step(self.batches)


def photographs(folder: Path, count: int) -> Path:
    """Class folders with the bundled photographs, again and again, as JPEG files."""
    images = [Image.open(path).convert("RGB").resize((500, 400)) for path in sorted(sample_images((3, 224, 224)).glob("*.*"))]
    for number in range(count):
        (folder / f"class {number % 2}").mkdir(parents=True, exist_ok=True)
        images[number % len(images)].save(folder / f"class {number % 2}" / f"{number}.jpg", quality=90)
    return folder


def show_waiting(arguments: argparse.Namespace) -> None:
    """Share of a training's time that is spent waiting for images."""
    with tempfile.TemporaryDirectory() as name:
        folder = photographs(Path(name) / "data", 8 * arguments.batch_size)
        augmented = {"auto_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.3, "interpolation": "random", "crop_scale": [0.08, 1]}
        training = train(
            folder,
            Path(name) / "training",
            model=arguments.model,
            changes=augmented | {"epochs": 1, "batch_size": arguments.batch_size, "warmup_epochs": 0},
            workers=2,
            log_every=1,
            trackers=[],
            device="cpu",
            progress=False,
        )
        waiting = training.log["waiting"].to_numpy()
    print(
        f"Training of {arguments.model}, batch {arguments.batch_size}, 2 workers: "
        f"waiting for images {np.mean(waiting[1:]):.1%} of the time"
    )


def compare_evaluation(arguments: argparse.Namespace) -> float:
    """Images per second of `evaluate` over those of the plain forward, median of rounds in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = photographs(Path(name) / "data", 84)
        torch.manual_seed(0)
        model = timm.create_model(arguments.model, num_classes=2).eval()
        path = save_checkpoint(
            model,
            Path(name) / "model.safetensors",
            architecture=arguments.model,
            class_names=["class 0", "class 1"],
            preprocess=Preprocess(),
        )
        batch = torch.randn(18, 3, 224, 224)

        def plain() -> float:
            with torch.no_grad():
                model(batch)
                began = time.perf_counter()
                for _ in range(6):
                    model(batch)
            return 6 * len(batch) / (time.perf_counter() - began)

        ratios = []
        for number in range(arguments.rounds):
            before = plain()
            (evaluation,) = evaluate(
                path,
                folder,
                Path(name) / f"run-{number}",
                corruptions=CORRUPTIONS,
                severities=[3],
                batch_size=18,
                workers=2,
                device="cpu",
                progress=False,
            )
            inside = float(evaluation.run.description.timing["variants_per_second"])
            ratios.append(2 * inside / (before + plain()))
            print(f"evaluate, {arguments.model}: {inside:.1f} images/s, ÷ plain forward {ratios[-1]:.2f}")
    print(f"median: {statistics.median(ratios):.2f} × the plain forward")
    return statistics.median(ratios)


if __name__ == "__main__":
    main()
