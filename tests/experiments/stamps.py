"""Do TAP and ADL help a small FAN on colour images whose objects it never saw, under CIFAR-C's corruptions?

    apt install tuxpaint-stamps-default
    python tests/experiments/stamps.py --stamps /usr/share/tuxpaint/stamps --output /tmp/stamps --jobs 2
    python tests/experiments/stamps.py --stamps stamps --output /tmp/stamps --device cuda --jobs 12 --minutes 9

Written before any model of it was trained (27 November 2026):

**Images.** 48 × 48 pixels in colour: one photographed cut-out of Debian's `tuxpaint-stamps-default` on a part of one of scikit-
image's photographs; the class is the cut-out's kind, of seven. Every fourth cut-out of a kind and the right third of each
photograph are kept for the test, so that no pixel is in both parts. 5,000 training images; in the test each held-out cut-out
occurs 4 times.

**Models.** FAN's blocks as the paper uses them (token attention with TAP in front, then channel processing) at stride 6: 64
tokens, 3 token blocks and 2 class attention blocks of width 48, 4 heads. Baseline, +TAP (4 branches), +ADL (λ = 1, τ = 2),
+TAP+ADL, trained by `overfocus.train` for 2 passes: small enough that 20 models fit into about an hour of one core.

**Outcome.** The error over the 15 common corruptions × 5 severities with CIFAR-C's constants (the set for sides up to 48), mean
over the test images. **Primary comparison:** TAP+ADL against the baseline, 5 seeds, two-sided at the 5 % level by a t-test of
the differences within a seed. The interval is for other seeds and other cut-outs, since images of the same cut-out are alike.
TAP and ADL alone, the clean error, and each arm × corruption (Holm over the 45) are secondary.

**Pilot** (`--pilot`, at commit f7eb510): the baseline of seed 0 has an error of 50.0 % on clean and 57.8 % on corrupted images,
where chance has 86 %: it has learned, and neither cell is at an end of the scale. Nothing was changed after it.

**What it can see.** With differences that deviate by 2 points between seeds, five seeds find 3.4 points with a power of 0.8;
the table says what it was. It is the smaller of the two experiments and is not put together with the other.

**Also reported** (`--attention`): for three seeds of each arm on one test image of each cut-out, what fashion.py reports.

The cut-outs are GPL; nothing of them is part of this project. Seeded: the same images each time. What is done is not done again.
"""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import skimage
from attention import measure
from common import ARMS, Job, is_done, predict, run_jobs, save_predictions, write_corrupted, write_tables
from PIL import Image
from torch import Tensor, nn

from overfocus.files import atomic_file
from overfocus.models.fan import Fan
from overfocus.models.layers import TAP_BRANCHES, pretrained_config, register_architecture

KINDS = {
    "bird": ("animals/birds",),
    "fish": ("animals/fish",),
    "mammal": ("animals/mammals", "animals/marsupials"),
    "flower": ("plants/flowers",),
    "fruit": ("food/fruit",),
    "vegetable": ("food/vegetables",),
    "vehicle": ("vehicles",),
}
"""Folders of cut-outs by kind."""
LEFT_OUT = ("cartoon", "toys", "plastic")
"""Folders of drawings and toys."""
PHOTOGRAPHS = (
    "astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg", "ihc.png",
    "hubble_deep_field.jpg", "camera.png", "coins.png", "moon.png", "brick.png", "grass.png", "gravel.png",
)  # fmt: skip
TRAINED = 2 / 3
"""The left part of each photograph is for training, the rest for the test."""
SIDE = 48
TRAINING_IMAGES, EACH = 5000, 4
"""EACH: test images of one cut-out."""
RECIPE = {
    "epochs": 2,
    "batch_size": 32,
    "optimizer": "muon",
    "learning_rate": 1e-2,
    "warmup_epochs": 0.2,
    "precision": "float32",
}
"""Changes to the recipe `small`."""
MODEL, WIDTH = "fan_stamps", 48


class Stem(nn.Module):
    """Convolutions of stride 2 and 3: (batch, 3, height, width) → tokens (batch, height · width / 36, channels), grid."""

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, channels // 2, 3, 2, 1, bias=False),
            nn.BatchNorm2d(channels // 2),
            nn.GELU(),
            nn.Conv2d(channels // 2, channels, 3, 3, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        maps = self.proj(images)
        return maps.flatten(2).transpose(1, 2), (maps.shape[2], maps.shape[3])


class SmallFan(Fan):
    """FAN at stride 6: 64 tokens of 48 × 48 pixels."""

    def __init__(self, num_scales: int | None = None, in_chans: int = 3, **arguments: object) -> None:
        super().__init__((WIDTH,), (3,), (4,), num_scales=num_scales, in_chans=in_chans, **arguments)
        self.patch_embed = Stem(in_chans, WIDTH)


_CONFIG = pretrained_config(crop_pct=1.0, first_conv="patch_embed.proj.0", input_size=(3, SIDE, SIDE))
register_architecture(__name__, MODEL, SmallFan, _CONFIG)
register_architecture(__name__, f"tap_{MODEL}", partial(SmallFan, num_scales=TAP_BRANCHES), _CONFIG)


def cut_outs(folder: Path, *, test: bool) -> list[tuple[int, Image.Image]]:
    """Class and image of each cut-out of a part, in colour with its alpha, as large as it can become."""
    found = []
    for label, folders in enumerate(KINDS.values()):
        paths = sorted(path for inside in folders for path in (folder / inside).rglob("*.png"))
        paths = [path for path in paths if not set(path.parts) & set(LEFT_OUT)]
        own = [path for number, path in enumerate(paths) if (number % 4 == 1) == test]
        if not own:
            raise SystemExit(f"{folder}: no {[*KINDS][label]}; expected the stamps of tuxpaint-stamps-default, as {folders[0]}")
        for path in own:
            stamp = Image.open(path).convert("RGBA")
            stamp = stamp.crop(stamp.getchannel("A").point(lambda alpha: 255 if alpha > 127 else 0).getbbox())
            stamp.thumbnail((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS)
            found.append((label, stamp))
    return found


def photographs(*, test: bool) -> list[Image.Image]:
    """The photographs' parts for training or test."""
    parts = []
    for name in PHOTOGRAPHS:
        whole = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
        edge = round(TRAINED * whole.width)
        parts.append(whole.crop((edge, 0, whole.width, whole.height) if test else (0, 0, edge, whole.height)))
    return parts


def compose(random: np.random.Generator, stamp: Image.Image, photograph: Image.Image) -> np.ndarray:
    """A cut-out, turned and scaled, somewhere on a part of a photograph; uint8 (48, 48, 3)."""
    side = int(random.uniform(0.3, 1.0) * min(photograph.size))
    left, top = (int(random.integers(length - side + 1)) for length in photograph.size)
    image = photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    if random.random() < 0.5:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    stamp = stamp.rotate(float(random.uniform(-25, 25)), Image.Resampling.BICUBIC, expand=True)
    scale = random.uniform(0.6, 0.95) * SIDE / max(stamp.size)
    stamp = stamp.resize((max(4, round(stamp.width * scale)), max(4, round(stamp.height * scale))), Image.Resampling.LANCZOS)
    place = tuple(int(random.integers(-size // 8, SIDE - size + size // 8 + 1)) for size in stamp.size)
    image.paste(stamp.convert("RGB"), place, stamp.getchannel("A"))
    return np.asarray(image)


def write_images(stamps: Path, data: Path, count: int) -> None:
    """Training and test images as IDX files, and the cut-out of each test image as units.npy."""
    if (data / "units.npy").is_file():
        return
    data.mkdir(parents=True, exist_ok=True)
    for part, prefix in enumerate(("train", "t10k")):
        objects, backgrounds = cut_outs(stamps, test=part == 1), photographs(test=part == 1)
        by_class = [[number for number, (label, _) in enumerate(objects) if label == kind] for kind in range(len(KINDS))]
        if part == 0:  # as many images of each class
            random = np.random.default_rng(0)
            chosen = [int(random.choice(by_class[number % len(KINDS)])) for number in range(count)]
        else:
            chosen = [number for number in range(len(objects)) for _ in range(EACH)]
        images = []
        for place, number in enumerate(chosen):
            random = np.random.default_rng([part, place])
            images.append(compose(random, objects[number][1], backgrounds[random.integers(len(backgrounds))]))
        write_idx(data / f"{prefix}-images-idx3-ubyte", np.stack(images))
        write_idx(data / f"{prefix}-labels-idx1-ubyte", np.array([objects[number][0] for number in chosen], np.uint8))
    with atomic_file(data / "units.npy") as file:
        np.save(file, np.array(chosen))


def write_idx(path: Path, values: np.ndarray) -> None:
    """An IDX file of bytes."""
    with atomic_file(path) as file:
        file.write(bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes())


def run_one(job: Job, output: Path, device: str, limit: int | None) -> None:
    """Train one model, or go on with it, and show it the test images."""
    from overfocus import load_model
    from overfocus.training.train import train

    if is_done(output, job):
        return
    began = time.monotonic()
    training = train(
        output / "data",
        output / "trainings" / job.name,
        model=f"tap_{MODEL}" if job.tap else MODEL,
        tap=job.tap,
        image_size=SIDE,
        class_names=[*KINDS],
        changes=RECIPE | {"adl": job.adl} | job.recipe,
        seed=job.seed,
        limit=limit,
        device=device if device == "cpu" else None,
        workers=0,
        save_every=100,
        validate_every=None,
        trackers=[],
        progress=False,
    )
    seconds = time.monotonic() - began
    loaded = load_model(training.checkpoint)
    shape = loaded.preprocess
    if (shape.input_size, shape.crop_pct) != ((3, SIDE, SIDE), 1.0):
        raise ValueError(f"the test images are not of the size of {shape}")
    predictions = predict(loaded.model, output / "corrupted", shape.mean, shape.std, device)
    save_predictions(output, job, predictions, training_seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and compare small FANs with and without TAP and ADL on composed images.")
    parser.add_argument("--stamps", type=Path, default=Path("/usr/share/tuxpaint/stamps"), help="folder of the cut-outs")
    parser.add_argument("--output", type=Path, required=True, help="folder for images, trainings, predictions and results")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="models at a time")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="processes that corrupt the test images")
    parser.add_argument("--minutes", type=float, help="begin no model after so many minutes")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pilot", action="store_true", help="the baseline of the first seed alone")
    parser.add_argument("--attention", action="store_true", help="measure the attention of trained models, one image a cut-out")
    parser.add_argument("--limit", type=int, help="train on so many images only, to try the script")
    options = parser.parse_args()
    jobs = [Job("stamps", arm, seed) for seed in range(options.seeds) for arm in ARMS][: 1 if options.pilot else None]
    data = options.output / "data"
    write_images(options.stamps, data, TRAINING_IMAGES)
    from overfocus.datasets import open_images

    images = open_images(data, "validation")
    assert images is not None
    units = np.load(data / "units.npy")
    if options.attention:
        measured = [job for job in jobs if job.seed < 3]
        first = np.unique(units, return_index=True)[1]
        shown = (images.pixels[first], images.labels[first])
        whole = measure(measured, options.output, *shown, options.device, options.jobs, options.minutes)
        sys.exit(0 if whole else 1)
    write_corrupted(options.output / "corrupted", images.pixels, constants="cifar-c", channels=3, processes=options.processes)
    todo = [job for job in jobs if not is_done(options.output, job)]
    whole = run_jobs(run_one, todo, options.jobs, options.minutes, options.output, options.device, options.limit)
    write_tables(options.output, jobs, {"stamps": "stamps"}, images.labels, units)
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    main()
