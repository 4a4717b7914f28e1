"""The named FAN-Swin models, entered into timm's registry."""

from functools import partial
from typing import Any

from overfocus.models.fan_swin import FanSwin
from overfocus.models.timm_registration import pretrained_config, register_architecture

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "fan_swin_tiny_patch4_window7_224": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "fan_swin_small_patch4_window7_224": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "fan_swin_base_patch4_window7_224": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "fan_swin_large_patch4_window7_224": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}


def without_tap(num_scales: int | None = None, **arguments: Any) -> FanSwin:
    """A FAN-Swin without TAP; `num_scales` is accepted and has no effect, as in the reference."""
    del num_scales
    return FanSwin(**arguments)


for _name, _architecture in ARCHITECTURES.items():
    _config = pretrained_config(crop_pct=0.9)
    register_architecture(__name__, _name, partial(without_tap, **_architecture), _config)
    register_architecture(__name__, f"tap_{_name}", partial(FanSwin, **_architecture), _config)
