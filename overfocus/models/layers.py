"""What the models here share: shapes of tensors, tokens seen as maps, activation checkpointing, timm's interface and registry."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import global_pool_nlc
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

# Plain names for tensors of one shape: TorchScript, which these models support as timm's do, reads no jaxtyping.
Images = Tensor
"""(batch, in_chans, height, width)"""
Maps = Tensor
"""(batch, channels, rows, columns); on a sequence (batch, channels, length)"""
Tokens = Tensor
"""(batch, tokens, channels), row-major over the patch grid"""
if TYPE_CHECKING:
    Grid = tuple[int, ...]
else:
    Grid = list[int]  # TorchScript's sequence of any length, which takes a tuple too
"""(rows, columns) of the patches, or (length,) of a sequence"""


def to_maps(tokens: Tokens, grid: Grid) -> Maps:
    """View row-major tokens as maps; contiguous tokens give a map in channels-last memory format."""
    return torch.unflatten(tokens.transpose(1, 2), 2, grid)


def to_tokens(maps: Maps) -> Tokens:
    """View maps as row-major tokens; a map in channels-last memory format gives contiguous tokens."""
    return maps.flatten(2).transpose(1, 2)


def run_block(block: nn.Module, *inputs: object, checkpointed: bool) -> Tensor:
    """Return `block(*inputs)`; `checkpointed` keeps only its inputs and runs it again in the backward pass.

    The second run would move the running mean and variance of each batch norm a second time; they are held still for it.
    """
    out: Tensor
    if not (checkpointed and torch.is_grad_enabled()):
        out = block(*inputs)
    elif torch.compiler.is_compiling():  # the compiler repeats no update of a buffer and takes no context
        out = checkpoint(block, *inputs, use_reentrant=False)
    else:
        out = checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), held_statistics(block)))
    return out


@contextmanager
def held_statistics(block: nn.Module) -> Iterator[None]:
    """Leave the running statistics of every batch norm in `block` as they are, whatever it runs meanwhile."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [(count, count.clone()) for norm in norms if (count := norm.num_batches_tracked) is not None]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for count, before in counts:
            count.copy_(before)


class Classifier(nn.Module):
    """What timm expects of a classifier: head, pooling, intermediate features.

    A family has `feature_info`, one entry per level (block or stage), the modules `norm`, `head_drop` and `head`, and the methods
    `walk` (image → features of chosen levels), `finish` (features of the last level → `forward_features`) and `keep_levels`.
    """

    POOLINGS: tuple[str, ...] = ("", "avg", "avgmax", "max")
    FORMATS: tuple[str, ...] = ("NCHW", "NLC")
    output_fmt = "NLC"

    if TYPE_CHECKING:  # TorchScript would read these
        norm: nn.Module
        head_drop: nn.Module
        head: nn.Module

    def __init__(self, num_classes: int, in_chans: int, width: int, img_size: int | tuple[int, int], global_pool: str) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = width
        self.img_size = pair(img_size)
        self.global_pool = global_pool
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = []
        self.depth = 0  # levels that are left after `prune_intermediate_layers`

    def walk(self, images: Images, taken: list[int], last: int) -> tuple[Tensor, list[Tokens], list[tuple[int, int]]]:
        """Run the levels up to number `last`: what the last one gives, and tokens and grids of those in `taken`."""
        raise NotImplementedError

    def finish(self, features: Tensor) -> Tensor:
        """What `forward_features` makes of the last level's output."""
        raise NotImplementedError

    def keep_levels(self, count: int) -> None:
        """Remove every level but the first `count`."""
        raise NotImplementedError

    def make_head(self, num_classes: int) -> nn.Linear:
        """A new classifier."""
        return nn.Linear(self.num_features, num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in the place of the old one; none for 0 classes, and no pooling for `global_pool=""`.

        Raises:
            ValueError: this family has no such pooling.
        """
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in self.POOLINGS:
            raise ValueError(f"expected global_pool to be one of {', '.join(map(repr, self.POOLINGS))}, got {pool!r}")
        self.num_classes = num_classes
        self.global_pool = pool
        like = next(self.parameters())
        head = self.make_head(num_classes) if num_classes > 0 else nn.Identity()
        self.head = head.to(like.device, like.dtype).train(self.training)

    def get_classifier(self) -> nn.Module:
        """The last layer, from features to logits."""
        return self.head

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of the blocks for the backward pass."""
        self.grad_checkpointing = enable

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Make the model one for images of another size; what depends on the size is resampled.

        Raises:
            ValueError: a patch size is given, which the convolutions of the stem fix.
        """
        if patch_size is not None:
            raise ValueError(f"expected no patch_size, since the stem's convolutions fix it, got {patch_size}")
        if img_size is not None:
            self.img_size = pair(img_size)
            self._traits = {**getattr(self, "_traits", {}), "img_size": self.img_size}  # where timm looks the size up

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the levels after the last one in `indices` (an int: the last so many), and norm and head where asked for.

        Returns:
            The numbers of the levels in `indices`, counted from the first.
        """
        taken, last = feature_take_indices(self.depth, indices)
        shortened = last + 1 < self.depth
        if shortened:
            self.keep_levels(last + 1)
            self.depth = last + 1
        width = self.feature_info[last]["num_chs"]
        if prune_norm or width != self.num_features:
            self.norm = nn.Identity()  # it is made for the width of the last level
        if shortened:
            self.num_features = self.head_hidden_size = width
        if prune_head or shortened:
            self.reset_classifier(0, "")
        kept: list[int] = taken
        return kept

    def forward_intermediates(
        self,
        x: Images,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]] | dict[str, Tensor | list[Tensor]]:
        """Features after chosen levels (an int: the last so many), with arguments and results as in timm's own models.

        `norm` applies the final norm to the features that have its width. No level here has prefix tokens, so that
        `return_prefix_tokens` adds nothing. `stop_early` leaves out the later levels where only the features are wanted.

        Raises:
            ValueError: this family's features have no such format.
        """
        del return_prefix_tokens
        if output_fmt not in self.FORMATS:
            raise ValueError(f"expected output_fmt {' or '.join(map(repr, self.FORMATS))}, got {output_fmt!r}")
        taken, last = feature_take_indices(self.depth, indices)
        stopped = stop_early and intermediates_only
        features, levels, grids = self.walk(x, taken, last if stopped else self.depth - 1)
        intermediates = []
        for tokens, grid in zip(levels, grids, strict=True):
            level = self.norm(tokens) if norm and tokens.shape[-1] == self.num_features else tokens
            if output_fmt == "NCHW":
                level = to_maps(level, grid)
            elif output_fmt == "NHWC":
                level = torch.unflatten(level, 1, grid)
            intermediates.append(level)
        if output_dict:
            found: dict[str, Tensor | list[Tensor]] = {"image_intermediates": intermediates}
            return found if intermediates_only else {**found, "image_features": self.finish(features)}
        return intermediates if intermediates_only else (self.finish(features), intermediates)

    def forward_features(self, x: Images) -> Tensor:
        """Features after the last level, unpooled."""
        taken: list[int] = []
        return self.finish(self.walk(x, taken, self.depth - 1)[0])

    def pool(self, features: Tensor) -> Tensor:
        """(batch, num_features) by `global_pool`, or all features as they are where that is empty."""
        pooled: Tensor = global_pool_nlc(features, self.global_pool, num_prefix_tokens=0)
        return pooled

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, or what goes into the classifier."""
        pooled = self.head_drop(self.pool(features))
        logits: Tensor = pooled if pre_logits else self.head(pooled)
        return logits

    def forward(self, x: Images) -> Tensor:
        return self.forward_head(self.forward_features(x))


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size that may be given as one number."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


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
