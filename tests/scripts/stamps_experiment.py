"""Do TAP and ADL help segmentation? Baseline, +TAP, +ADL, +TAP+ADL, three seeds each, on the pictures of stamps_images.py.

    nice python tests/scripts/stamps_experiment.py --work /tmp/stamps

A ViT of 64 tokens under the SegFormer head. Trains each model on 16,000 augmented pictures (some three minutes on one core), then
measures 300 held-out pictures, clean and under the 15 common corruptions at severities 1, 3 and 5: mIoU, pixel accuracy, and the
share of the received attention that lands on objects. What is done already is not done again, so that the same line goes on
after an interruption. Results: CSV files and results.md in tests/data/stamps/.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from experiment import finished
from stamps_images import SIDE, write
from stamps_tables import SEEDS, SEVERITIES, write_tables

from overfocus.analysis.analyze import analyze
from overfocus.training.train import train

RESULTS = Path(__file__).parents[1] / "data" / "stamps"
MODEL = {"img_size": SIDE, "patch_size": 6, "embed_dim": 96, "depth": 6, "num_heads": 3}
RECIPE = {"epochs": 4, "batch_size": 32, "learning_rate": 1.5e-3, "warmup_epochs": 0.3}
ADL = {"adl": 1.0, "adl_threshold": 2.0}
VARIANTS = {"baseline": (None, {}), "TAP": (4, {}), "ADL": (None, ADL), "TAP+ADL": (4, ADL)}
"""Branches of TAP, and changes to the recipe."""


def run_one(work: Path, name: str, branches: int | None, changes: dict[str, object], seed: int, limit: int | None) -> None:
    """Train and measure one model."""
    data = write(work / "images")
    folder = work / "trainings" / f"{name} seed {seed}"
    training = train(
        data,
        folder,
        task="segmentation",
        model="VisionTransformer",
        model_args=MODEL,
        tap=branches,
        recipe="segmentation_small",
        changes=RECIPE | changes,
        seed=seed,
        limit=limit,
        workers=0,
        save_every=50,
        validate_every=RECIPE["epochs"],
        trackers=[],
        progress=True,
    )
    run = work / "runs" / folder.name
    if not finished(run):
        analyze(
            training.checkpoint,
            data,
            ["common"],
            SEVERITIES,
            run,
            batch_size=46,
            displayed=0,
            maps_limit=0,
            workers=0,
            limit=None if limit is None else 4,
            progress=False,
        )
    print(f"{folder.name}: done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and compare segmentation models with and without TAP and ADL.")
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures, trainings and runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the tables")
    parser.add_argument("--limit", type=int, help="train on so many pictures only, to try the script")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="only these, to share the work among processes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for name, (branches, changes) in VARIANTS.items():
            run_one(options.work, name, branches, changes, seed, options.limit)
    write_tables(options.work, options.results)


if __name__ == "__main__":
    main()
