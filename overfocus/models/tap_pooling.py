"""The branches of TAP: how a token's neighbourhood is pooled at each dilation, and how predicted weights mix the results."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from overfocus.models.patch_grid import to_maps, to_tokens
from overfocus.models.tap_mixture import mix_dilated

POOLINGS = ("average", "max", "gaussian", "learned")
_LINEAR_TAPS = {"average": (1 / 3, 1 / 3), "gaussian": (1 / 2, 1 / 4)}


class TokenPooling(nn.Module):
    """Mixes K poolings of the tokens, dilations 0 … K−1, by weights given per token.

    Branch 0 is the token itself; branch r pools its 3×3 neighbours (3 on a sequence) that lie r tokens apart:

    * "average": their mean, zeros beyond the border, always divided by 9 (3). No parameters.
    * "gaussian": their mean weighted 1:2:1 along every axis, zeros beyond the border. No parameters.
    * "max": their maximum per channel, over those inside the grid. No parameters.
    * "learned": a depthwise 3×3 kernel per branch, parameter `kernels` (K − 1, channels, 1, 3, 3), which starts as the average.

    So that a checkpoint tells its pooling, "gaussian" and "max" leave a buffer of that name (a single 1) in the state dict.

    Raises:
        ValueError: for an unknown pooling.
    """

    def __init__(self, channels: int, branches: int, pooling: str = "average", axes: int = 2) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"expected pooling to be one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.pooling = pooling
        self.branches = branches
        self.axes = axes
        if pooling in ("gaussian", "max"):
            self.register_buffer(pooling, torch.ones(()))
        if pooling == "learned":
            self.kernels = nn.Parameter(torch.full((branches - 1, channels, 1, *[3] * axes), 1 / 3**axes))

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens channels"],
        weights: Float[Tensor, "batch tokens branches"],
        grid: tuple[int, ...],
    ) -> Float[Tensor, "batch tokens channels"]:
        """The pooled tokens; `grid` is (rows, columns), or (length,) on a sequence, and holds every token given."""
        if self.branches == 1:
            return tokens
        if self.pooling in _LINEAR_TAPS:
            return mix_dilated(tokens, weights, grid, self.branches, _LINEAR_TAPS[self.pooling])
        image = to_maps(tokens, grid)
        shares = to_maps(weights, grid)
        mixed = shares[:, :1] * image
        for dilation in range(1, self.branches):
            mixed = mixed + shares[:, dilation : dilation + 1] * self._pool(image, dilation)
        return to_tokens(mixed)

    def _pool(self, image: Tensor, dilation: int) -> Tensor:
        if self.pooling == "max":
            padded = F.pad(image, [dilation] * (2 * self.axes), value=-torch.inf)
            pool = F.max_pool2d if self.axes == 2 else F.max_pool1d
            return pool(padded, 3, stride=1, dilation=dilation)
        convolve = F.conv2d if self.axes == 2 else F.conv1d
        return convolve(image, self.kernels[dilation - 1], padding=dilation, dilation=dilation, groups=image.shape[1])

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"branches={self.branches}, pooling={self.pooling!r}"
