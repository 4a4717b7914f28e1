"""timm's ViT, DeiT and Swin with TAP in every block, entered into timm's registry as `tap_` and the name of the original."""

from functools import partial
from typing import Any

import timm
from torch import nn

from overfocus.models.add_tap import add_tap
from overfocus.models.timm_registration import register_entry_point

BASES = (
    *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")),
    *(f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")),
    *(f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base")),
    *(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")),
)
_KEPT = ("num_classes", "input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std", "first_conv", "classifier")


def create_with_tap(
    base: str,
    pretrained: bool = False,
    num_scales: int = 4,
    pooling: str = "average",
    init: str | None = None,
    **arguments: Any,
) -> nn.Module:
    """The timm model `base` with `num_scales` (K) TAP branches in every block; `arguments` go to timm.

    With `pretrained` the body has timm's weights of `base`; TAP has none. Its `init` is then "identity" by default, so that the
    model starts with the output of `base`, and "default" otherwise; see `add_tap`.
    """
    model: Any = timm.create_model(base, pretrained=pretrained, **arguments)
    add_tap(model, branches=num_scales, pooling=pooling, init=init or ("identity" if pretrained else "default"))
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, "architecture": f"tap_{base}"}
    built: nn.Module = model
    return built


def _config(base: str) -> dict[str, Any]:
    config = timm.get_pretrained_cfg(base)
    assert config is not None
    return {key: getattr(config, key) for key in _KEPT if getattr(config, key) is not None}


for _base in BASES:
    register_entry_point(__name__, f"tap_{_base}", partial(create_with_tap, _base), _config(_base))
