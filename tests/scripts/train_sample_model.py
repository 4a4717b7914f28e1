"""Train the bundled checkpoint: a small VisionTransformer on Fashion-MNIST.

    nice python tests/scripts/train_sample_model.py --output overfocus/samples/fashion_mnist_vit.safetensors

Takes half an hour on one free core. Half of the patches are dropped in the first epochs, which halves their cost; the last ones
see whole images. Prints the test accuracy after each epoch, and at the end that of the saved file.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from fashion_mnist_files import CLASS_NAMES, fashion_mnist
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from overfocus import load_model
from overfocus.checkpoints.save import save_checkpoint
from overfocus.preprocessing import Preprocess

SIZE = 32
MEAN, STD = 0.2878, 0.3459  # of the training images at 32×32
PREPROCESS = Preprocess((1, SIZE, SIZE), (MEAN,), (STD,), interpolation="bicubic", crop_pct=1.0)
MODEL_ARGUMENTS = {
    "img_size": SIZE,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 96,
    "depth": 6,
    "num_heads": 3,
    "num_classes": 10,
}


def resized(images: np.ndarray) -> Tensor:
    """Images (n, 28, 28) uint8 as (n, 1, 32, 32) uint8, as the saved model's preprocessing does it."""
    return torch.from_numpy(np.stack([PREPROCESS.resize(Image.fromarray(image))[..., 0] for image in images])).unsqueeze(1)


def normalized(images: Tensor) -> Tensor:
    """Images uint8 → float32 with mean 0 and standard deviation 1 over the training set."""
    return (images.float() / 255 - MEAN) / STD


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to two pixels and mirrored every other time."""
    batch = len(images)
    padded = F.pad(images, (2, 2, 2, 2))
    rows = torch.randint(5, (batch, 1, 1), generator=generator) + torch.arange(SIZE).view(1, SIZE, 1)
    columns = torch.randint(5, (batch, 1, 1), generator=generator) + torch.arange(SIZE).view(1, 1, SIZE)
    mirrored = torch.rand((batch, 1, 1), generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(2), columns)
    return padded[torch.arange(batch).view(batch, 1, 1), 0, rows, columns].unsqueeze(1)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose highest logit is their label."""
    model.eval()
    right = [
        (model(normalized(part)).argmax(1) == target).sum()
        for part, target in zip(images.split(500), labels.split(500), strict=True)
    ]
    return sum(int(count) for count in right) / len(labels)


def train(model: nn.Module, images: Tensor, labels: Tensor, test: tuple[Tensor, Tensor], options: argparse.Namespace) -> float:
    """AdamW on one cosine cycle with label smoothing; returns the last test accuracy."""
    generator = torch.Generator().manual_seed(options.seed)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], fused=True
    )
    steps = len(images) // options.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=steps * options.epochs, pct_start=0.1, cycle_momentum=False
    )
    last = 0.0
    for epoch in range(options.epochs):
        started = time.perf_counter()
        model.train()
        model.patch_drop.prob = 0.5 if epoch < options.dropped_epochs else 0.0
        total = 0.0
        for chosen in torch.randperm(len(images), generator=generator)[: steps * options.batch_size].split(options.batch_size):
            logits = model(normalized(augmented(images[chosen], generator)))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        last = accuracy(model, *test)
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}/{options.epochs}  loss {total / steps:.4f}  test {last:.4f}  {seconds:.0f} s", flush=True)
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled Fashion-MNIST checkpoint.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--dropped-epochs", type=int, default=6, help="first epochs with half of the patches dropped")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    images, labels = fashion_mnist("train")
    test_images, test_labels = fashion_mnist("test")
    train_images = resized(images)
    print(f"mean {train_images.float().mean() / 255:.4f}, standard deviation {train_images.float().std() / 255:.4f}", flush=True)
    test = resized(test_images), torch.from_numpy(test_labels.astype(np.int64))
    # a rate above 0 makes timm build the module whose probability is set in each epoch
    model = VisionTransformer(**MODEL_ARGUMENTS, patch_drop_rate=0.5)
    reached = train(model, train_images, torch.from_numpy(labels.astype(np.int64)), test, options)
    save_checkpoint(
        model,
        options.output,
        architecture="VisionTransformer",
        model_args=MODEL_ARGUMENTS,
        class_names=CLASS_NAMES,
        preprocess=PREPROCESS,
        extra={"data": "Fashion-MNIST, 60,000 training images", "test_accuracy": f"{reached:.4f}"},
    )
    print(f"{options.output}: test {accuracy(load_model(options.output).model, *test):.4f}")


if __name__ == "__main__":
    main()
