"""Parts that several families share: FAN's channel processing, and the convolutional stem of the hybrid models.

Sources: Zhou et al. 2022, "Understanding the robustness in vision transformers" (channel processing); Liu et al. 2022, "A
ConvNet for the 2020s" (the stem's two stages).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from overfocus.models.layers import Grid, Images, Maps, Tokens, to_maps, to_tokens


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


PIXELS_AT_ONCE = 2048


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map, by the biased variance (÷ D) or the unbiased one (÷ (D − 1))."""

    def __init__(self, channels: int, unbiased: bool) -> None:
        super().__init__(channels, eps=1e-6)
        self.unbiased = unbiased

    def forward(self, maps: Maps) -> Maps:
        pixels = maps.permute(0, 2, 3, 1)
        if not self.unbiased:
            return F.layer_norm(pixels, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)
        # (x − μ) / √(σ²·D/(D−1) + ε) is the fused norm with ε·(D−1)/D, its result scaled by √((D−1)/D).
        share = 1 - 1 / self.normalized_shape[0]
        normed = F.layer_norm(pixels, self.normalized_shape, self.weight * share**0.5, self.bias, self.eps * share)
        return normed.permute(0, 3, 1, 2)


@register_notrace_module
class PixelMlp(nn.Module):
    """Two 1×1 convolutions, D → 4D → D, with GELU between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, 4 * channels, kernel_size=1)
        self.fc2 = nn.Conv2d(4 * channels, channels, kernel_size=1)

    def forward(self, maps: Maps) -> Maps:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._mix(maps)
        whole = torch.is_grad_enabled() or maps.device.type != "cpu" or torch.compiler.is_compiling()
        return self._mix(maps) if whole else by_pixels(self._mix, maps)

    def _mix(self, maps: Tensor) -> Tensor:
        mixed: Tensor = self.fc2(F.gelu(self.fc1(maps)))
        return mixed


def by_pixels(function: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
    """Apply a pixelwise function to some thousand pixels at a time: what lies between its layers then stays in the cache."""
    batch, channels, rows, columns = maps.shape
    pixels = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    mixed = torch.cat([function(some.t()[None, :, :, None])[0, :, :, 0].t() for some in torch.split(pixels, PIXELS_AT_ONCE)])
    return mixed.view(batch, rows, columns, -1).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7 convolution, norm and pixelwise MLP, added to the map with a scale per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))
        self.conv_dw = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)
        self.norm = ChannelNorm(channels, unbiased=True)
        self.mlp = PixelMlp(channels)

    def forward(self, maps: Maps) -> Maps:
        return torch.addcmul(maps, self.gamma[:, None, None], self.mlp(self.norm(self.conv_dw(maps))))


class ConvNeXtStage(nn.Module):
    """Some ConvNeXt blocks, after a norm and a 2×2 convolution of stride 2 where the width changes."""

    def __init__(self, in_channels: int, channels: int, depth: int) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if in_channels != channels:
            norm = ChannelNorm(in_channels, unbiased=True)
            self.downsample = nn.Sequential(norm, nn.Conv2d(in_channels, channels, kernel_size=2, stride=2))
        self.blocks = nn.Sequential(*(ConvNeXtBlock(channels) for _ in range(depth)))

    def forward(self, maps: Maps) -> Maps:
        out: Tensor = self.blocks(self.downsample(maps))
        return out


class ConvNeXtStem(nn.Module):
    """Image, best in channels-last memory format, → 128 channels at stride 4 → 256 channels at stride 8."""

    channels = (128, 256)

    def __init__(self, in_chans: int, depths: tuple[int, int]) -> None:
        super().__init__()
        # The reference's norm takes the biased variance here and, by a quirk of its memory-layout test, the unbiased one in
        # every later norm of the stem; the released weights were trained so.
        norm = ChannelNorm(self.channels[0], unbiased=False)
        self.stem = nn.Sequential(nn.Conv2d(in_chans, self.channels[0], kernel_size=4, stride=4), norm)
        first = ConvNeXtStage(self.channels[0], self.channels[0], depths[0])
        self.stages = nn.ModuleList([first, ConvNeXtStage(self.channels[0], self.channels[1], depths[1])])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, images: Images) -> list[Maps]:
        maps = self.stem(images)
        levels = []
        for stage in self.stages:
            maps = stage(maps)
            levels.append(maps)
        return levels


class HybridEmbedding(nn.Module):
    """Image → tokens through the ConvNeXt stem; `patch_size` pixels of its last level make a token (2: stride 16).

    Maps are (batch, channels, rows, columns) in channels-last memory format throughout, so that the norm and the 1×1
    convolutions see each pixel's channels side by side and no layer copies.
    """

    def __init__(self, in_chans: int, channels: int, depths: tuple[int, int], patch_size: int = 2) -> None:
        super().__init__()
        self.backbone = ConvNeXtStem(in_chans, depths)
        self.proj = nn.Conv2d(ConvNeXtStem.channels[-1], channels, kernel_size=patch_size, stride=patch_size)

    def levels(self, images: Images) -> list[Maps]:
        """Maps of stride 4 and 8 and the embedded one, for dense prediction."""
        levels: list[Tensor] = self.backbone(images)
        return levels + [self.proj(levels[-1])]  # noqa: RUF005  TorchScript unpacks no list

    def forward(self, images: Images) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (batch, rows · columns, channels) and their grid (rows, columns)."""
        maps = self.levels(images)[-1]
        return to_tokens(maps), (maps.shape[2], maps.shape[3])
