"""The positional encoding of FAN: sines and cosines of row and column, projected to the width of the tokens."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

HIDDEN = 32
TEMPERATURE = 10000.0


class FourierEncoding(nn.Module):
    """Positional encoding of any grid, (1, rows · columns, channels), added to the tokens once before the blocks.

    Row i and column j become angles in (0, 2π]; each is divided by 32 frequencies, sines of the even ones and cosines of
    the odd ones are projected by a 1×1 convolution. `paired_frequencies` gives a sine and the cosine after it the same
    frequency, as in XCiT (El-Nouby et al. 2021); the reference's segmentation copy steps at every one of the 32 instead,
    and its weights need that.
    """

    def __init__(self, channels: int, paired_frequencies: bool = True) -> None:
        super().__init__()
        self.paired_frequencies = paired_frequencies
        self.token_projection = nn.Conv2d(2 * HIDDEN, channels, kernel_size=1)

    def forward(self, grid: tuple[int, int]) -> Float[Tensor, "1 tokens channels"]:
        rows, columns = (self._axis(length) for length in grid)
        by_row = rows[:, None, :].expand(-1, grid[1], -1)
        by_column = columns[None, :, :].expand(grid[0], -1, -1)
        waves = torch.cat([by_row, by_column], dim=-1).to(self.token_projection.weight.dtype)  # (rows, columns, 64)
        projected: Tensor = self.token_projection(waves.permute(2, 0, 1)[None])
        return projected.flatten(2).transpose(1, 2)

    def _axis(self, length: int) -> Float[Tensor, "length hidden"]:
        device = self.token_projection.weight.device
        angles = torch.arange(1, length + 1, device=device, dtype=torch.float32) * (2 * math.pi / (length + 1e-6))
        steps = torch.arange(HIDDEN, device=device, dtype=torch.float32)
        if self.paired_frequencies:
            steps = 2 * torch.div(steps, 2, rounding_mode="floor")
        phases = angles[:, None] / TEMPERATURE ** (steps / HIDDEN)
        return torch.stack([phases[:, 0::2].sin(), phases[:, 1::2].cos()], dim=-1).flatten(1)
