"""Time of `measure` beside its metrics called one after the other, and beside the softmax that any of them needs.

    python tests/benchmarks/metrics.py                # a minute on two cores
    python tests/benchmarks/metrics.py --rounds 41    # more rounds for steadier medians
    python tests/benchmarks/metrics.py --threads 1    # for processor times that other programs hardly disturb

Three ways, on the queries and keys of one layer: the weights alone (softmax of the product of queries and keys); `measure`, which
computes them image by image and shares the sums; the functions of `METRICS` (and `STABILITY`) on the whole weights. A round runs
all three; given are median milliseconds and the median over the rounds of the ratios.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from side_by_side import CLOCKS, median, median_ratio
from side_by_side import measure as time_forms
from torch import Tensor

from overfocus.attention import AttentionMap
from overfocus.capturing.sources import ArrangedWeights, Arrangement, QueryKeyWeights
from overfocus.metrics import METRICS, STABILITY, measure


@dataclass(frozen=True)
class Layer:
    """Size of the attention of one layer."""

    batch: int
    heads: int
    grid: tuple[int, int]
    prefix_tokens: int = 1
    windows: int = 1


LAYERS = {
    "ViT-Ti/16, batch 16": Layer(16, 3, (14, 14)),
    "ViT-B/16, batch 4": Layer(4, 12, (14, 14)),
    "Swin-T stage 1, batch 4": Layer(4, 3, (7, 7), prefix_tokens=0, windows=64),
    "ViT-S/16 at 512, batch 1": Layer(1, 6, (32, 32)),
}


def build_map(layer: Layer) -> AttentionMap:
    """A map as capture hands it over, of random queries and keys."""
    tokens = layer.grid[0] * layer.grid[1] + layer.prefix_tokens
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(layer.batch * layer.windows, tokens, 3, layer.heads, 64, generator=generator)
    query, key, _ = projected.permute(2, 0, 3, 1, 4)
    arrangement = Arrangement((("image", "window"), ("head",)), ((-1, layer.windows), (layer.heads,)))
    return AttentionMap(
        module="layer",
        kind="global" if layer.windows == 1 else "window",
        source=ArrangedWeights(QueryKeyWeights(query, key), arrangement),
        windows=layer.windows,
        prefix_tokens=layer.prefix_tokens,
        key_prefix_tokens=layer.prefix_tokens,
        grid=layer.grid,
        key_grid=layer.grid,
    )


def one_by_one(attention: AttentionMap, reference: Tensor | None) -> dict[str, Tensor]:
    """Every metric by its own function, on the weights of the whole map."""
    weights = attention.rows(0, attention.shape[2])
    values = {}
    for name, function in METRICS.items():
        grid = {"grid": attention.grid} if name == "attention_distance" else {}
        values[name] = function(weights, prefix_tokens=attention.prefix_tokens, **grid)
    if reference is not None:
        clean = weights.unflatten(0, (-1, attention.windows))[reference].flatten(0, 1)
        for name, function in STABILITY.items():
            values[name] = function(clean, weights, prefix_tokens=attention.prefix_tokens)
    return values


def compare(title: str, attention: AttentionMap, reference: Tensor | None, rounds: int) -> None:
    """Print one line per clock."""
    forms: dict[str, Callable[[], object]] = {
        "weights": lambda: attention.rows(0, attention.shape[2]),
        "measure": lambda: measure(attention, reference=reference),
        "one by one": lambda: one_by_one(attention, reference),
    }
    with torch.inference_mode():
        times = time_forms(forms, rounds)
    for clock in CLOCKS:
        milliseconds = "".join(f"{median(times, clock, form):>12.2f}" for form in forms)
        ratios = "".join(f"{median_ratio(times, clock, 'measure', form):>12.2f}" for form in ("weights", "one by one"))
        print(f"{title:<46}{clock:<12}{milliseconds}{ratios}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time measure() beside the same metrics one by one.")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    columns = ("weights", "measure", "one by one", "÷ weights", "÷ one by one")
    print(f"{'milliseconds, median':<46}{'clock':<12}" + "".join(f"{column:>12}" for column in columns))
    for name, layer in LAYERS.items():
        attention = build_map(layer)
        compare(name, attention, None, arguments.rounds)
        if layer.batch > 1:
            reference = torch.arange(layer.batch) // 4 * 4  # each fourth image is the clean one of the next three
            compare(f"{name}, with stability", attention, reference, arguments.rounds)


if __name__ == "__main__":
    main()
