"""Norms: are there artefact tokens of outlying norm among the patches, and do they receive the attention.

Source: T. Darcet et al., "Vision Transformers Need Registers", ICLR 2024. The paper reads its cutoff off a histogram per model;
a multiple of the image's own median serves every model and layer.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

OUTLIER_RATIO = 3.0
"""A patch token is an outlier from this multiple of the median norm of its image's patch tokens."""


def high_norm_tokens(norms: Float[Tensor, "batch tokens"], ratio: float = OUTLIER_RATIO) -> Bool[Tensor, "batch tokens"]:
    """Patch tokens whose norm is more than `ratio` times the median of their image's patch tokens.

    >>> high_norm_tokens(torch.tensor([[1.0, 1.0, 1.0, 9.0]])).tolist()
    [[False, False, False, True]]
    """
    return norms > ratio * norms.quantile(0.5, dim=1, keepdim=True)


def norm_metrics(
    norms: Float[Tensor, "batch tokens"], received: Float[Tensor, "batch tokens"] | None = None
) -> dict[str, Float[Tensor, "batch"]]:
    """The norm metrics of the tokens that leave a block.

    `norms` are Euclidean norms of its patch tokens; `received` is the attention that the same tokens receive in the block,
    summing to 1 per image, without which `outlier_received` is NaN. Each value is (batch,): `token_norm` (mean, at least 0),
    `norm_ratio` (largest over median, at least 1), `outlier_share` (0 … 1) and `outlier_received` (0 … 1; high = the
    overfocused tokens are the artefact tokens; NaN where there is no outlier).

    >>> norm_metrics(torch.tensor([[1.0, 1.0, 1.0, 9.0]]))["norm_ratio"].item()
    9.0
    """
    outliers = high_norm_tokens(norms)
    undefined = torch.full(norms.shape[:1], torch.nan, device=norms.device)
    taken = undefined if received is None else (received * outliers).sum(1).where(outliers.any(1), undefined)
    return {
        "token_norm": norms.mean(1),
        "norm_ratio": norms.amax(1) / norms.quantile(0.5, dim=1),
        "outlier_share": outliers.float().mean(1),
        "outlier_received": taken,
    }
