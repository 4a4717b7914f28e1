"""FAN as its papers write it down, for the benchmark: every attention map and every unfolded neighbourhood is built.

The classes take over the weights of ours; only `forward` differs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from overfocus.models.blocks import ChannelNorm, ChannelProcessing, ConvNeXtBlock, DepthwiseMlp, PixelMlp
from overfocus.models.fan import Fan, FanBlock, TokenMixing


class TextbookChannelNorm(ChannelNorm):
    def forward(self, maps: Tensor) -> Tensor:
        if not self.unbiased:
            return F.layer_norm(maps.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(
                0, 3, 1, 2
            )
        variance, mean = torch.var_mean(maps, dim=1, keepdim=True)
        return (maps - mean) * torch.rsqrt(variance + self.eps) * self.weight[:, None, None] + self.bias[:, None, None]


class TextbookPixelMlp(PixelMlp):
    def forward(self, maps: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(maps)))


class TextbookConvNeXtBlock(ConvNeXtBlock):
    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.gamma[:, None, None] * self.mlp(self.norm(self.conv_dw(maps)))


class TextbookDepthwiseMlp(DepthwiseMlp):
    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        hidden = self.fc1(tokens)
        batch, _, channels = hidden.shape
        maps = hidden.transpose(1, 2).reshape(batch, channels, *grid)
        maps = self.dwconv.conv2(self.dwconv.bn(F.gelu(self.dwconv.conv1(maps))))
        mixed = self.gamma * maps.reshape(batch, channels, -1).transpose(1, 2)
        return self.fc2(mixed + hidden if self.residual else mixed)


class TextbookChannelProcessing(ChannelProcessing):
    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        batch, count, channels = tokens.shape
        split = (batch, count, self.heads, channels // self.heads)
        query = self.q(tokens).reshape(split).permute(0, 2, 1, 3).softmax(dim=-2)
        key = tokens.reshape(split).permute(0, 2, 1, 3).softmax(dim=-2)
        agreement = (query.transpose(-1, -2) @ key.mean(dim=-1, keepdim=True)).transpose(-1, -2)
        gate = torch.sigmoid(agreement) * self.temperature
        values = self.norm_v(self.mlp_v(tokens, grid)).reshape(split).permute(0, 2, 1, 3)
        return (gate * values).permute(0, 2, 1, 3).reshape(batch, count, channels)


class TextbookTokenMixing(TokenMixing):
    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, channels = tokens.shape
        split = (batch, count, self.heads, channels // self.heads)
        query = self.q(tokens).reshape(split).permute(0, 2, 1, 3)
        key, value = self.kv(tokens).reshape(batch, count, 2, *split[2:]).permute(2, 0, 3, 1, 4)
        weights = ((query * split[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, count, channels))


class TextbookFanBlock(FanBlock):
    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        pooled = self.pool(tokens, grid) if self.dilation_predictor is not None else tokens
        tokens = tokens + self.gamma1 * self.attn(self.norm1(pooled))
        return tokens + self.gamma2 * self.mlp(self.norm2(tokens), grid)

    def pool(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        batch, count, channels = tokens.shape
        maps = tokens.transpose(1, 2).reshape(batch, channels, *grid)
        weights = self.dilation_predictor.proj(maps).softmax(dim=1)
        branches = [maps]
        for dilation in range(1, weights.shape[1]):
            neighbours = F.unfold(maps, kernel_size=3, dilation=dilation, padding=dilation)
            branches.append(neighbours.reshape(batch, channels, 9, *grid).mean(dim=2))
        mixed = (torch.stack(branches, dim=2) * weights[:, None]).sum(dim=2)
        return mixed.reshape(batch, channels, count).transpose(1, 2)


def textbook_form(model: Fan) -> Fan:
    """The same model with the same weights, its layers turned to computing the textbook way."""
    written_out = {theirs.__bases__[0]: theirs for name, theirs in globals().items() if name.startswith("Textbook")}
    for module in model.modules():
        module.__class__ = written_out.get(type(module), type(module))
    return model
