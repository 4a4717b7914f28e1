"""The named RVT models, plain and plus (position-aware scaling), entered into timm's registry with and without TAP."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from overfocus.models.rvt import Rvt
from overfocus.models.timm_registration import TAP_BRANCHES, pretrained_config, register_architecture

_TINY: dict[str, Any] = {"embed_dims": (192, 384), "depths": (10, 2), "num_heads": (6, 12)}
_SMALL: dict[str, Any] = {"embed_dims": (384,), "depths": (12,), "num_heads": (6,)}
_BASE: dict[str, Any] = {"embed_dims": (768,), "depths": (12,), "num_heads": (12,)}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "rvt_tiny": _TINY,
    "rvt_tiny_plus": {**_TINY, "masked_blocks": 10},
    "rvt_small": _SMALL,
    "rvt_small_plus": {**_SMALL, "masked_blocks": 5},
    "rvt_base": _BASE,
    "rvt_base_plus": {**_BASE, "masked_blocks": 5},
    # The reference names this one but cannot build it. Its 1×1 projection leaves tokens at stride 8, so ours has
    # position-aware scaling over 28 × 28 tokens.
    "rvt_tiny_plus_hybrid": {**_TINY, "depths": (7, 2), "masked_blocks": 7, "stem_depths": (3, 3)},
}


def without_tap(num_scales: int | None = None, **arguments: Any) -> Rvt:
    """An RVT without TAP; `num_scales` is accepted and has no effect, since the reference hands it to every model."""
    del num_scales
    return Rvt(**arguments)


def fit_masks(state_dict: dict[str, Tensor], model: Rvt) -> dict[str, Tensor]:
    """Resample position-aware scaling (heads, tokens, tokens) from the square grid it was trained on to the model's."""
    if model.mask_grid is None:
        return state_dict
    tokens = model.mask_grid[0] * model.mask_grid[1]
    return {
        name: _resample(tensor, model.mask_grid) if name.endswith("att_mask") and tensor.shape[-1] != tokens else tensor
        for name, tensor in state_dict.items()
    }


def _resample(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    for _ in range(2):  # keys, then queries
        side = round(mask.shape[-1] ** 0.5)
        mask = F.interpolate(torch.unflatten(mask, -1, (side, side)), size=grid, mode="bicubic").flatten(2).transpose(1, 2)
    return mask


for _name, _architecture in ARCHITECTURES.items():
    _config = pretrained_config(crop_pct=0.875, fixed_input_size=_architecture.get("masked_blocks", 0) > 0)
    _plain = partial(without_tap, **_architecture)
    _with_tap = partial(Rvt, num_scales=TAP_BRANCHES, **_architecture)
    register_architecture(__name__, _name, _plain, _config, fit_masks)
    register_architecture(__name__, f"tap_{_name}", _with_tap, _config, fit_masks)
