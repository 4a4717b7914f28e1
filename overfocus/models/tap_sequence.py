"""TAP for token sequences of text and audio transformers, built into torch's encoder layer."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overfocus.models.tap import DilationPredictor, pool_tokens
from overfocus.models.tap_pooling import TokenPooling


class TapEncoderLayer(nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer` with token-aware average pooling along the sequence in front of its attention.

    Takes the arguments of torch's layer, and `branches` and `pooling` as keywords; `nn.TransformerEncoder` stacks it as usual.
    The pooled tokens feed the attention (and the norm before it where `norm_first` is true), the residual bypasses them. Padded
    tokens (`src_key_padding_mask`) count as zero in their neighbours' pools.

    Raises:
        ValueError: for fewer than one branch or an unknown pooling.
    """

    def __init__(self, d_model: int, nhead: int, *args: Any, branches: int = 4, pooling: str = "average", **kwargs: Any) -> None:
        super().__init__(d_model, nhead, *args, **kwargs)
        # Keeps torch's fused kernel for whole layers away, and the nested tensors it comes with: neither knows of pooling.
        self.activation_relu_or_gelu = 0
        like = self.linear1.weight
        self.dilation_predictor = DilationPredictor(d_model, branches, axes=1).to(like.device, like.dtype)
        self.token_pools = TokenPooling(d_model, branches, pooling, axes=1).to(like.device, like.dtype)

    def forward(
        self,
        src: Float[Tensor, "..."],
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "..."]:
        """The layer's output; `src` is (batch, tokens, channels), (tokens, batch, channels) or (tokens, channels), as for torch.

        Raises:
            ValueError: the layer is called as a causal one; pooling would show it the tokens to come.
        """
        if is_causal:
            raise ValueError(
                "expected attention in both directions, got is_causal=True; pooling would show tokens what comes after them"
            )
        pooled = self._pool(src, src_key_padding_mask)
        if self.norm_first:
            x = src + self._sa_block(self.norm1(pooled), src_mask, src_key_padding_mask)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(src + self._sa_block(pooled, src_mask, src_key_padding_mask))
        output: Tensor = self.norm2(x + self._ff_block(x))
        return output

    def _pool(self, source: Tensor, padding: Tensor | None) -> Tensor:
        """Pools along the tokens, whichever axis they are on; `padding` is True, or −∞, where a token is padding."""
        sequence_first = source.ndim == 3 and not self.self_attn.batch_first
        tokens = source.transpose(0, 1) if sequence_first else source.reshape(-1, *source.shape[-2:])
        if padding is not None:
            padding = (padding if padding.dtype == torch.bool else padding == -torch.inf).reshape(tokens.shape[:2])
        pooled = pool_tokens(self.dilation_predictor, self.token_pools, tokens, (tokens.shape[1],), padding=padding)
        return pooled.transpose(0, 1) if sequence_first else pooled.reshape(source.shape)
