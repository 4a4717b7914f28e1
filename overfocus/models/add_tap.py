"""`add_tap`: token-aware average pooling in front of the attention of an existing timm model, and timm's names with it.

timm's ViT, DeiT and Swin are registered with TAP in every block as `tap_` and the name of the original.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg
from timm.models.beit import Beit
from timm.models.beit import Block as BeitBlock
from timm.models.cait import Cait
from timm.models.cait import LayerScaleBlock as CaitBlock
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer import checkpoint_filter_fn as swin_weights
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.swin_transformer_v2_cr import SwinTransformerV2CrBlock
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as vit_weights
from timm.models.vision_transformer_relpos import RelPosBlock, ResPostRelPosBlock, VisionTransformerRelPos
from timm.models.xcit import XCABlock, Xcit
from torch import Tensor, nn
from torch.fx import Proxy

from overfocus.capturing.watching import in_backward
from overfocus.errors import OverfocusError
from overfocus.models.layers import held_statistics, register_entry_point
from overfocus.models.tap import DilationPredictor, TokenPooling, pool_tokens
from overfocus.settings import typed

INITS = ("default", "identity")


@typed(OverfocusError)
def add_tap(
    model: nn.Module,
    branches: int = 4,
    layers: Sequence[int] | None = None,
    init: str = "default",
    pooling: str = "average",
) -> nn.Module:
    """Put TAP in front of the attention of a timm ViT, DeiT, BEiT, EVA, CaiT, XCiT or Swin; changes `model` and returns it.

    The pooled tokens feed the norm and attention, the residual bypasses them, prefix tokens stay as they are, as in the
    paper; Swin pools the whole grid before it is cut into windows. Existing weights keep their names, and each block gains
    `dilation_predictor.proj.*` (and `token_pools.*` for a pooling other than "average").

    XCiT attends over channels: there TAP smooths what the channels are compared on, which is not what the paper studies. The
    class attention of CaiT and XCiT is left alone.

    Args:
        model: a timm model, or a model that contains one.
        branches: K, the number of neighbourhoods to choose from, dilations 0 … K−1.
        layers: which blocks, counted from 0 in order (negative from the end); all of them by default.
        init: "default" starts the predictor at random as in the paper. "identity" starts it with all but 1e-6 of the weight on
            the token itself, so that a pretrained model keeps its output and can be fine-tuned from there.
        pooling: "average" (the paper), "max", "gaussian" or "learned", see `TokenPooling`.

    Raises:
        OverfocusError: the model has no patch grid known here, or blocks without a place in front of the attention alone.
        ValueError: fewer than one branch, no such layer, init or pooling, or a block that has TAP already.
    """
    if init not in INITS:
        raise ValueError(f"expected init to be one of {', '.join(INITS)}, got {init!r}")
    sites = find_sites(model)
    if not sites:
        raise OverfocusError(
            f"expected a timm model of the families {', '.join(FAMILIES)}, got {type(model).__name__}, "
            "which has no patch grid known here; build TokenAwareAveragePooling into its blocks instead"
        )
    chosen = range(len(sites)) if layers is None else layers
    for layer in chosen:
        if not -len(sites) <= layer < len(sites):
            raise ValueError(f"expected layers from 0 to {len(sites) - 1}, got {layer}")
        if hasattr(sites[layer].block, "dilation_predictor"):
            raise ValueError(f"expected a model without TAP in layer {layer}, got one that has it; add it once")
    for layer in dict.fromkeys(layer % len(sites) for layer in chosen):
        site = sites[layer]
        predictor = DilationPredictor(site.channels, branches)
        pools = TokenPooling(site.channels, branches, pooling)
        if init == "identity":
            predictor.favour_identity()
        reference = next(site.block.parameters())
        for name, module in (("dilation_predictor", predictor), ("token_pools", pools)):
            module.to(reference.device, reference.dtype).train(site.block.training)
            site.block.add_module(name, module)
        site.connect()
    return model


FAMILIES = ("ViT", "DeiT", "BEiT", "EVA", "CaiT", "XCiT", "Swin")

# The module of a block that is first to see the residual stream on its way to the attention, and nothing else.
_ENTRANCES: dict[type[nn.Module], str] = {
    Block: "norm1",
    BeitBlock: "norm1",
    EvaBlock: "norm1",
    CaitBlock: "norm1",
    XCABlock: "norm1",
    RelPosBlock: "norm1",
    ResPostBlock: "attn",
    EvaBlockPostNorm: "attn",
    ResPostRelPosBlock: "attn",
}


class PatchGrids:
    """Patch grids of the images that a model has embedded, by number of patches; `note_grid` fills it.

    They are kept by number, not as one latest grid, because activation checkpointing runs blocks again after other images
    of other sizes have been embedded.
    """

    def __init__(self, patch_embed: nn.Module) -> None:
        self.patch_embed = patch_embed
        self.known: dict[int, tuple[int, int]] = {}

    @staticmethod
    def of_model(patch_embed: Any) -> "PatchGrids":
        """The one grid memory of a patch embedding, hooked into it when first asked for."""
        if not hasattr(patch_embed, "patch_grids"):
            patch_embed.patch_grids = PatchGrids(patch_embed)
            patch_embed.register_forward_hook(note_grid)
        grids: PatchGrids = patch_embed.patch_grids
        return grids

    def note(self, images: Any, output: Any) -> None:
        """Note the grid of the images given."""
        if isinstance(images, Proxy):
            return
        patch_embed: Any = self.patch_embed
        # XCiT returns its grid beside the patches.
        sizes = output[1] if isinstance(output, tuple) else patch_embed.dynamic_feat_size(tuple(images.shape[-2:]))
        rows, columns = (int(size) for size in sizes)  # a tracer has tensors here
        self.known[rows * columns] = (rows, columns)

    def of(self, patches: int) -> tuple[int, int]:
        """The grid of that many patches.

        Raises:
            ValueError: no image had that many patches.
        """
        if patches not in self.known:
            sizes = ", ".join(f"{rows} × {columns}" for rows, columns in self.known.values())
            raise ValueError(
                f"expected patch tokens that fill the grid {sizes}, got {patches}; TAP cannot work with dropped patches"
            )
        return self.known[patches]

    @property
    def fixed(self) -> tuple[int, int]:
        """The grid of the size the model was built for, for graphs that are made without an image (TorchScript, torch.fx)."""
        rows, columns = self.patch_embed.grid_size  # type: ignore[misc]
        return int(rows), int(columns)


def note_grid(self: Any, input: tuple[Tensor], output: Tensor) -> None:
    """Forward hook of a patch embedding; a plain function with these names, because TorchScript takes no other."""
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        self.patch_grids.note(input[0], output)


class PoolTokens:
    """Forward pre-hook of a block's entrance: hands it the pooled tokens."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replaces the tokens (batch, tokens, channels) among the arguments."""
        return pool_block_tokens(self.block, args[0]), *args[1:]


class PoolGrid:
    """Forward pre-hook of the first norm of a Swin block: hands it the pooled grid."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replaces the grid (batch, rows, columns, channels) among the arguments."""
        return pool_grid(self.block, args[0]), *args[1:]


def pool_block_tokens(block: Any, tokens: Tensor) -> Tensor:
    """Pools the patches among tokens (batch, tokens, channels) on the grid that the model has embedded."""
    grids: PatchGrids = block.patch_grids
    traced = isinstance(tokens, Proxy)
    grid = grids.fixed if traced else grids.of(int(tokens.shape[1]) - block.prefix_tokens)
    return _pool(block, tokens, grid, block.prefix_tokens)


def pool_grid(block: nn.Module, grid: Tensor) -> Tensor:
    """Pools a grid (batch, rows, columns, channels), the form that Swin's blocks work on."""
    rows, columns = grid.shape[1], grid.shape[2]
    size = (rows, columns) if isinstance(grid, Proxy) else (int(rows), int(columns))
    return torch.unflatten(_pool(block, grid.flatten(1, 2), size), 1, size)


def _pool(block: Any, tokens: Tensor, grid: tuple[int, int], prefix_tokens: int = 0) -> Tensor:
    # Timm's activation checkpoints run a block again in the backward pass, which must not count in the batch norm's statistics.
    again = not torch.compiler.is_compiling() and in_backward()
    with held_statistics(block.dilation_predictor) if again else nullcontext():
        return pool_tokens(block.dilation_predictor, block.token_pools, tokens, grid, prefix_tokens)


class PooledBlock(Block):
    """timm's block of ViT and DeiT with TAP, written out so that TorchScript can compile it, which takes no hooks with state."""

    def __prepare_scriptable__(self) -> "PooledBlock":
        self.fixed_grid = self.patch_grids.fixed  # type: ignore[union-attr]
        return self

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            prefix, patches = x[:, : self.prefix_tokens], x[:, self.prefix_tokens :]
            weights = self.dilation_predictor(patches, self.fixed_grid)  # type: ignore[operator]
            pools = self.token_pools(patches, weights, self.fixed_grid)  # type: ignore[operator]
            pooled = torch.cat([prefix, pools], dim=1)
        else:
            pooled = pool_block_tokens(self, x)
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(pooled), attn_mask=attn_mask, is_causal=is_causal)))
        out: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return out


class PooledSwinBlock(SwinTransformerBlock):
    """timm's Swin block with TAP on the whole grid, written out for TorchScript too."""

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[1], x.shape[2])
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            patches = x.flatten(1, 2)
            weights = self.dilation_predictor(patches, grid)  # type: ignore[operator]
            pooled = torch.unflatten(self.token_pools(patches, weights, grid), 1, grid)  # type: ignore[operator]
        else:
            pooled = pool_grid(self, x)
        attended: Tensor = self._attn(self.norm1(pooled))  # type: ignore[no-untyped-call]
        tokens = (x + self.drop_path1(attended)).flatten(1, 2)
        return torch.unflatten(tokens + self.drop_path2(self.mlp(self.norm2(tokens))), 1, grid)


class PooledSwinV2Block(SwinTransformerV2Block):
    """A Swin v2 block with TAP: its norm comes after the attention, so no module sees the whole grid before the windows."""

    def _attn(self, x: Tensor) -> Tensor:
        attended: Tensor = super()._attn(pool_grid(self, x))
        return attended


class PooledSwinV2CrBlock(SwinTransformerV2CrBlock):
    """The same for timm's other Swin v2."""

    def _shifted_window_attn(self, x: Tensor) -> Tensor:
        attended: Tensor = super()._shifted_window_attn(pool_grid(self, x))  # type: ignore[no-untyped-call]
        return attended


@dataclass(frozen=True)
class Site:
    """A block that can take TAP: once it has its `dilation_predictor` and `token_pools`, `connect` puts them to use."""

    block: nn.Module
    channels: int
    connect: Callable[[], None]


def find_sites(model: nn.Module) -> list[Site]:
    """Every block of `model` that can take TAP, in order; empty where there is no known model in it.

    Raises:
        OverfocusError: a known model has no patch grid, or blocks that cannot take TAP.
    """
    sites: list[Site] = []
    for module in model.modules():
        if isinstance(module, (VisionTransformer, VisionTransformerRelPos, Beit, Eva, Cait, Xcit)):
            sites += _token_sites(module)
        elif isinstance(module, SwinTransformerBlock):
            connect = partial(_become, module, PooledSwinBlock) if type(module) is SwinTransformerBlock else None
            sites.append(Site(module, module.dim, connect or partial(_connect_grid, module)))
        elif isinstance(module, SwinTransformerV2Block):
            sites.append(Site(module, module.dim, partial(_become, module, PooledSwinV2Block)))
        elif isinstance(module, SwinTransformerV2CrBlock):
            sites.append(Site(module, module.dim, partial(_become, module, PooledSwinV2CrBlock)))
    return sites


def _token_sites(model: Any) -> list[Site]:
    patch_embed = model.patch_embed
    if not isinstance(model, Xcit) and not hasattr(patch_embed, "dynamic_feat_size"):
        kind = type(patch_embed).__name__
        raise OverfocusError(f"expected a patch embedding with a patch grid, got {kind}, which does not state one; TAP needs it")
    prefix_tokens = 0 if isinstance(model, (Cait, Xcit)) else model.num_prefix_tokens  # their class token joins later
    sites = []
    for block in model.blocks:
        entrance = next((name for kind, name in _ENTRANCES.items() if isinstance(block, kind)), None)
        if entrance is None:
            raise OverfocusError(
                f"expected blocks with a place in front of the attention alone, got {type(block).__name__}; "
                "build TokenAwareAveragePooling into it instead"
            )
        sites.append(Site(block, model.embed_dim, partial(_connect_tokens, block, entrance, patch_embed, prefix_tokens)))
    return sites


def _connect_tokens(block: Any, entrance: str, patch_embed: nn.Module, prefix_tokens: int) -> None:
    block.patch_grids = PatchGrids.of_model(patch_embed)
    block.prefix_tokens = prefix_tokens
    if type(block) is Block and "is_causal" in inspect.signature(Block.forward).parameters:  # as in recent timm
        _become(block, PooledBlock)
    else:
        block.get_submodule(entrance).register_forward_pre_hook(PoolTokens(block))


def _connect_grid(block: nn.Module) -> None:
    block.get_submodule("norm1").register_forward_pre_hook(PoolGrid(block))


def _become(block: nn.Module, kind: type[nn.Module]) -> None:
    block.__class__ = kind


BASES = (
    *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")),
    *(f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")),
    *(f"deit_{size}_distilled_patch16_224" for size in ("tiny", "small", "base")),
    *(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")),
)
# Where weights come from, and what they are called: the base's own, which `pretrained=True` takes where no file is given.
_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "tag", "architecture")


def create_with_tap(
    base: str,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    num_scales: int = 4,
    pooling: str = "average",
    init: str | None = None,
    **arguments: Any,
) -> nn.Module:
    """The timm model `base` with `num_scales` (K) TAP branches in every block; `arguments` go to timm.

    With `pretrained` the body has timm's weights of `base`, or those of the file that a `pretrained_cfg_overlay` names. Where
    they have none for TAP, its `init` is "identity" by default, so that the model starts with the output of `base`; without
    `pretrained` it is "default", see `add_tap`.
    """
    swin = base.startswith("swin")
    convert: Any = swin_weights if swin else partial(vit_weights, adapt_layer_scale=base.startswith("deit"))

    def build(**options: Any) -> nn.Module:
        model = timm.create_model(base, **options)
        return add_tap(model, num_scales, pooling=pooling, init=init or ("identity" if pretrained else "default"))

    def with_tap(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        converted: dict[str, Tensor] = convert(state_dict, model)
        if any(".dilation_predictor." in name for name in converted):
            return converted
        modules = [name for name, _ in model.named_modules() if name.endswith(("dilation_predictor", "token_pools"))]
        fronts = tuple(f"{name}." for name in modules)
        own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(fronts)}
        return {**own, **converted}

    if pretrained and pretrained_cfg is None:
        config: Any = timm.get_pretrained_cfg(base)
        pretrained_cfg = {**config.to_dict(), "architecture": f"tap_{base}"}
    model: nn.Module = build_model_with_cfg(
        build,
        f"tap_{base}",
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_filter_fn=with_tap,
        feature_cfg={"feature_cls": "getter", "out_indices": (0, 1, 2, 3) if swin else 3},
        **arguments,
    )
    return model


def _config(base: str) -> dict[str, Any]:
    config: Any = timm.get_pretrained_cfg(base)
    return {name: value for name, value in config.to_dict().items() if name not in _SOURCES}


for _base in BASES:
    register_entry_point(__name__, f"tap_{_base}", partial(create_with_tap, _base), _config(_base))
