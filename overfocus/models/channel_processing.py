"""Channel processing, which FAN puts in the place of the MLP (Zhou et al. 2022, "Understanding the robustness in ViTs")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfocus.models.layers import Grid, Maps, Tokens, to_maps, to_tokens


class DepthwisePair(nn.Module):
    """Depthwise 3×3 → GELU → batch norm → depthwise 3×3; the norm comes after the activation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)
        self.bn = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)
        for convolution in (self.conv1, self.conv2):
            nn.init.normal_(convolution.weight, std=(2 / 9) ** 0.5)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]

    def forward(self, maps: Maps) -> Maps:
        mixed: Tensor = self.conv2(self.bn(F.gelu(self.conv1(maps))))
        return mixed


class DepthwiseMlp(nn.Module):
    """MLP whose only non-linearity sits between two depthwise convolutions over the patch grid.

    `residual` adds the hidden layer to the scaled result of the convolutions, as FAN does and FAN-Swin does not.
    """

    def __init__(self, channels: int, residual: bool = True, drop: float = 0.0) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4 * channels))
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.dwconv = DepthwisePair(4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)
        self.drop = nn.Dropout(drop)
        self.residual = residual

    def forward(self, tokens: Tokens, grid: Grid) -> Tokens:
        hidden = self.fc1(tokens)
        convolved = self.drop(to_tokens(self.dwconv(to_maps(hidden, grid))))
        # Dropping a token's channel before or after its scale is the same; the residual is never dropped.
        mixed = torch.addcmul(hidden, self.gamma, convolved) if self.residual else self.gamma * convolved
        out: Tensor = self.drop(self.fc2(mixed))
        return out


class ChannelProcessing(nn.Module):
    """Gate every channel of a depthwise MLP by how well it agrees with the mean channel of its head.

    Two softmaxes run over the tokens, one per channel each: of a projection of the input, and of the input itself, the
    latter averaged over the channels of a head. Their product summed over tokens is a number per channel (batch, channels),
    whose sigmoid scales the channel at every token. No token attends to another here, so this is no attention map.
    """

    def __init__(self, channels: int, heads: int, residual: bool = True, drop: float = 0.0, attn_drop: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.mlp_v = DepthwiseMlp(channels, residual, drop)
        self.norm_v = nn.LayerNorm(channels)  # ε 1e-5 where FAN's other norms have 1e-6, as the released weights expect
        self.q = nn.Linear(channels, channels)
        self.attn_drop = nn.Dropout(attn_drop)

    def forward(self, tokens: Tokens, grid: Grid) -> Tokens:
        gated: Tensor = self.norm_v(self.mlp_v(tokens, grid)) * self.gate(tokens)[:, None, :]
        return gated

    def gate(self, tokens: Tokens) -> Tensor:
        """Scale of every channel, (batch, channels), in (0, temperature of its head)."""
        queries = torch.unflatten(self.q(tokens).softmax(dim=1), 2, (self.heads, -1))  # (batch, tokens, heads, head_dim)
        # The keys are the raw input: the reference has no key projection.
        keys = torch.unflatten(tokens.softmax(dim=1), 2, (self.heads, -1)).mean(dim=3, keepdim=True)
        agreement = (queries * keys).sum(dim=1)  # (batch, heads, head_dim)
        # The temperature multiplies after the sigmoid, so it is a scale and no temperature; kept as the weights need it.
        gate: Tensor = self.attn_drop(self.temperature[:, 0] * agreement.sigmoid())
        return gate.flatten(1)
