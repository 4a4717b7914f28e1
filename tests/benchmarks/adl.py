"""Time and memory of a training step of ViT-S/224 with the attention diversification loss, ours and the textbook form.

    python tests/benchmarks/adl.py [--model NAME] [--batch-size N] [--rounds N] [--threads N]

The textbook form turns fused attention off, clones every layer's map and keeps it for the loss. Each round runs the three
steps one after the other; ratios are medians over the rounds. Memory is the peak above the built model, of one step in a
process of its own. Attention is sharpened first (query and key weights × 4), so that rows do exceed the threshold.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from side_by_side import CLOCKS, measure, median, median_ratio, peak_memory
from torch import Tensor, nn

from overfocus.losses import diversify

FORMS = ("without ADL", "ADL, ours", "ADL, textbook")


def main() -> None:
    """Print time and memory of the three steps, and the ratios to the step without ADL."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        small, large = (step(arguments.memory_of, arguments.model, size) for size in (1, arguments.batch_size))
        print(peak_memory(small, large))
        return

    check(arguments.model)
    times = measure({form: step(form, arguments.model, arguments.batch_size) for form in FORMS}, arguments.rounds, warm_up=1)
    print(
        f"Training step of {arguments.model}, batch {arguments.batch_size}, "
        f"{arguments.threads} threads, {arguments.rounds} rounds"
    )
    print(f"{'':14} {'wall, s':>8} {'processor, s':>13} {'memory, MB':>11} {'× wall':>7} {'× processor':>12} {'× memory':>9}")
    memory = {form: memory_of(form, arguments) for form in FORMS}
    for form in FORMS:
        seconds = [median(times, clock, form) / 1e3 for clock in CLOCKS]
        ratios = [median_ratio(times, clock, form, FORMS[0]) for clock in CLOCKS]
        print(
            f"{form:14} {seconds[0]:8.2f} {seconds[1]:13.2f} {memory[form]:11.0f} "
            f"{ratios[0]:7.2f} {ratios[1]:12.2f} {memory[form] / memory[FORMS[0]]:9.2f}"
        )


def memory_of(form: str, arguments: argparse.Namespace) -> float:
    """Peak memory of one step in its own process, in megabytes."""
    options = [f"--model={arguments.model}", f"--batch-size={arguments.batch_size}", f"--threads={arguments.threads}"]
    command = [sys.executable, __file__, "--memory-of", form, *options]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def build(name: str) -> nn.Module:
    """The model with attention that is not uniform, as a trained one has."""
    torch.manual_seed(0)
    model = timm.create_model(name).train()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[: 2 * block.attn.qkv.weight.shape[1]] *= 4
    return model


def step(form: str, name: str, batch_size: int) -> Callable[[], None]:
    """One training step without the optimiser."""
    model = build(name)
    loss = textbook_loss(model) if form == "ADL, textbook" else our_loss(model, weight=0.0 if form == "without ADL" else 1.0)
    images, labels = torch.randn(batch_size, 3, 224, 224), torch.randint(1000, (batch_size,))

    def run() -> None:
        model.zero_grad()
        loss(images, labels).backward()

    return run


def our_loss(model: nn.Module, weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy, and ADL where its weight is not 0."""

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        if weight == 0:
            return F.cross_entropy(model(images), labels)
        with diversify(model) as adl:
            return F.cross_entropy(model(images), labels) + weight * adl.loss()

    return loss


def textbook_loss(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy and ADL from maps that every layer makes and hands over as a clone."""
    maps: list[Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, __, weights: maps.append(weights[:, :, 1:, 1:].clone()))

    def diversification(weights: Tensor, threshold: float = 2.0) -> Tensor:
        mean_map = weights.mean(1)
        received = mean_map.mean(1)
        limit = threshold / mean_map.shape[-1]
        rows = torch.where(mean_map > limit, mean_map, 0.0)
        received = torch.where(received > limit, received, 0.0)
        return F.cosine_similarity(received.unsqueeze(1).expand_as(rows), rows, dim=-1).mean()

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        maps.clear()
        task = F.cross_entropy(model(images), labels)
        return task + torch.stack([diversification(weights) for weights in maps]).sum() / (len(maps) + 1e-6)

    return loss


def check(name: str) -> None:
    """Raise AssertionError unless both forms of the loss agree and it is not 0."""
    images, labels = torch.randn(2, 3, 224, 224), torch.randint(1000, (2,))
    with torch.no_grad():
        plain, ours, textbook = (
            loss(images, labels) for loss in (our_loss(build(name), 0.0), our_loss(build(name), 1.0), textbook_loss(build(name)))
        )
    torch.testing.assert_close(ours, textbook, atol=1e-4, rtol=0)
    assert ours - plain > 0.01


if __name__ == "__main__":
    main()
