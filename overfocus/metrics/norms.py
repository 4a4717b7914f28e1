"""Norms: are there outlier tokens among the patches, and do they receive the attention.

Source: T. Darcet et al., "Vision Transformers Need Registers", ICLR 2024. The paper reads its cutoff off a histogram per model;
a multiple of the image's own median serves every model and layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from overfocus.metrics.catalogue import BUILT_IN

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
