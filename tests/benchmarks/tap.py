"""Time token-aware average pooling against the textbook form (unfold each neighbourhood, average, weigh, add up).

    python tests/benchmarks/tap.py [--rounds N] [--threads N]

Every round runs both forms one after the other on the same tokens; the ratios are medians over the rounds. The whole step is
timed, predictor included, and the mixture alone. The last rows give what TAP adds to a block of FAN-S.
"""

import argparse
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from side_by_side import CLOCKS, measure, median, median_ratio
from torch import Tensor, nn

from overfocus.models import TokenAwareAveragePooling

SIZES = [(8, 384, (14, 14)), (8, 192, (28, 28)), (8, 96, (56, 56)), (1, 384, (64, 64)), (1, 96, (128, 128))]
BRANCHES = 4


def main() -> None:
    """Print times of both forms for grids of several sizes, and of FAN blocks with and without TAP."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"TAP, K = {BRANCHES}, {arguments.threads} threads, {arguments.rounds} rounds; milliseconds, and × faster")
    print(f"{'batch × channels, grid':26} {'what':26} {'textbook':>9} {'ours':>9} {'wall':>7} {'processor':>10}")
    for batch, channels, grid in SIZES:
        for train in (False, True):
            for what, forms in (("step", step(batch, channels, grid, train)), ("mixture", mixture(batch, channels, grid, train))):
                times = measure(forms, arguments.rounds)
                ratios = [median_ratio(times, clock, "textbook", "ours") for clock in CLOCKS]
                size = f"{batch} × {channels}, {grid[0]} × {grid[1]}"
                what += ", forward + backward" if train else ", forward"
                milliseconds = [median(times, "wall", form) for form in forms]
                print(f"{size:26} {what:26} {milliseconds[0]:9.2f} {milliseconds[1]:9.2f} {ratios[0]:7.1f} {ratios[1]:10.1f}")
    for train in (False, True):
        times = measure(fan_blocks(train), arguments.rounds)
        ratios = [median_ratio(times, clock, "with TAP", "without") for clock in CLOCKS]
        what = "forward + backward" if train else "forward"
        print(f"FAN-S block, batch 8, {what}: with TAP {ratios[0]:.3f} × wall, {ratios[1]:.3f} × processor of the block without")


def unfolded_mixture(tokens: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mixture as the paper writes it."""
    batch, count, channels = tokens.shape
    image = tokens.transpose(1, 2).reshape(batch, channels, *grid)
    branches = [image]
    for dilation in range(1, BRANCHES):
        neighbours = F.unfold(image, 3, dilation=dilation, padding=dilation)
        branches.append(neighbours.reshape(batch, channels, 9, *grid).mean(2))
    mixed = (torch.stack(branches, -1) * weights.reshape(batch, 1, *grid, BRANCHES)).sum(-1)
    return mixed.reshape(batch, channels, count).transpose(1, 2)


def convolved_weights(tokens: Tensor, proj: nn.Module, grid: tuple[int, int]) -> Tensor:
    """The predictor as the paper writes it."""
    logits = proj(tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid))
    return logits.permute(0, 2, 3, 1).softmax(dim=-1)


def step(batch: int, channels: int, grid: tuple[int, int], train: bool) -> dict[str, Callable[[], None]]:
    """Both forms of predictor and mixture."""
    module = TokenAwareAveragePooling(channels, BRANCHES).train(train)
    tokens = torch.randn(batch, grid[0] * grid[1], channels, requires_grad=train)
    forms = {
        "textbook": lambda: unfolded_mixture(tokens, convolved_weights(tokens, module.predictor.proj, grid), grid),
        "ours": lambda: module(tokens, grid),
    }
    return runs(forms, [tokens, *module.parameters()], train)


def mixture(batch: int, channels: int, grid: tuple[int, int], train: bool) -> dict[str, Callable[[], None]]:
    """Both forms of the mixture with given weights."""
    pool = TokenAwareAveragePooling(channels, BRANCHES).pool
    tokens = torch.randn(batch, grid[0] * grid[1], channels, requires_grad=train)
    weights = torch.rand(batch, grid[0] * grid[1], BRANCHES).softmax(-1).requires_grad_(train)
    forms = {"textbook": lambda: unfolded_mixture(tokens, weights, grid), "ours": lambda: pool(tokens, weights, grid)}
    return runs(forms, [tokens, weights], train)


def fan_blocks(train: bool) -> dict[str, Callable[[], None]]:
    """A token block of FAN-S with and without TAP."""
    blocks = {
        "with TAP": timm.create_model("tap_fan_small_12_p16_224", num_scales=BRANCHES).blocks[0].train(train),
        "without": timm.create_model("fan_small_12_p16_224").blocks[0].train(train),
    }
    tokens = torch.randn(8, 196, 384, requires_grad=train)
    inputs = [tokens, *(parameter for block in blocks.values() for parameter in block.parameters())]
    return runs({name: lambda block=block: block(tokens, (14, 14)) for name, block in blocks.items()}, inputs, train)


def runs(forms: dict[str, Callable[[], Tensor]], inputs: list[Tensor], train: bool) -> dict[str, Callable[[], None]]:
    """What to time: forward without gradients, or forward and backward. Checks first that TAP's two forms agree."""
    if set(forms) == {"textbook", "ours"}:
        torch.testing.assert_close(forms["textbook"](), forms["ours"](), atol=1e-5, rtol=1e-4)
    upstream = torch.randn_like(next(iter(forms.values()))())

    def run(form: Callable[[], Tensor]) -> None:
        if train:
            torch.autograd.grad(form(), inputs, upstream, allow_unused=True)
        else:
            with torch.inference_mode():
                form()

    return {name: lambda form=form: run(form) for name, form in forms.items()}


if __name__ == "__main__":
    main()
