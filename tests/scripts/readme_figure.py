"""Draws the image at the top of the README: a photograph under the attention of a real Vision Transformer.

    python tests/scripts/readme_figure.py dinov2_s14.pth

The checkpoint is a DINOv2 ViT-S/14 of your own (`dinov2_vits14_pretrain.pth`, or a file in timm's or transformers' layout); the
photograph is the bundled one of Eileen Collins (NASA, public domain).
"""

import argparse
import tempfile
from pathlib import Path

import overfocus
from overfocus.samples import sample_images

IMAGE = Path(__file__).parents[1] / "data" / "readme" / "overfocus.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--layer", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = overfocus.analyze(
            arguments.checkpoint,
            sample_images((3, 224, 224)) / "astronaut.jpg",
            ["gaussian_noise", "fog"],
            3,
            folder,
            image_size=224,
            progress=False,
        )
        run.show(layer=arguments.layer).savefig(IMAGE, dpi=110)
    print(f"wrote {IMAGE}")


if __name__ == "__main__":
    main()
