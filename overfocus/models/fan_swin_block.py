"""The block of FAN-Swin: windowed attention as in Swin, then channel processing; with TAP on the whole grid on request."""

import math
from typing import Any

import torch
from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor

from overfocus.models.channel_processing import ChannelProcessing
from overfocus.models.tap import DilationPredictor
from overfocus.models.tap_pooling import TokenPooling


class FanSwinBlock(SwinTransformerBlock):
    """timm's Swin block on (batch, rows, columns, channels), with channel processing and TAP where asked for."""

    def __init__(
        self,
        dim: int,
        input_resolution: tuple[int, int],
        num_heads: int,
        channel_processing: bool,
        num_scales: int = 1,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(dim, input_resolution, num_heads, proj_drop=proj_drop, attn_drop=attn_drop, dynamic_mask=True, **options)
        attention: Any = self.attn
        # Two buffers that timm leaves out of checkpoints and the reference keeps in them.
        attention.register_buffer("relative_position_index", attention.relative_position_index)
        self.register_buffer("attn_mask", super().get_attn_mask(device=torch.empty(0).device, dtype=torch.get_default_dtype()))
        self.padded_resolution = tuple(
            math.ceil(length / window) * window for length, window in zip(input_resolution, self.window_size, strict=True)
        )
        self.channel_processing = channel_processing
        if channel_processing:
            mlp = ChannelProcessing(dim, num_heads, residual=False, drop=proj_drop, attn_drop=attn_drop)
            self.mlp = mlp  # type: ignore[assignment]
        self.dilation_predictor = None
        if num_scales > 1:
            self.dilation_predictor = DilationPredictor(dim, num_scales)
            self.token_pools = TokenPooling(dim, num_scales)

    def get_attn_mask(
        self, x: Tensor | None = None, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Tensor | None:
        """Mask of shifted windows, (windows, tokens, tokens): the stored one for the size the model was built for."""
        stored: Any = self.attn_mask
        if x is not None and stored is not None and tuple(x.shape[1:3]) == self.padded_resolution:
            mask: Tensor | None = stored.to(x.dtype)
            return mask
        return super().get_attn_mask(x, device, dtype)

    def forward(self, x: Float[Tensor, "batch rows columns channels"]) -> Float[Tensor, "batch rows columns channels"]:
        grid = (x.shape[1], x.shape[2])
        pooled = x
        if self.dilation_predictor is not None:
            tokens = x.flatten(1, 2)
            weights = self.dilation_predictor(tokens, grid)
            pooled = torch.unflatten(self.token_pools(tokens, weights, grid), 1, grid)
        attended: Tensor = self.drop_path1(self._attn(self.norm1(pooled)))  # type: ignore[no-untyped-call]
        tokens = (x + attended).flatten(1, 2)
        normed = self.norm2(tokens)
        tokens = tokens + self.drop_path2(self.mlp(normed, grid) if self.channel_processing else self.mlp(normed))
        return torch.unflatten(tokens, 1, grid)
