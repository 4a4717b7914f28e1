"""Do TAP and ADL help a small ViT on Fashion-MNIST under CIFAR-C's corruptions?

    python tests/experiments/fashion.py --data /usr/share/datasets/fashion-mnist --output /tmp/fashion --jobs 2
    python tests/experiments/fashion.py --data fashion-mnist --output /tmp/fashion --device cuda --jobs 12 --minutes 9

Written before any model of it was trained (27 November 2026):

**Models.** A ViT of 6 layers, 2 heads, 64 channels on 8 × 8 patches of 32 × 32 pixels, trained once over the 60,000 training
images by `overfocus.train`: baseline, +TAP (4 branches), +ADL (λ = 1, τ = 2), +TAP+ADL. A seed sets the weights and the order
of the images; the four arms of a seed share the order.

**Outcome.** The error over the 15 common corruptions × 5 severities with CIFAR-C's constants, mean over 2,000 test images, the
first 200 of each class. **Primary comparison:** TAP+ADL against the baseline, 10 seeds, two-sided at the 5 % level by a t-test
of the differences within a seed; the interval is for other seeds and other images. It alone decides whether "TAP+ADL helps
here".

**Number of seeds.** In the experiment before this one (3 seeds, ImageNet-C's constants) the differences of TAP+ADL had a
standard deviation of 1.7 points between seeds. Ten seeds then find 1.7 points with a power of 0.8. `--pilot` trains baselines
alone and says what their spread would allow, before the arms are trained.

**Secondary,** read as descriptions: TAP and ADL alone; the clean error; each arm × corruption, Holm over these 45.

**If TAP+ADL does not help,** three hypotheses why, each with 5 seeds and a test of its own, TAP+ADL against the baseline:
 1. *The threshold leaves ADL without effect:* rows that agree less than τ times uniform attention are not pushed apart. τ = 1 in
    place of 2 (group "threshold 1", against the main baseline).
 2. *Too shallow:* overfocusing grows with depth, six layers have little to mend. 12 layers (group "12 layers").
 3. *Too short:* attention has not settled in one pass over the data. Three passes (group "3 epochs").
A fourth, *too little augmentation* as in FAN's recipe, is the group "augmentation"; it is run where time allows.

**Also reported:** of every comparison the difference that it could have detected with a power of 0.8; by `--attention N`, for
three seeds of each arm on N test images, how concentrated attention is, how much of its stability is left over the control
"another image", how well moved attention tells flipped predictions within strata, and whether predictions change more where
the most attended tenth of the patches is corrupted than random patches (`ablate --how corrupt`).

What is done is not done again: the same command goes on. Tables: OUTPUT/results.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from attention import measure
from common import ARMS, BASELINE, Job, is_done, predict, run_jobs, save_predictions, write_corrupted, write_tables
from PIL import Image

if TYPE_CHECKING:
    from overfocus.training.train import Training

MODEL = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 2}
RECIPE = {
    "epochs": 1,
    "batch_size": 32,
    "optimizer": "muon",  # gets as far as AdamW with a fraction of the images
    "learning_rate": 1e-2,
    "warmup_epochs": 0.1,
    "crop_scale": [1.0, 1.0],
    "crop_ratio": [1.0, 1.0],
    "precision": "float32",
}
"""Changes to the recipe `small`."""
SIDE = 32
MAIN = "6 layers"
BASELINES = {
    MAIN: MAIN,
    "threshold 1": MAIN,
    "12 layers": "12 layers",
    "3 epochs": "3 epochs",
    "augmentation": "augmentation",
}
"""By group, the group of the baseline that it is compared with."""


def list_jobs(groups: list[str], seeds: int) -> list[Job]:
    """The models of the groups, those of the main comparison first; `seeds` of these and half as many of the others."""
    few = range((seeds + 1) // 2)
    both = (BASELINE, "TAP+ADL")
    jobs = [Job(MAIN, arm, seed) for seed in range(seeds) for arm in ARMS]
    jobs += [Job("threshold 1", "TAP+ADL", seed, {"adl_threshold": 1.0}) for seed in few]
    jobs += [Job("12 layers", arm, seed, {}, {"depth": 12}) for seed in few for arm in both]
    jobs += [Job("3 epochs", arm, seed, {"epochs": 3}) for seed in few for arm in both]
    augmented = {"epochs": 3, "auto_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0, "erasing": 0.3}
    jobs += [Job("augmentation", arm, seed, augmented) for seed in few for arm in both]
    return [job for job in jobs if job.group in groups]


def train_one(job: Job, data: Path, output: Path, device: str, limit: int | None) -> "Training":
    """Train one model, or go on with it."""
    from overfocus.training.train import train

    return train(
        data,
        output / "trainings" / job.name,
        model="VisionTransformer",
        model_args=MODEL | job.model,
        tap=job.tap,
        changes=RECIPE | {"adl": job.adl} | job.recipe,
        seed=job.seed,
        limit=limit,
        device=device if device == "cpu" else None,
        workers=0,
        save_every=200,
        validate_every=None,
        trackers=[],
        progress=False,
    )


def run_one(job: Job, data: Path, output: Path, device: str, limit: int | None) -> None:
    """Train one model and show it the test images."""
    from overfocus import load_model

    if is_done(output, job):
        return
    began = time.monotonic()
    training = train_one(job, data, output, device, limit)
    seconds = time.monotonic() - began
    loaded = load_model(training.checkpoint)
    shape = loaded.preprocess
    if (shape.input_size, shape.interpolation, shape.crop_pct) != ((1, SIDE, SIDE), "bicubic", 1.0):
        raise ValueError(f"the test images were resized otherwise than {shape}")
    predictions = predict(loaded.model, output / "corrupted", shape.mean, shape.std, device)
    save_predictions(output, job, predictions, training_seconds=seconds)


def choose_images(data: Path, count: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` / 10 test images of each class, uint8 RGB (images, side, side, 3), and their classes."""
    from overfocus.datasets import open_images

    images = open_images(data, "validation")
    if images is None:
        raise SystemExit(f"{data}: no test images; expected t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz")
    chosen = np.sort(np.concatenate([(images.labels == label).nonzero()[0][: count // 10] for label in range(10)]))
    resized = [images.image(int(index)).convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for index in chosen]
    return np.stack([np.asarray(image) for image in resized]), images.labels[chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and compare baseline, TAP, ADL and TAP+ADL on Fashion-MNIST.")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="folder of the IDX files")
    parser.add_argument("--output", type=Path, required=True, help="folder for trainings, predictions and results")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="models at a time")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="processes that corrupt the test images")
    parser.add_argument("--minutes", type=float, help="begin no model after so many minutes")
    parser.add_argument("--groups", nargs="+", default=[MAIN, "threshold 1", "12 layers"], choices=BASELINES)
    parser.add_argument("--seeds", type=int, default=10, help="of the main comparison; half as many of the others")
    parser.add_argument("--pilot", action="store_true", help="the baselines of the main comparison alone")
    parser.add_argument("--images", type=int, default=2000, help="test images")
    parser.add_argument("--attention", type=int, metavar="N", help="measure the attention of trained models on N test images")
    parser.add_argument("--limit", type=int, help="train on so many images only, to try the script")
    options = parser.parse_args()
    jobs = list_jobs(options.groups, options.seeds)
    if options.pilot:
        jobs = [job for job in jobs if (job.group, job.arm) == (MAIN, BASELINE)]
    if options.attention:
        measured = [job for job in jobs if job.group == MAIN and job.seed < 3]
        shown = choose_images(options.data, options.attention)
        whole = measure(measured, options.output, *shown, options.device, options.jobs, options.minutes)
        sys.exit(0 if whole else 1)
    pixels, labels = choose_images(options.data, options.images)
    write_corrupted(options.output / "corrupted", pixels, constants="cifar-c", channels=1, processes=options.processes)
    todo = [job for job in jobs if not is_done(options.output, job)]
    whole = run_jobs(run_one, todo, options.jobs, options.minutes, options.data, options.output, options.device, options.limit)
    write_tables(options.output, jobs, BASELINES, labels)
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    main()
