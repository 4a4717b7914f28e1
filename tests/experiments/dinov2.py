"""Does a pretrained DINOv2 ViT-S/14 overfocus, so that TAP and ADL could help it?

    python tests/experiments/dinov2.py --checkpoint dinov2_s14.pth --output /tmp/dinov2

The rule "does it overfocus?" (`overfocus.statistics.overfocusing`) is applied to two runs: 40 test images of Fashion-MNIST as
RGB, the first four of each class, at 112 × 112 pixels, where the network would be fine-tuned; and six of scikit-image's
photographs at the network's own 518 × 518. Unless it overfocuses strongly on Fashion-MNIST nothing is trained: with most patches
in use TAP and ADL have little to correct. The rule and this decision were fixed before anything was measured; the script was
written after a first look at the run on Fashion-MNIST.

If it does overfocus: 10,000 training images, the first eight blocks frozen, the last four trained, `add_tap(init="identity")`.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import skimage
from attention import write_images
from fashion import choose_images
from PIL import Image

from overfocus import analyze
from overfocus.statistics.verdicts import judge_overfocusing
from overfocus.variants import CLEAN

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "retina.jpg", "rocket.jpg")
SIDES = {"fashion": 112, "photographs": 518}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure whether a DINOv2 ViT-S/14 overfocuses.")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="folder of the IDX files")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    write_images(options.output / "images" / "fashion", *choose_images(options.data, 40, SIDES["fashion"]))
    photographs = [Path(skimage.__file__).parent / "data" / name for name in PHOTOGRAPHS]
    for number, path in enumerate(photographs):
        write_images(options.output / "images" / "photographs", [np.asarray(Image.open(path).convert("RGB"))], [number])
    tables = []
    for name, side in SIDES.items():
        run = analyze(
            options.checkpoint,
            options.output / "images" / name,
            "gaussian_noise",
            3,
            options.output / "runs" / name,
            model="vit_small_patch14_dinov2",
            image_size=side,
            batch_size=4,
            workers=0,
            displayed=0,
            device=options.device,
        )
        found = judge_overfocusing(run)
        print(f"{name} at {side} pixels: {found.answer} {dataclasses.asdict(found.effective)}")
        clean = run.table[run.table["corruption"] == CLEAN]
        means = clean.groupby("layer", as_index=False)[["top_share", "effective_tokens", "gini"]].mean()
        uniform = [layer.uniform_share for layer in run.description.layers]
        tables.append(
            means.assign(images=name, pixels=side, uniform_share=uniform, in_the_rule=means["layer"].isin(found.layers))
        )
    (options.output / "results").mkdir(exist_ok=True)
    pd.concat(tables).to_csv(options.output / "results" / "layers.csv", index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
