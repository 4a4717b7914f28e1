"""Entering architectures into timm's registry, so that `timm.create_model` builds them by name."""

import sys
from collections.abc import Callable
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

TAP_BRANCHES = 4
"""Branches of a `tap_*` model where `num_scales` is not given: those of every published recipe and checkpoint."""


def pretrained_config(crop_pct: float, first_conv: str, **changes: Any) -> dict[str, Any]:
    """What timm keeps about a model's weights and preprocessing; there are no weights it could download by name."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": "head",
        **changes,
    }


def register_architecture(
    module_name: str,
    name: str,
    model_class: Callable[..., nn.Module],
    config: dict[str, Any],
    convert: Callable[[dict[str, Tensor], Any], dict[str, Tensor]] | None = None,
    out_indices: int | tuple[int, ...] = 3,
) -> None:
    """Give a module the entry point `name(pretrained=False, **arguments)` and register it with timm.

    `model_class` builds the model from the arguments, `config` comes from `pretrained_config`, and `convert` turns state
    dicts of older or resized models into the model's own. `out_indices` are the levels of `features_only=True` (an int: the
    last so many).
    """

    def create(pretrained: bool = False, **arguments: Any) -> nn.Module:
        levels = {"feature_cls": "getter", "out_indices": out_indices}  # new each time, since timm takes entries out of it
        model: nn.Module = build_model_with_cfg(
            model_class, name, pretrained, pretrained_filter_fn=convert, feature_cfg=levels, **arguments
        )
        return model

    register_entry_point(module_name, name, create, config)


def register_entry_point(module_name: str, name: str, create: Callable[..., nn.Module], config: dict[str, Any]) -> None:
    """Give a module the entry point `name(pretrained=False, **arguments)`, which calls `create(pretrained=…, **arguments)`."""
    module: Any = sys.modules[module_name]
    module.default_cfgs = {**getattr(module, "default_cfgs", {}), **generate_default_cfgs({name: config})}

    def entry_point(pretrained: bool = False, **arguments: Any) -> nn.Module:
        return create(pretrained=pretrained, **arguments)

    entry_point.__module__ = module_name
    entry_point.__name__ = entry_point.__qualname__ = name
    setattr(module, name, register_model(entry_point))
