"""RVT's patch-wise augmentation: each patch of a picture is cropped, noised and mirrored on its own.

Source: Mao et al., "Towards Robust Vision Transformer", CVPR 2022, section 3.4; probabilities as its recipe has them.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PROBABILITY = 0.1
"""Of each of the three changes, for each patch."""
SMALLEST_CROP = 0.85
"""Share of a patch's area that a crop keeps at least."""
NOISE = 0.01
"""Standard deviation of the noise, in units of the normalised picture."""


def augment_patches(
    images: Float[Tensor, "batch channels height width"], size: int = 16
) -> Float[Tensor, "batch channels height width"]:
    """Each patch of `size` × `size` pixels: a resized crop, noise and a horizontal flip, each with probability 0.1.

    The result stays in the range of values that each channel of the batch has. Rows and columns that fill no whole patch stay
    as they are. Draws from torch's global generator.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // size, width // size
    inner = images[:, :, : rows * size, : columns * size]
    patches = (
        inner.reshape(batch, channels, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, size, size)
    )
    lowest, highest = (images.transpose(0, 1).flatten(1).aminmax(dim=1)[place].view(-1, 1, 1) for place in (0, 1))
    patches = _cropped(patches)
    noise = torch.randn_like(patches) * NOISE
    patches = torch.where(_chosen(patches), patches + noise, patches)
    patches = torch.where(_chosen(patches), patches.flip(-1), patches)
    patches = torch.minimum(torch.maximum(patches, lowest), highest)
    result = images.clone()
    whole = patches.reshape(batch, rows, columns, channels, size, size).permute(0, 3, 1, 4, 2, 5)
    result[:, :, : rows * size, : columns * size] = whole.reshape(inner.shape)
    return result


def _cropped(patches: Float[Tensor, "patches channels size size"]) -> Float[Tensor, "patches channels size size"]:
    count = len(patches)
    side = torch.empty(count, device=patches.device).uniform_(SMALLEST_CROP, 1.0).sqrt()
    shift = (torch.rand(count, 2, device=patches.device) * 2 - 1) * (1 - side).unsqueeze(1)
    window = torch.zeros(count, 2, 3, device=patches.device)
    window[:, 0, 0] = window[:, 1, 1] = side
    window[:, :, 2] = shift
    grid = F.affine_grid(window, list(patches.shape), align_corners=False)
    crops = F.grid_sample(patches.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return torch.where(_chosen(patches), crops.to(patches.dtype), patches)


def _chosen(patches: Tensor) -> Tensor:
    return torch.rand(len(patches), 1, 1, 1, device=patches.device) < PROBABILITY
