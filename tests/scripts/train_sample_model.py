"""Train a bundled checkpoint: a small VisionTransformer on Fashion-MNIST's 60,000 training images.

    nice python tests/scripts/train_sample_model.py --output overfocus/samples/fashion_mnist_vit.safetensors
    nice python tests/scripts/train_sample_model.py --tap 4 --adl 1 --output overfocus/samples/fashion_mnist_tap_adl.safetensors

Nine epochs; at some 200 images a second on two cores about three quarters of an hour each. The same line continues an
interrupted training, whose folder is the output's name without its ending. Prints the accuracy on the 10,000 test images.
"""

import argparse
import shutil
from pathlib import Path

from fashion_mnist_files import FOLDER

from overfocus.training.train import train

MODEL = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a bundled Fashion-MNIST checkpoint.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--tap", type=int, help="branches of token-aware average pooling")
    parser.add_argument("--adl", type=float, default=0.0, help="weight of the attention diversification loss")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    training = train(
        FOLDER,
        options.output.with_suffix(""),
        model="VisionTransformer",
        model_args=MODEL,
        tap=options.tap,
        changes={"epochs": options.epochs, "adl": options.adl, "crop_scale": [0.8, 1.0]},
        seed=options.seed,
        workers=0,
        save_every=100,
        trackers=[],
        progress=True,
    )
    shutil.copyfile(training.checkpoint, options.output)
    print(f"{options.output}: test {training.log['validation_accuracy'].iloc[-1]:.4f}")


if __name__ == "__main__":
    main()
