"""Independent references in numpy and scipy, straight from the formulas, and maps made from weights that are given."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.spatial.distance import cdist, jensenshannon

from overfocus.attention import AttentionMap

NEGLIGIBLE = 1e-12
"""Rows with less attention than this on patch tokens count as rows without, columns with less than this share of 1/N as empty."""


@dataclass
class GivenWeights:
    """Weights that stand in for what a model would compute; counts how often rows were asked for."""

    weights: torch.Tensor
    windows: int = 1
    asked: int = 0

    @property
    def shape(self):
        return tuple(self.weights.shape)

    @property
    def images_first(self):
        return True

    def check_unchanged(self, module):
        """Nothing overwrites them."""

    @property
    def device(self):
        return self.weights.device

    def rows(self, start, stop, images=None):
        self.asked += 1
        weights = self.weights if images is None else self.weights[images.start * self.windows : images.stop * self.windows]
        return weights[:, :, start:stop]


@pytest.fixture
def make_map() -> Callable[..., AttentionMap]:
    def make(weights, kind="global", windows=1, **fields):
        if kind == "global" and "prefix_tokens" in fields:
            fields.setdefault("key_prefix_tokens", fields["prefix_tokens"])
        return AttentionMap("blocks.0.attn", kind, GivenWeights(weights, windows), windows=windows, **fields)

    return make


class Reference:
    """The formulas of the specification on one head-averaged map (queries, keys), in float64, with explicit loops."""

    def __init__(self, attention, prefix=0, key_prefix=None, fraction=0.05, grid=None, key_grid=None):
        self.whole = np.asarray(attention, dtype=np.float64)
        self.key_prefix = prefix if key_prefix is None else key_prefix
        self.patches = self.whole[prefix:, self.key_prefix :]
        self.patches = np.where(self.patches.sum(1, keepdims=True) > NEGLIGIBLE, self.patches, 0)
        self.prefix = prefix
        self.rows, self.columns = self.patches.shape
        self.fraction = fraction
        self.grid, self.key_grid = grid, key_grid or grid
        total = self.patches.sum()
        self.received = self.patches.sum(0) / total if total > 0 else np.full(self.columns, np.nan)
        self.count = max(1, round(fraction * self.columns))

    def top(self):
        return sorted(range(self.columns), key=lambda j: (-comparable(self.received)[j], j))[: self.count]  # lower index first

    def top_share(self):
        return float(np.sort(self.received)[::-1][: self.count].sum())

    def max_ratio(self):
        return float(self.columns * self.received.max())

    def gini(self):
        return float(np.abs(self.received[:, None] - self.received[None, :]).sum() / (2 * self.columns))

    def effective_tokens(self):
        return float(np.exp(scipy.stats.entropy(self.received)) / self.columns)

    def row_entropy(self):
        rows = [row for row in self.patches if row.sum() > 0]
        if self.columns == 1 or not rows:
            return math.nan
        return float(np.mean([scipy.stats.entropy(row) for row in rows]) / np.log(self.columns))

    def prefix_share(self):
        return float(self.whole[self.prefix :, : self.key_prefix].sum(1).mean())

    def token_cosine(self):
        if self.rows == 1:
            return math.nan
        pairs = [cosine(self.patches[i], self.patches[j]) for i in range(self.rows) for j in range(self.rows) if i != j]
        return float(np.mean(pairs))

    def diversification(self):
        mean = self.patches.mean(0)
        threshold = 2 / self.columns * (1 + 1e-7)
        kept = np.where(mean > threshold, mean, 0)
        return float(np.mean([cosine(kept, np.where(row > threshold, row, 0)) for row in self.patches]))

    def attention_distance(self):
        between = cdist(positions(self.grid, self.grid), positions(self.key_grid, self.grid))
        means = [(row / row.sum() * between[i]).sum() for i, row in enumerate(self.patches) if row.sum() > 0]
        return float(np.mean(means)) if means else math.nan

    def top_overlap(self, other):
        if np.isnan(self.received).any() or np.isnan(other.received).any():
            return math.nan
        return len(set(self.top()) & set(other.top())) / self.count

    def rank_correlation(self, other):
        first, second = comparable(self.received), comparable(other.received)
        if np.isnan(first).any() or np.isnan(second).any() or np.ptp(first) == 0 or np.ptp(second) == 0:
            return math.nan
        return float(scipy.stats.spearmanr(first, second).statistic)

    def attention_cosine(self, other):
        return float(np.mean([cosine(a, b) for a, b in zip(self.patches, other.patches, strict=True)]))

    def js_divergence(self, other):
        pairs = [(a, b) for a, b in zip(self.patches, other.patches, strict=True) if min(a.sum(), b.sum()) > 0]
        return float(np.mean([jensenshannon(a, b, base=2) ** 2 for a, b in pairs])) if pairs else math.nan

    def received_shift(self, other):
        return float(np.abs(self.received - other.received).sum() / 2)


def comparable(profile):
    """Entries that agree in 30 binary digits are equal, as sums in another order differ in the last ones."""
    fraction, exponent = np.frexp(np.where(profile * len(profile) < NEGLIGIBLE, 0, profile * len(profile)))
    return np.ldexp(np.round(np.ldexp(fraction, 30)), exponent - 30)


def cosine(a, b):
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / length) if length > 0 else 0.0


def positions(grid, query_grid):
    """Centres of the cells of a grid laid over the query grid, in query patches."""
    height, width = query_grid[0] / grid[0], query_grid[1] / grid[1]
    return [((row + 0.5) * height - 0.5, (column + 0.5) * width - 0.5) for row in range(grid[0]) for column in range(grid[1])]


@pytest.fixture
def reference() -> type[Reference]:
    return Reference


def random_weights(*shape, sharpness=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * sharpness).softmax(-1)


def named_maps(tokens, heads=3):
    """Maps of every sort that a metric may meet, (batch, heads, tokens, tokens)."""
    one_column = torch.zeros(1, heads, tokens, tokens)
    one_column[..., tokens // 2] = 1
    two_columns = torch.zeros(1, heads, tokens, tokens)
    two_columns[..., -2:] = 1
    two_columns /= two_columns.sum(-1, keepdim=True)
    onto_first = torch.zeros(1, heads, tokens, tokens)
    onto_first[..., 0] = 1
    partly_onto_first = random_weights(1, heads, tokens, tokens)
    partly_onto_first[:, :, ::2] = onto_first[:, :, ::2]
    underflow = (torch.randn(1, heads, tokens, tokens, generator=torch.Generator().manual_seed(5)) * 60).softmax(-1)
    return {
        "random": random_weights(2, heads, tokens, tokens),
        "flat": random_weights(2, heads, tokens, tokens, sharpness=0.3, seed=1),
        "peaked": random_weights(2, heads, tokens, tokens, sharpness=12, seed=2),
        "uniform": torch.full((1, heads, tokens, tokens), 1 / tokens),
        "identity": torch.eye(tokens).expand(1, heads, tokens, tokens).clone(),
        "one column": one_column,
        "two columns": two_columns,
        "onto the first token": onto_first,
        "partly onto the first token": partly_onto_first,
        "underflow": underflow,
        "shifted": torch.eye(tokens).roll(1, 0).expand(1, heads, tokens, tokens).clone(),
    }


@pytest.fixture
def maps() -> Callable[..., dict[str, torch.Tensor]]:
    return named_maps


@pytest.fixture
def draw_weights() -> Callable[..., torch.Tensor]:
    return random_weights
