"""Put the two bundled checkpoints in place: the baseline and TAP+ADL, trained on Fashion-MNIST three times with the same seed.

    nice python tests/scripts/bundle_models.py --work /tmp/experiment

They are models of the experiment. Where `experiment.py --sweep` has trained them in the same folder they are copied; otherwise
they are trained here, some twelve minutes each on one core.
"""

import argparse
import shutil
from pathlib import Path

from experiment import SEEDS, SWEEP, train_one

SAMPLES = Path(__file__).parents[2] / "overfocus" / "samples"
BUNDLED = {
    "fashion_mnist_vit.safetensors": "baseline, 3 epochs",
    "fashion_mnist_vit_tap_adl.safetensors": "TAP+ADL, 3 epochs",
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the bundled checkpoints, or take them from the experiment's folder.")
    parser.add_argument("--work", type=Path, required=True, help="the experiment's folder")
    options = parser.parse_args()
    for file, name in BUNDLED.items():
        shutil.copyfile(train_one(options.work, name, SWEEP[name], SEEDS[0]).checkpoint, SAMPLES / file)
        print(f"{SAMPLES / file}: {name}, seed {SEEDS[0]}")
