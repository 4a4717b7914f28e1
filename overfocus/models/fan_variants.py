"""The named FAN models: width, depth and heads of each, entered into timm's registry with and without TAP."""

from functools import partial
from typing import Any

import torch
from timm.models._registry import register_model_deprecations
from torch import Tensor, nn

from overfocus.models.fan import Fan
from overfocus.models.timm_registration import TAP_BRANCHES, pretrained_config, register_architecture

# Two names tell a wrong depth: small_12 hybrid has 10 token blocks and large_16 hybrid has 22.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "fan_tiny_12_p16_224": {"embed_dims": (192,), "depths": (12,), "num_heads": (4,)},
    "fan_small_12_p16_224": {"embed_dims": (384,), "depths": (12,), "num_heads": (8,)},
    "fan_base_18_p16_224": {"embed_dims": (448,), "depths": (18,), "num_heads": (8,)},
    "fan_large_24_p16_224": {"embed_dims": (480,), "depths": (24,), "num_heads": (10,)},
    "fan_tiny_8_p4_hybrid": {"embed_dims": (192,), "depths": (8,), "num_heads": (8,), "stem_depths": (3, 3)},
    "fan_small_12_p4_hybrid": {"embed_dims": (384,), "depths": (10,), "num_heads": (8,), "stem_depths": (3, 3)},
    "fan_base_16_p4_hybrid": {"embed_dims": (448,), "depths": (16,), "num_heads": (8,), "stem_depths": (3, 3)},
    "fan_large_16_p4_hybrid": {
        "embed_dims": (480,),
        "depths": (22,),
        "num_heads": (10,),
        "stem_depths": (3, 5),
        "head_init_scale": 0.001,
    },
    "fan_xlarge_16_p4_hybrid": {
        "embed_dims": (528, 768),
        "depths": (20, 3),
        "num_heads": (11, 16),
        "stem_depths": (3, 7),
        "head_init_scale": 0.001,
    },
}
# The reference crops these two to 0.9 because the configuration they name was never registered.
_CROPPED = ("fan_tiny_8_p4_hybrid", "fan_xlarge_16_p4_hybrid")


def convert_state_dict(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the parameters of old third-party FAN checkpoints: `pos_embeder`, and class attention with fused q, k and v."""
    del model
    converted = {}
    for name, tensor in state_dict.items():
        name = name.replace("pos_embeder.", "pos_embed.")
        if name.startswith("cls_attn_blocks.") and ".attn.qkv." in name:
            for part, chunk in zip("qkv", torch.chunk(tensor, 3), strict=True):
                converted[name.replace(".qkv.", f".{part}.")] = chunk
        else:
            converted[name] = tensor
    return converted


def without_tap(num_scales: int | None = None, **arguments: Any) -> Fan:
    """A FAN without TAP; `num_scales` is accepted and has no effect, since the reference hands it to every model."""
    del num_scales
    return Fan(**arguments)


for _name, _architecture in ARCHITECTURES.items():
    _config = pretrained_config(crop_pct=0.9 if _name in _CROPPED else 1.0)
    _plain = partial(without_tap, **_architecture)
    _with_tap = partial(Fan, num_scales=TAP_BRANCHES, **_architecture)
    register_architecture(__name__, _name, _plain, _config, convert_state_dict)
    register_architecture(__name__, f"tap_{_name}", _with_tap, _config, convert_state_dict)

# The reference spells these two with a capital.
register_model_deprecations(
    __name__, {f"{prefix}fan_Xlarge_16_p4_hybrid": f"{prefix}fan_xlarge_16_p4_hybrid" for prefix in ("", "tap_")}
)
