"""What the rule of `overfocus.statistics.verdicts` says of networks that were not used to set it.

    python tests/scripts/overfocusing_rule.py [CHECKPOINT]... [--images N] [--sizes N N] [--given-only]

Prints a row per network: the answer, the effective tokens of the most concentrated third of its layers with their interval, and
these layers. Networks: timm architectures of several families with random weights, the two bundled checkpoints, and any
checkpoints given, at each of --sizes. An untrained network should read "no" and nearly uniform. Images are the bundled ones.
"""

import argparse
import tempfile
from pathlib import Path

import timm
import torch

import overfocus
from overfocus.samples import sample_checkpoints
from overfocus.statistics.verdicts import judge_overfocusing

UNTRAINED = (
    "deit_tiny_patch16_224", "vit_small_patch32_224", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "pvt_v2_b0",
    "eva02_tiny_patch14_224", "mvitv2_tiny", "maxvit_nano_rw_256", "beit_base_patch16_224", "cait_xxs24_224",
)  # fmt: skip


def main() -> None:
    """Measure every network on the first images and print what the rule says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--sizes", type=int, nargs="*", default=[])
    parser.add_argument("--given-only", action="store_true", help="only the checkpoints given")
    arguments = parser.parse_args()
    print("| network | overfocuses | effective tokens (95 % interval) | layers |\n|---|---|---|---|", flush=True)
    for name in () if arguments.given_only else UNTRAINED:
        torch.manual_seed(0)
        with torch.no_grad():
            report(f"{name}, untrained", overfocus.wrap(timm.create_model(name), name=name), arguments.images)
    for path in () if arguments.given_only else sample_checkpoints():
        report(path.stem, path, arguments.images)
    for checkpoint in arguments.checkpoints:
        for size in arguments.sizes or [None]:
            path = Path(checkpoint)
            name = path.stem if path.stem != "model" else path.parent.name
            report(f"{name}, {size} pixels" if size else name, checkpoint, arguments.images, image_size=size)


def report(name: str, model: object, images: int, **options: object) -> None:
    """Print one line."""
    with tempfile.TemporaryDirectory() as folder:
        run = overfocus.analyze(
            model, corruptions=[], output=Path(folder) / "run", limit=images, displayed=0, progress=False, workers=0,
            **options,
        )  # fmt: skip
        judged = judge_overfocusing(run)
    answer = f"{judged.answer}, nearly uniform" if judged.nearly_uniform else judged.answer
    effective = judged.effective
    numbers = f"{effective.mean:.3f} ({effective.low:.3f} … {effective.high:.3f})"
    print(f"| {name} | {answer} | {numbers} | {', '.join(map(str, judged.layers))} |", flush=True)


if __name__ == "__main__":
    main()
