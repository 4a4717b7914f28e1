"""Maps derived from captured attention: rollout over the layers, and what the class token attends.

Source: S. Abnar, W. Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020; `head_fusion` and `discard_ratio` as users
know them from vit-explain.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.attention import AttentionMap
from overfocus.errors import CaptureError

HeadFusion = Literal["mean", "max", "min"]
HEAD_FUSIONS: tuple[HeadFusion, ...] = ("mean", "max", "min")


def fuse_heads(
    weights: Float[Tensor, "batch heads queries keys"], fusion: HeadFusion = "mean"
) -> Float[Tensor, "batch queries keys"]:
    """One map of all heads: their mean, maximum or minimum per entry.

    Raises:
        ValueError: unknown fusion.
    """
    if fusion == "mean":
        return weights.mean(1)
    if fusion == "max":
        return weights.amax(1)
    if fusion == "min":
        return weights.amin(1)
    raise ValueError(f"expected head_fusion to be one of {', '.join(HEAD_FUSIONS)}, got {fusion!r}")


@torch.no_grad()
def attention_rollout(
    maps: Sequence[AttentionMap], *, head_fusion: HeadFusion = "mean", discard_ratio: float = 0.0
) -> Float[Tensor, "batch tokens tokens"]:
    """How much of each input token reaches each output token when attention and residual are followed through the layers.

    Per layer the heads are fused, the smallest `discard_ratio` (0 … 1) of the image's entries is set to 0 (never the class
    token's attention to itself), the identity is added for the residual, and rows are made to sum to 1; the layers are
    multiplied, first layer rightmost. Row i of the result, (batch, tokens, tokens), holds the shares of the input tokens in
    output token i and sums to 1. Maps that are not global (class attention behind the last layer, say) are left out.

    Raises:
        CaptureError: there is no global map, or layers differ in their tokens (windows, pooling).
        ValueError: `discard_ratio` outside 0 … 1, or unknown `head_fusion`.
    """
    if not 0 <= discard_ratio < 1:
        raise ValueError(f"expected discard_ratio from 0 to below 1, got {discard_ratio}")
    layers = [attention for attention in maps if attention.kind == "global"]
    others = sorted({attention.kind for attention in maps if attention.kind in ("window", "pooled")})
    tokens = {attention.shape[-1] for attention in layers}
    if others or len(tokens) != 1:
        found = f"{', '.join(others)} attention" if others else f"layers of {', '.join(map(str, sorted(tokens))) or 'no'} tokens"
        raise CaptureError(
            f"rollout needs global attention over the same tokens in every layer, got {found}; use received attention"
        )
    rolled: Tensor | None = None
    for attention in layers:
        fused = fuse_heads(attention.rows(0, attention.shape[2]), head_fusion)
        if discard_ratio:
            flat = fused.flatten(1)
            smallest = flat.topk(int(flat.shape[1] * discard_ratio), largest=False).indices
            kept = flat[:, 0].clone()
            flat.scatter_(1, smallest, 0.0)
            flat[:, 0] = kept
        mixed = fused + torch.eye(fused.shape[-1], device=fused.device)
        mixed /= mixed.sum(-1, keepdim=True)
        rolled = mixed if rolled is None else mixed @ rolled
    assert rolled is not None
    return rolled


def token_row(
    weights: Float[Tensor, "batch queries keys"], *, prefix_tokens: int, grid: tuple[int, int], query: int | None = None
) -> Float[Tensor, "batch rows columns"]:
    """What one token attends (or is made of), laid over the patch grid.

    `query` is the token's number; by default the class token, and the mean over all patches for models without one. Values
    are shares of the whole row, so that a row's prefix tokens keep theirs.

    Raises:
        ValueError: the keys are not `prefix_tokens` plus the grid, or there is no such token.
    """
    rows, columns = grid
    if weights.shape[-1] != prefix_tokens + rows * columns:
        raise ValueError(f"expected {prefix_tokens} prefix tokens and {rows}×{columns} patches as keys, got {weights.shape[-1]}")
    if query is not None and not 0 <= query < weights.shape[1]:
        raise ValueError(f"expected a query from 0 to {weights.shape[1] - 1}, got {query}")
    row = weights.mean(1) if query is None and not prefix_tokens else weights[:, query or 0]
    return row[:, prefix_tokens:].reshape(-1, rows, columns)
