"""Do TAP and ADL help? One small ViT on Fashion-MNIST: baseline, +TAP, +ADL, +TAP+ADL, three seeds each, one recipe.

    nice python tests/scripts/experiment.py --work /tmp/experiment              # trains and measures, then writes the tables
    nice python tests/scripts/experiment.py --work /tmp/experiment --sweep      # and K, λ, τ, warm-up, place, depth, length

Trains each model on all 60,000 images once (four to five minutes on one core), then measures its attention on 600 test images,
clean and under the 15 common corruptions at severities 1, 3 and 5, and its accuracy on all 10,000. Several models at a time, one
to a core. What is done already is not done again, so that the same line goes on after an interruption. Results: CSV files and
results.md in tests/data/experiment/.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from experiment_sweep import write_sweep
from experiment_tables import write_tables
from PIL import Image

from overfocus.analysis.analyze import analyze
from overfocus.datasets import open_images
from overfocus.evaluation.evaluate import evaluate
from overfocus.run import Run
from overfocus.training.train import Training, train

DATA = Path("/usr/share/datasets/fashion-mnist")
RESULTS = Path(__file__).parents[1] / "data" / "experiment"
MODEL = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 2}
RECIPE = {
    "epochs": 1,
    "batch_size": 32,
    "optimizer": "muon",  # gets as far as AdamW with a fraction of the pictures
    "learning_rate": 1e-2,
    "warmup_epochs": 0.1,
    "crop_scale": [1.0, 1.0],
    "crop_ratio": [1.0, 1.0],
}
"""Changes to the recipe `small`."""
TRAINING_IMAGES = 60_000
IMAGES = 600
SEVERITIES = [1, 3, 5]
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Variant:
    """What sets a model apart from the baseline."""

    tap: int | None = None
    """Branches of TAP."""
    adl: float | str = 0.0
    """λ."""
    recipe: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


VARIANTS = {"baseline": Variant(), "TAP": Variant(tap=4), "ADL": Variant(adl=1.0), "TAP+ADL": Variant(tap=4, adl=1.0)}
SWEEP = {
    **{f"{name}, 3 epochs": Variant(of.tap, of.adl, {"epochs": 3}) for name, of in VARIANTS.items()},
    **{f"TAP, K = {branches}": Variant(tap=branches) for branches in (1, 2, 3, 5)},
    **{f"ADL, λ = {weight:g}": Variant(adl=weight) for weight in (0.3, 3.0)},
    **{f"TAP+ADL, λ = {weight:g}": Variant(tap=4, adl=weight) for weight in (0.3, 3.0)},
    **{f"{name}, 12 layers": Variant(of.tap, of.adl, model={"depth": 12}) for name, of in VARIANTS.items()},
    "ADL, warm-up of half the training": Variant(adl=1.0, recipe={"adl_warmup": 0.5}),
    "ADL in layers 3–5": Variant(adl=1.0, recipe={"adl_layers": [3, 4, 5]}),
    "ADL in layers 0–2": Variant(adl=1.0, recipe={"adl_layers": [0, 1, 2]}),
    "ADL, λ = auto": Variant(adl="auto"),
    **{f"ADL, τ = {threshold:g}": Variant(adl=1.0, recipe={"adl_threshold": threshold}) for threshold in (1.0, 4.0)},
}
"""On the first seed alone, beside the four above."""


def reference(name: str) -> str:
    """The model that one of the sweep is compared with: the baseline of its length or depth."""
    of_its_kind = f"baseline, {name.partition(', ')[2]}"
    return of_its_kind if of_its_kind in SWEEP else "baseline"


def write_images(folder: Path, count: int) -> None:
    """So many test images as PNG files in class folders: the first of each class, of the first classes one more."""
    images = open_images(DATA, "validation")
    assert images is not None
    each, more = divmod(count, len(images.class_names))
    for label, name in enumerate(images.class_names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in (images.labels == label).nonzero()[0][: each + (label < more)]:
            path = folder / name / f"test-{index:05d}.png"
            if not path.exists():
                Image.fromarray(images.pixels[index]).save(path, optimize=True)


def finished(folder: Path) -> bool:
    """Whether a run in a folder is complete; a newer version of overfocus need not repeat it."""
    return (folder / "run.json").is_file() and Run(folder).complete


def train_one(work: Path, name: str, variant: Variant, seed: int, limit: int = TRAINING_IMAGES) -> Training:
    """Train one model, or go on with it."""
    return train(
        DATA,
        work / "trainings" / f"{name} seed {seed}",
        model="VisionTransformer",
        model_args=MODEL | variant.model,
        tap=variant.tap,
        changes=RECIPE | {"adl": variant.adl} | variant.recipe,
        seed=seed,
        limit=limit,
        workers=0,
        save_every=200,
        validate_every=None,
        trackers=[],
        progress=False,
    )


def run_one(work: Path, name: str, variant: Variant, seed: int, limit: int) -> str:
    """Train and measure one model; returns what it is called."""
    torch.set_num_threads(1)
    called = f"{name} seed {seed}"
    training = train_one(work, name, variant, seed, limit)
    few = None if limit == TRAINING_IMAGES else 20
    if not finished(work / "runs" / called):
        analyze(
            training.checkpoint,
            work / "images",
            ["common"],
            SEVERITIES,
            work / "runs" / called,
            batch_size=92,  # two images in their 46 variants
            displayed=0,
            maps_limit=0,
            workers=0,
            limit=few,
            progress=False,
        )
    if not finished(work / "evaluations" / called):
        evaluate(training.checkpoint, DATA, work / "evaluations" / called, workers=0, limit=few, progress=False)
    return called


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and compare baseline, TAP, ADL and TAP+ADL on Fashion-MNIST.")
    parser.add_argument("--work", type=Path, required=True, help="folder for trainings and runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the tables")
    parser.add_argument("--sweep", action="store_true", help="train the models of the sweep too")
    parser.add_argument("--limit", type=int, default=TRAINING_IMAGES, help="train on so many images only, to try the script")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="models at a time")
    options = parser.parse_args()
    models = [(name, variant, seed) for seed in SEEDS for name, variant in VARIANTS.items()]
    if options.sweep:
        models += [(name, variant, SEEDS[0]) for name, variant in SWEEP.items()]
    write_images(options.work / "images", IMAGES)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of each process
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for called in pool.map(run_one, *zip(*((options.work, *model, options.limit) for model in models), strict=True)):
            print(f"{called}: done", flush=True)
    write_tables(options.work, options.results)
    write_sweep(options.work, options.results, {name: reference(name) for name in VARIANTS | SWEEP}, SEEDS[0])


if __name__ == "__main__":
    main()
