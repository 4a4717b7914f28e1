"""The all-MLP head of SegFormer (Xie et al. 2021, https://arxiv.org/abs/2105.15203), named as in mmsegmentation."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

UNUSED_CHANNELS = 256


class LevelProjection(nn.Module):
    """Linear layer from the width of one feature level to the head's, per pixel."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, channels)


class Fusion(nn.Module):
    """1×1 convolution over the concatenated levels, without bias, and its batch norm."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel_size=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)


class SegFormerHead(nn.Module):
    """Feature levels, finest first, each (batch, channels_i, rows_i, columns_i) → logits (batch, num_classes, rows_0, columns_0).

    Every level is projected to `channels`, upsampled bilinearly to the first one's size and fused by a 1×1 convolution over all
    of them. Projection and fusion are linear per pixel and commute with the upsampling, whose weights sum to 1; so each level
    is multiplied with the product of both matrices at its own size. At 1024×1024 that takes a tenth of the operations.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int = 768, drop: float = 0.1) -> None:
        super().__init__()
        # mmsegmentation's heads all carry this layer and this one never calls it; it is in the published checkpoints.
        self.conv_seg = nn.Conv2d(UNUSED_CHANNELS, num_classes, kernel_size=1).requires_grad_(False)
        for level in range(len(in_channels), 0, -1):
            self.add_module(f"linear_c{level}", LevelProjection(in_channels[level - 1], channels))
        self.levels = len(in_channels)
        self.linear_fuse = Fusion(self.levels * channels, channels)
        self.dropout = nn.Dropout2d(drop)
        self.linear_pred = nn.Conv2d(channels, num_classes, kernel_size=1)

    def reset_classifier(self, num_classes: int) -> None:
        """Put new last layers in the place of the old ones."""
        device = self.linear_pred.weight.device
        self.conv_seg = nn.Conv2d(UNUSED_CHANNELS, num_classes, kernel_size=1, device=device).requires_grad_(False)
        self.linear_pred = nn.Conv2d(self.linear_pred.in_channels, num_classes, kernel_size=1, device=device)

    def forward(self, levels: Sequence[Tensor]) -> Float[Tensor, "batch num_classes rows columns"]:
        size = levels[0].shape[2:]
        # The concatenation, and with it the columns of the fusion, runs from the coarsest level to the finest.
        fusions = self.linear_fuse.conv.weight.flatten(1).chunk(self.levels, dim=1)
        fused: Tensor | None = None
        for level, fusion in zip(range(self.levels, 0, -1), fusions, strict=True):
            projection: nn.Linear = self.get_submodule(f"linear_c{level}").proj  # type: ignore[assignment]
            maps = F.conv2d(levels[level - 1], (fusion @ projection.weight)[:, :, None, None], fusion @ projection.bias)
            if maps.shape[2:] != size:
                maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
            fused = maps if fused is None else fused + maps
        logits: Tensor = self.linear_pred(self.dropout(F.relu(self.linear_fuse.bn(fused))))
        return logits
