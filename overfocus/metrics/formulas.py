"""The metrics as formulas: of the sums of attention maps, of the norms of tokens, and of a model's output.

A formula of one map takes `MapSums`, one that compares two takes `PairSums`; both with any axes in front. Decorated, it is a
function of weights (batch, heads, queries, keys) that returns (batch,), or (batch, heads) with `per_head=True`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from overfocus.metrics.catalogue import BUILT_IN, TOP_FRACTION
from overfocus.metrics.sums import MapSums, PairSums, background
from overfocus.metrics.tokens import check_shape, sums_of_pairs, sums_of_weights
from overfocus.settings import typed


class MapMetric:
    """A metric of one map."""

    def __init__(self, formula: Callable[[MapSums], Tensor]) -> None:
        self.formula = formula
        functools.update_wrapper(self, formula)

    @typed(ValueError)
    def __call__(
        self,
        weights: Float[Tensor, "batch heads queries keys"],
        *,
        prefix_tokens: int = 0,
        key_prefix_tokens: int | None = None,
        grid: tuple[int, int] | None = None,
        key_grid: tuple[int, int] | None = None,
        top_fraction: float = TOP_FRACTION,
        per_head: bool = False,
    ) -> Float[Tensor, "batch *heads"]:
        """The value of each map, or of each head.

        Args:
            weights: attention after the softmax; half precision is computed in float32, float64 stays.
            prefix_tokens: class, distillation and register tokens at the front of the queries, and of the keys unless
                `key_prefix_tokens` says otherwise.
            key_prefix_tokens: prefix tokens at the front of the keys.
            grid: (rows, columns) of the query patches, which attention_distance needs.
            key_grid: that of the keys where they are pooled.
            top_fraction: f of k = max(1, round(f·N)).
            per_head: measure each head instead of their mean.

        Raises:
            ValueError: the shape is not (batch, heads, queries, keys), no patch token is left, or `grid` does not fit.
            CaptureError: NaN, negative weights, or rows that do not sum to 1.
        """
        sums = sums_of_weights(
            weights,
            prefix_tokens=prefix_tokens,
            key_prefix_tokens=key_prefix_tokens,
            grid=grid,
            key_grid=key_grid,
            top_fraction=top_fraction,
            per_head=per_head,
        )
        value = self.formula(sums).to(sums.mass.dtype)
        return value.view(weights.shape[:2]) if per_head else value


class PairMetric:
    """A metric of a clean and a corrupted map."""

    def __init__(self, formula: Callable[[PairSums], Tensor]) -> None:
        self.formula = formula
        functools.update_wrapper(self, formula)

    @typed(ValueError)
    def __call__(
        self,
        clean: Float[Tensor, "batch heads queries keys"],
        corrupted: Float[Tensor, "batch heads queries keys"],
        *,
        prefix_tokens: int = 0,
        key_prefix_tokens: int | None = None,
        top_fraction: float = TOP_FRACTION,
        per_head: bool = False,
    ) -> Float[Tensor, "batch *heads"]:
        """The value of each pair of maps, or of heads; arguments as for metrics of one map.

        Raises:
            ValueError: the shapes differ, are not (batch, heads, queries, keys), or no patch token is left.
            CaptureError: NaN, negative weights, or rows that do not sum to 1.
        """
        check_shape(clean)
        if clean.shape != corrupted.shape:
            raise ValueError(
                f"expected clean and corrupted weights of one shape, got {tuple(clean.shape)} and {tuple(corrupted.shape)}"
            )
        sums = sums_of_pairs(
            clean,
            corrupted,
            prefix_tokens=prefix_tokens,
            key_prefix_tokens=key_prefix_tokens,
            top_fraction=top_fraction,
            per_head=per_head,
        )
        value = self.formula(sums)
        value = value if clean.dtype == torch.float64 else value.float()
        return value.view(clean.shape[:2]) if per_head else value


@MapMetric
def top_share(sums: MapSums) -> Float[Tensor, "*items"]:
    """Share of the received attention that the k most attended tokens take: Σ_{j∈T_k(r)} r_j.

    Range k/N (uniform) … 1; high means that a few tokens take all. Source: overfocus/metrics/README.md, concentration.

    >>> top_share(torch.full((1, 1, 4, 4), 0.25))
    tensor([0.2500])
    """
    return sums.profile.topk(sums.top, sorted=False).values.sum(-1).clamp_max(1)


@MapMetric
def max_ratio(sums: MapSums) -> Float[Tensor, "*items"]:
    """Attention that the most attended token receives, relative to its even share: N · max_j r_j.

    Range 1 (uniform) … N; high means that one token stands out. Source: overfocus/metrics/README.md, concentration.

    >>> max_ratio(torch.full((1, 1, 4, 4), 0.25))
    tensor([1.])
    """
    return (sums.profile.amax(-1) * sums.columns).clamp_min(1)


@MapMetric
def gini(sums: MapSums) -> Float[Tensor, "*items"]:
    """Gini coefficient of the received attention: Σ_{a,b} |r_a − r_b| / (2 N), from the sorted profile.

    Range 0 (uniform) … 1 − 1/N; high means unequal shares. Source: Gini 1912; overfocus/metrics/README.md, concentration.

    >>> gini(torch.eye(4)[None, None, [0, 0, 0, 0]])
    tensor([0.7500])
    """
    keys = sums.columns
    position = torch.arange(1 - keys, keys, 2, device=sums.profile.device, dtype=sums.profile.dtype)
    return (sums.profile.sort(-1).values * position).sum(-1).clamp_min(0) / keys


@MapMetric
def effective_tokens(sums: MapSums) -> Float[Tensor, "*items"]:
    """Perplexity of the received attention as a share of the tokens: exp(−Σ_j r_j ln r_j) / N.

    Range 1/N … 1 (uniform); low means overfocused. Source: overfocus/metrics/README.md, concentration.

    >>> effective_tokens(torch.eye(4)[None, None, [0, 0, 0, 0]])
    tensor([0.2500])
    """
    return (torch.exp(-torch.xlogy(sums.profile, sums.profile).sum(-1)) / sums.columns).clamp_max(1)


@MapMetric
def row_entropy(sums: MapSums) -> Float[Tensor, "*items"]:
    """Mean entropy of the patches' rows, renormalised over the N patch keys, divided by ln N.

    Range 0 (one-hot rows) … 1 (uniform); NaN for N = 1. Rows without attention on patches have no entropy and are left out of
    the mean. Source: overfocus/metrics/README.md, concentration.

    >>> row_entropy(torch.full((1, 1, 4, 4), 0.25))
    tensor([1.])
    """
    mean = sums.entropy.sum(-1) / sums.count
    return (mean / (math.log(sums.columns) if sums.columns > 1 else math.nan)).clamp(0, 1)


@MapMetric
def prefix_share(sums: MapSums) -> Float[Tensor, "*items"]:
    """Mean attention that patches give to class, distillation and register tokens: mean_i Σ_{j∉P} Ā_ij.

    Range 0 (also without such tokens) … 1; high means that patches look at prefix tokens. Source:
    overfocus/metrics/README.md, concentration.

    >>> prefix_share(torch.full((1, 1, 5, 5), 0.2), prefix_tokens=1)
    tensor([0.2000])
    """
    return sums.prefix.mean(-1) / sums.summed_heads


@MapMetric
def token_cosine(sums: MapSums) -> Float[Tensor, "*items"]:
    """Mean cosine between the rows of two different patch queries: (‖Σ_i u_i‖² − Σ_i ‖u_i‖²) / (N (N − 1)), u_i unit rows.

    Range 0 … 1 (uniform); high means that all tokens attend to the same places; NaN for N = 1.
    A row without attention on patches has cosine 0 with every other. Source: overfocus/metrics/README.md, similarity.

    >>> token_cosine(torch.eye(4)[None, None])
    tensor([0.])
    """
    pairs = sums.rows * (sums.rows - 1)
    return ((sums.unit_column.square().sum(-1) - sums.count) / (pairs or math.nan)).clamp(0, 1)


@MapMetric
def diversification(sums: MapSums) -> Float[Tensor, "*items"]:
    """Mean cosine between each row and the mean row, both without their entries up to 2/N: mean_i cos(m>t, Ā_P,i>t).

    Range 0 (uniform) … 1; high means that every token looks at what the layer as a whole looks at. A row or mean row with no
    entry above the threshold has cosine 0. Source: Guo et al. 2023, Robustifying Token Attention for Vision Transformers,
    attention diversification loss.

    >>> diversification(torch.eye(4)[None, None, [0, 0, 0, 0]])
    tensor([1.])
    """
    total = sums.column.to(sums.mass.dtype)
    total = torch.nn.functional.threshold(total, background(sums.columns, sums.summed_heads) * sums.rows, 0.0)
    length = torch.linalg.vector_norm(total, dim=-1).clamp_min(1e-12)
    # the cosines with one row add up to that row's product with the sum of the unit rows
    value: Tensor = (total * sums.above_column).sum(-1) / (length * sums.rows)
    return value.clamp_max(1)


@MapMetric
def attention_distance(sums: MapSums) -> Float[Tensor, "*items"]:
    """Mean distance between a patch and what it attends: mean_i Σ_j p_ij · d(i,j), p_i the renormalised row, in patches.

    Range 0 … diagonal of the grid; high means that tokens look far away. A pooled key stands at the centre of the patches that it
    covers. Rows without attention on patches are left out of the mean. Source: Dosovitskiy et al. 2021, ViT, appendix D.7.

    >>> attention_distance(torch.eye(4)[None, None, [1, 0, 3, 2]], grid=(2, 2))
    tensor([1.])
    """
    if sums.distance is None:
        raise ValueError(
            "expected grid=(rows, columns) of the patches, got None; a 224-pixel image in patches of 16 has grid=(14, 14)"
        )
    return (sums.distance / sums.mass * sums.counted).sum(-1) / sums.count


@PairMetric
def top_overlap(sums: PairSums) -> Float[Tensor, "*pairs"]:
    """Share of the k most attended tokens that stay among the k most attended: |T_k(r) ∩ T_k(r')| / k.

    Range 0 … 1; low means that the important tokens change. Where attention is flat the order of tokens is noise, where it is
    the same for every image they stay whatever is shown: read it beside the control. Source:
    overfocus/metrics/README.md, stability.

    >>> top_overlap(torch.eye(4)[None, None, [0, 0, 0, 0]], torch.eye(4)[None, None, [1, 1, 1, 1]])
    tensor([0.])
    """
    return (sums.clean(sums.maps.top_marks) * sums.corrupted(sums.maps.top_marks)).sum(-1)


@PairMetric
def rank_correlation(sums: PairSums) -> Float[Tensor, "*pairs"]:
    """Spearman's ρ of the received attention, clean and corrupted, with average ranks for ties.

    Range −1 … 1; low means that the order of tokens changes; NaN where a profile is constant. Where attention is flat the order
    is noise: read it beside the control. Source: Spearman 1904; overfocus/metrics/README.md, stability.

    >>> weights = torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(1, 1, 4, 4)
    >>> rank_correlation(weights, weights.flip(-1))
    tensor([-1.])
    """
    return (sums.clean(sums.maps.unit_ranks) * sums.corrupted(sums.maps.unit_ranks)).sum(-1).clamp(-1, 1)


@PairMetric
def attention_cosine(sums: PairSums) -> Float[Tensor, "*pairs"]:
    """Mean cosine between a patch's row on the clean and on the corrupted image: mean_i cos(Ā_P,i , Ā'_P,i).

    Range 0 … 1; low means that tokens attend elsewhere. A row without attention on patches has cosine 0. Source:
    overfocus/metrics/README.md, stability.

    >>> attention_cosine(torch.eye(4)[None, None], torch.eye(4)[None, None])
    tensor([1.])
    """
    inverse = sums.clean(sums.maps.inverse_length) * sums.corrupted(sums.maps.inverse_length)
    return (sums.dot * inverse).mean(-1).clamp_max(1)


@PairMetric
def js_divergence(sums: PairSums) -> Float[Tensor, "*pairs"]:
    """Mean Jensen–Shannon divergence between a patch's renormalised row on the clean and on the corrupted image, in bits.

    Range 0 … 1; high means that attention has diverged. Rows without attention on patches, in either, are left out of the mean.
    Source: Lin 1991, Divergence measures based on the Shannon entropy, eq. 4.1.

    >>> js_divergence(torch.eye(4)[None, None], torch.eye(4)[None, None, [1, 0, 3, 2]])
    tensor([1.])
    """
    entropies = sums.clean(sums.maps.entropy) + sums.corrupted(sums.maps.entropy)
    # H of the middle, b/2, is ln 2 − Σ b ln b / 2, as b sums to 2
    nats = (math.log(2) - (sums.both_log_sum + entropies) / 2).clamp_min(0).masked_fill(sums.counted == 0, 0)
    return nats.sum(-1) / (sums.counted.sum(-1) * math.log(2))


@PairMetric
def received_shift(sums: PairSums) -> Float[Tensor, "*pairs"]:
    """Share of the received attention that moves to other tokens: ½ Σ_j |r_j − r'_j|, the total variation distance.

    Range 0 … 1; high means that mass has moved. Source: overfocus/metrics/README.md, stability.

    >>> received_shift(torch.eye(4)[None, None, [0, 0, 0, 0]], torch.eye(4)[None, None, [1, 1, 1, 1]])
    tensor([1.])
    """
    return (sums.clean(sums.maps.profile) - sums.corrupted(sums.maps.profile)).abs().sum(-1) / 2


METRICS: dict[str, MapMetric] = {
    metric.name: globals()[metric.name] for metric in BUILT_IN if metric.of_attention and not metric.compares
}
"""Metrics of one map: `function(weights, *, prefix_tokens=0, ..., per_head=False)` -> (batch,) or (batch, heads)."""

STABILITY: dict[str, PairMetric] = {metric.name: globals()[metric.name] for metric in BUILT_IN if metric.compares}
"""Metrics of a clean and a corrupted map: `function(clean, corrupted, *, prefix_tokens=0, ..., per_head=False)`."""


OUTLIER_RATIO = 3.0
"""A patch token is an outlier from this multiple of the median norm of its image's patch tokens."""


@dataclass(eq=False)
class TokenLengths:
    """Euclidean norms of the patch tokens that leave a block, and the attention that they receive in it."""

    norms: Float[Tensor, "*images tokens"]
    received: Float[Tensor, "*images tokens"] | None = None
    """Sums to 1 per image; None where the tokens of the attention are others."""

    @cached_property
    def median(self) -> Float[Tensor, "*images 1"]:
        """Median norm of the image; the mean of both middle ones where their number is even."""
        ordered, tokens = self.norms.sort(-1).values, self.norms.shape[-1]
        return ordered[..., (tokens - 1) // 2 : tokens // 2 + 1].mean(-1, keepdim=True)

    @cached_property
    def outliers(self) -> Bool[Tensor, "*images tokens"]:
        """Tokens whose norm is more than three times the median."""
        return self.norms > OUTLIER_RATIO * self.median


def high_norm_tokens(norms: Float[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
    """Patch tokens whose norm is more than three times the median of their image's patch tokens.

    >>> high_norm_tokens(torch.tensor([[1.0, 1.0, 1.0, 9.0]])).tolist()
    [[False, False, False, True]]
    """
    return TokenLengths(norms).outliers


def token_norm(tokens: TokenLengths) -> Float[Tensor, "*images"]:
    """Mean norm; at least 0."""
    return tokens.norms.mean(-1)


def norm_ratio(tokens: TokenLengths) -> Float[Tensor, "*images"]:
    """Largest norm over the median; at least 1."""
    return tokens.norms.amax(-1) / tokens.median.squeeze(-1)


def outlier_share(tokens: TokenLengths) -> Float[Tensor, "*images"]:
    """Share of the tokens that are outliers, 0 … 1."""
    return tokens.outliers.float().mean(-1)


def outlier_received(tokens: TokenLengths) -> Float[Tensor, "*images"]:
    """Attention that the outliers receive, 0 … 1; high = the overfocused tokens are the outliers.

    NaN where there is no outlier or the received attention is not known.
    """
    undefined = torch.full_like(tokens.norms[..., 0], torch.nan)
    if tokens.received is None:
        return undefined
    return (tokens.received * tokens.outliers).sum(-1).where(tokens.outliers.any(-1), undefined)


NORMS: dict[str, Callable[[TokenLengths], Tensor]] = {
    metric.name: globals()[metric.name] for metric in BUILT_IN if metric.group == "norms"
}
"""Metrics of the norms of a block's output tokens: `function(TokenLengths)` -> (batch,)."""


def norm_metrics(
    norms: Float[Tensor, "*images tokens"], received: Float[Tensor, "*images tokens"] | None = None
) -> dict[str, Float[Tensor, "*images"]]:
    """Every metric of the norms of the patch tokens that leave a block, and of the attention that the same tokens receive.

    >>> norm_metrics(torch.tensor([[1.0, 1.0, 1.0, 9.0]]))["norm_ratio"].item()
    9.0
    """
    tokens = TokenLengths(norms, received)
    return {name: function(tokens) for name, function in NORMS.items()}


def agreement(clean: Float[Tensor, "batch classes"], corrupted: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch"]:
    """1 where the corrupted image gets the same top-1 class as the clean one, else 0; both are logits or probabilities.

    >>> agreement(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([0.])
    """
    return (clean.argmax(-1) == corrupted.argmax(-1)).float()


def confidence_drop(clean: Float[Tensor, "batch classes"], corrupted: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch"]:
    """Probability of the clean image's top-1 class minus its probability under corruption; both are logits.

    Range −1 … 1; high means that the model has lost its confidence.

    >>> confidence_drop(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([0.5000])
    """
    before, after = torch.softmax(clean.float(), -1), torch.softmax(corrupted.float(), -1)
    predicted = before.argmax(-1, keepdim=True)
    return (before.gather(-1, predicted) - after.gather(-1, predicted)).squeeze(-1)


def correct(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """1 where the top-1 class is the label, else 0.

    >>> correct(torch.tensor([[2.0, 1.0]]), torch.tensor([0]))
    tensor([1.])
    """
    return (logits.argmax(-1) == labels).float()
