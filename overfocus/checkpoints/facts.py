"""What shapes do not show: heads, strides, activations, normalisation constants, windows and shifts of a built model.

Every plain attribute of every module is a fact, gathered under the module's name with layer numbers replaced by `*`
(`blocks.*.attn:num_heads`). Two architectures with equal shapes and equal facts compute the same attention. Left out is
what does not change it: the classifier and its pooling, training options, and what follows from the image size.
"""

import functools
import inspect
import re
from collections import defaultdict

import torch
from torch import nn

from overfocus.checkpoints.fingerprint import pattern

Fact = str | int | float | bool | list["Fact"] | None

# fmt: off
_WITHOUT_EFFECT = frozenset({
    "training", "num_classes", "global_pool", "init_values", "drop_prob", "p", "fused_attn", "inplace", "approximate",
    "grad_checkpointing", "pos_embed_ar_preserving", "scale_by_keep", "momentum", "track_running_stats", "device", "dtype",
})
_FROM_IMAGE_SIZE = frozenset({
    "img_size", "num_patches", "grid_size", "input_resolution", "output_resolution", "feat_size", "feature_size", "feat_shape",
    "seq_len", "img_size_scaled", "bias_shape", "window_area", "num_relative_distance", "resolution", "target_shift_size",
})
# fmt: on
_READOUT = re.compile(
    r"^(head|heads|head_dist|heads_dist|aux_head|fc|classifier|classif|last_linear|pre_logits|global_pool|flatten|fc_norm"
    r"|head_drop|norm_head|head_hidden_size|conv_head)(\.|:|$)"
)
_ATTENTION = re.compile(r"attn|attention|mhsa|shsa|shma", re.IGNORECASE)
_GATES = frozenset({"SplitAttn", "SelectiveKernelAttn", "SpatialAttention", "BilinearAttnTransform", "BatNonLocalAttn"})
"""Modules of convolutional networks that are called attention and weigh channels or scales, no tokens."""
_MARKS = ("num_heads", "fused_attn")
"""Attributes that only attention has, whatever its class is called."""
_LONGEST = 64


def facts(model: nn.Module) -> dict[str, Fact]:
    """The facts of a model (one built on the meta device will do), a list where they differ from layer to layer."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    gathered: defaultdict[str, list[Fact]] = defaultdict(list)
    for name, module in model.named_modules():
        place = pattern(name)
        gathered[f"{place}:class"].append(type(module).__name__)
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or attribute in _WITHOUT_EFFECT | _FROM_IMAGE_SIZE:
                continue
            if attribute == "window_size" and grid is not None and _plain(value) == _plain(grid):
                continue  # BEiT: the window is the whole image
            plain = _plain(value)
            if plain is not NotImplemented:
                gathered[f"{place}:{attribute}"].append(plain)
    relevant = {key: values for key, values in gathered.items() if not _READOUT.match(key.removeprefix(":"))}
    return {key: _merged(values) for key, values in relevant.items()}


def attends(model: nn.Module) -> bool:
    """Whether a model has attention between tokens, as far as its modules' names and heads tell."""
    for module in model.modules():
        kind = type(module).__name__
        if (_ATTENTION.search(kind) and kind not in _GATES) or not vars(module).keys().isdisjoint(_MARKS):
            return True
    return False


def _plain(value: object) -> Fact:
    """A value as JSON takes it; NotImplemented for tensors, modules and other objects."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return round(value, 9)
    if isinstance(value, functools.partial):
        return f"{value.func.__name__}{sorted(value.keywords.items())}"
    if inspect.isclass(value) or inspect.isfunction(value):
        return str(value.__name__)
    if isinstance(value, (tuple, list, torch.Size)) and len(value) < _LONGEST:
        items = [_plain(item) for item in value]
        if not any(item is NotImplemented for item in items):
            return _merged(items)
    return NotImplemented  # type: ignore[no-any-return]  # no value of its own: None is a fact


def _merged(values: list[Fact]) -> Fact:
    """One value where all are equal: (3, 3) and 3 say the same of a kernel."""
    return values[0] if values and all(value == values[0] for value in values) else values
