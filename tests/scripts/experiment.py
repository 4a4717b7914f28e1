"""Do TAP and ADL help? One small ViT on Fashion-MNIST: baseline, +TAP, +ADL, +TAP+ADL, three seeds each, one recipe.

    nice python tests/scripts/experiment.py --work /tmp/experiment              # trains and measures, then writes the tables
    nice python tests/scripts/experiment.py --work /tmp/experiment --sweep      # K, λ, warm-up and place of ADL, one seed

Trains each model on 48,000 of the 60,000 images once (about four minutes on one core), then measures its attention on 600 test
images, clean and under the 15 common corruptions at severities 1, 3 and 5, and its accuracy on all 10,000. What is done already
is not done again, so that the same line goes on after an interruption. Results: CSV files and results.md in
tests/data/experiment/.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from experiment_tables import write_tables
from PIL import Image

from overfocus.analysis.analyze import analyze
from overfocus.datasets import open_images
from overfocus.evaluation.evaluate import evaluate
from overfocus.run import Run
from overfocus.training.train import train

DATA = Path("/usr/share/datasets/fashion-mnist")
RESULTS = Path(__file__).parents[1] / "data" / "experiment"
MODEL = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3}
RECIPE = {"epochs": 1, "batch_size": 64, "learning_rate": 1e-3, "warmup_epochs": 0.1}
TAP = 4
ADL = {"adl": 1.0, "adl_threshold": 2.0}
VARIANTS = {
    "baseline": (None, {}),
    "TAP": (TAP, {}),
    "ADL": (None, ADL),
    "TAP+ADL": (TAP, ADL),
}
"""Branches of TAP, and changes to the recipe."""
SWEEP = {
    **{f"TAP K={branches}": (branches, {}) for branches in (1, 2, 3, 5)},
    **{f"ADL λ={weight:g}": (None, ADL | {"adl": weight}) for weight in (0.1, 0.3, 3.0)},
    "ADL λ=auto": (None, ADL | {"adl": "auto"}),
    "ADL λ=1 warm-up": (None, ADL | {"adl_warmup": 0.5}),
    "ADL λ=1 last three layers": (None, ADL | {"adl_layers": [3, 4, 5]}),
    "ADL τ=1": (None, ADL | {"adl_threshold": 1.0}),
    "ADL τ=4": (None, ADL | {"adl_threshold": 4.0}),
    **{f"TAP+ADL λ={weight:g}": (TAP, ADL | {"adl": weight}) for weight in (0.1, 0.3, 3.0)},
}
"""On the first seed alone, beside the four above."""
SEEDS = (0, 1, 2)
SEVERITIES = [1, 3, 5]
TRAINING_IMAGES = 48_000
IMAGES = 600


def measured_images(folder: Path) -> Path:
    """The first 60 test images of each class as PNG files in class folders."""
    images = open_images(DATA, "validation")
    assert images is not None
    for label, name in enumerate(images.class_names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in (images.labels == label).nonzero()[0][: IMAGES // len(images.class_names)]:
            path = folder / name / f"test-{index:05d}.png"
            if not path.exists():
                Image.fromarray(images.pixels[index]).save(path)
    return folder


def finished(folder: Path) -> bool:
    """Whether a run in a folder is complete; a newer version of overfocus need not repeat it."""
    return (folder / "run.json").is_file() and Run(folder).complete


def run_one(work: Path, name: str, branches: int | None, changes: dict[str, object], seed: int, limit: int) -> None:
    """Train and measure one model."""
    folder = work / "trainings" / f"{name} seed {seed}"
    training = train(
        DATA,
        folder,
        model="VisionTransformer",
        model_args=MODEL,
        tap=branches,
        changes=RECIPE | changes,
        seed=seed,
        limit=limit,
        workers=0,
        save_every=100,
        trackers=[],
        progress=True,
    )
    few = None if limit == TRAINING_IMAGES else 20
    run, evaluation = work / "runs" / folder.name, work / "evaluations" / folder.name
    if not finished(run):
        analyze(
            training.checkpoint,
            measured_images(work / "images"),
            ["common"],
            SEVERITIES,
            run,
            batch_size=92,  # two images in their 46 variants
            displayed=0,
            maps_limit=0,
            workers=0,
            limit=few,
            progress=False,
        )
    if not finished(evaluation):
        evaluate(training.checkpoint, DATA, evaluation, workers=0, limit=few, progress=False)
    print(f"{folder.name}: done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and compare baseline, TAP, ADL and TAP+ADL on Fashion-MNIST.")
    parser.add_argument("--work", type=Path, required=True, help="folder for trainings and runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the tables")
    parser.add_argument("--sweep", action="store_true", help="train the models of the sweep too")
    parser.add_argument("--limit", type=int, default=TRAINING_IMAGES, help="train on so many images only, to try the script")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in SEEDS:
        for name, (branches, changes) in VARIANTS.items():
            run_one(options.work, name, branches, changes, seed, options.limit)
    if options.sweep:
        for name, (branches, changes) in SWEEP.items():
            run_one(options.work, name, branches, changes, SEEDS[0], options.limit)
    write_tables(options.work, options.results)


if __name__ == "__main__":
    main()
