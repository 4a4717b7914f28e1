"""Put the two bundled checkpoints in place: the baseline and TAP+ADL, trained on Fashion-MNIST three times with the same seed.

    nice python tests/scripts/bundle_models.py --output /tmp/fashion

They are two models of `tests/experiments/fashion.py --groups "3 epochs"`. Where it has trained them in the same folder they are
copied; otherwise they are trained here, some twelve minutes each on one core.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

from fashion import list_jobs, train_one

SAMPLES = Path(__file__).parents[2] / "overfocus" / "samples"
BUNDLED = {"baseline": "fashion_mnist_vit.safetensors", "TAP+ADL": "fashion_mnist_vit_tap_adl.safetensors"}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the bundled checkpoints, or take them from the experiment's folder.")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="folder of the IDX files")
    parser.add_argument("--output", type=Path, required=True, help="the experiment's folder")
    options = parser.parse_args()
    for job in list_jobs(["3 epochs"], seeds=1):
        checkpoint = train_one(job, options.data, options.output, device="cpu", limit=None).checkpoint
        shutil.copyfile(checkpoint, SAMPLES / BUNDLED[job.arm])
        print(f"{SAMPLES / BUNDLED[job.arm]}: {job.name}")
