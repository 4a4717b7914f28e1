"""FAN-Swin: a Swin transformer (Liu et al. 2021) whose first three stages have channel processing in the place of the MLP.

Windows, shifts and relative positions are timm's; parameter names and shapes are those of the reference of "Robustifying
Token Attention for Vision Transformers" (ICCV 2023), whose `tap_fan_swin_*` are the same networks without TAP. Here
`num_scales` above 1 puts real TAP on the whole grid, in front of the windows.
"""

import math
from functools import partial
from typing import Any, Final

import torch
from timm.layers import PatchEmbed, global_pool_nlc, register_notrace_function
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock, window_partition
from torch import Tensor, nn

from overfocus.models.blocks import ChannelProcessing
from overfocus.models.layers import Classifier, Grid, Images, Tokens, pretrained_config, register_architecture, run_block
from overfocus.models.tap import DilationPredictor, TokenPooling


class FanSwinBlock(SwinTransformerBlock):
    """timm's Swin block on (batch, rows, columns, channels), with channel processing and TAP where asked for."""

    channel_processing: Final[bool]

    def __init__(
        self,
        dim: int,
        input_resolution: tuple[int, int],
        num_heads: int,
        channel_processing: bool,
        num_scales: int = 1,
        window_size: int = 7,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        **options: Any,
    ) -> None:
        drops: dict[str, Any] = {"proj_drop": proj_drop, "attn_drop": attn_drop}
        super().__init__(dim, input_resolution, num_heads, window_size=window_size, dynamic_mask=True, **drops, **options)
        self.full_window = (window_size, window_size)
        self.store_tables(input_resolution)
        self.channel_processing = channel_processing
        if channel_processing:
            mlp = ChannelProcessing(dim, num_heads, residual=False, drop=proj_drop, attn_drop=attn_drop)
            self.mlp = mlp  # type: ignore[assignment]
        self.dilation_predictor: DilationPredictor | None = None
        if num_scales > 1:
            self.dilation_predictor = DilationPredictor(dim, num_scales)
            self.token_pools = TokenPooling(dim, num_scales)

    def resize(self, grid: tuple[int, int]) -> None:
        """Make the block one for maps of that grid, (rows, columns), with windows as large as before where they fit."""
        self.set_input_size(grid, self.full_window)
        self.store_tables(grid)

    def store_tables(self, grid: tuple[int, int]) -> None:
        """Keep two buffers in checkpoints as the reference does, unlike timm: the relative positions, and the mask of shifted
        windows for maps of that grid, padded to whole windows.
        """
        attention: Any = self.attn
        attention.register_buffer("relative_position_index", attention.relative_position_index)
        window, shift = self.window_size, self.shift_size
        self.padded = tuple(math.ceil(length / side) * side for length, side in zip(grid, window, strict=True))
        like: Any = self.norm1.weight
        mask = shifted_window_mask(self.padded, window, shift).to(like.device, like.dtype) if any(shift) else None
        self.register_buffer("attn_mask", mask)

    def get_attn_mask(  # with the arguments of timm's
        self,
        x: Tensor | None = None,
        device: torch.device | None = None,  # noqa: ARG002
        dtype: torch.dtype | None = None,  # noqa: ARG002
    ) -> Tensor | None:
        """Mask of shifted windows, (windows, tokens, tokens); None for a block that does not shift."""
        if self.attn_mask is None or x is None:
            return None
        mask: Tensor = fitting_mask(x, self.attn_mask, self.padded, self.window_size, self.shift_size)
        return mask

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[1], x.shape[2])
        pooled = x
        if self.dilation_predictor is not None:
            tokens = x.flatten(1, 2)
            weights = self.dilation_predictor(tokens, grid)
            pooled = torch.unflatten(self.token_pools(tokens, weights, grid), 1, grid)
        attended: Tensor = self._attn(self.norm1(pooled))  # type: ignore[no-untyped-call]
        tokens = (x + self.drop_path1(attended)).flatten(1, 2)
        normed = self.norm2(tokens)
        if self.channel_processing:
            tokens = tokens + self.drop_path2(self.mlp(normed, grid))
        else:
            tokens = tokens + self.drop_path2(self.mlp(normed))
        return torch.unflatten(tokens, 1, grid)


@register_notrace_function  # type: ignore[untyped-decorator]
def fitting_mask(maps: Tensor, stored: Tensor, padded: Grid, window: Grid, shift: Grid) -> Tensor:
    """The stored mask where it was made for the size of these maps (batch, rows, columns, channels), else one made now."""
    if maps.shape[1] == padded[0] and maps.shape[2] == padded[1]:
        return stored.to(maps.dtype)
    return shifted_window_mask((maps.shape[1], maps.shape[2]), window, shift, maps.device).to(maps.dtype)


def shifted_window_mask(grid: Grid, window: Grid, shift: Grid, device: torch.device | None = None) -> Tensor:
    """What is added to the attention logits of shifted windows, (windows, tokens, tokens): −100 between tokens that the roll
    brought together from opposite borders.
    """
    rows, columns = torch.arange(grid[0], device=device), torch.arange(grid[1], device=device)
    by_row = (rows >= grid[0] - window[0]).float() + (rows >= grid[0] - shift[0]).float()
    by_column = (columns >= grid[1] - window[1]).float() + (columns >= grid[1] - shift[1]).float()
    regions = window_partition((3 * by_row[:, None] + by_column)[None, :, :, None], (window[0], window[1])).flatten(1)
    apart = regions[:, :, None] != regions[:, None, :]
    return torch.zeros(apart.shape, device=device).masked_fill(apart, -100.0)


class FanSwinStage(nn.Module):
    """The blocks of one width, every second one shifted, and the merging of patches 2×2 after them."""

    def __init__(self, blocks: list[FanSwinBlock], merge_from: int | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample: nn.Module = nn.Identity() if merge_from is None else PatchMerging(merge_from)
        self.grad_checkpointing = False

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (batch, rows, columns, channels) after the blocks; the merging is the model's to call."""
        for block in self.blocks:
            if torch.jit.is_scripting():  # type: ignore[attr-defined]
                maps = block(maps)
            else:
                maps = run_block(block, maps, checkpointed=self.grad_checkpointing)
        return maps


class FanSwin(Classifier):
    """FAN-Swin classifier; (batch, in_chans, height, width) → (batch, num_classes).

    The checkpoint holds window masks for images of `img_size`; for other sizes they are made on the way, and windows that
    reach over the border are padded with zeros, so that `dynamic_img_size` is accepted and changes nothing.
    """

    FORMATS = ("NCHW", "NHWC")
    output_fmt = "NHWC"

    def __init__(
        self,
        embed_dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        window_size: int = 7,
        num_scales: int = 1,
        img_size: int | tuple[int, int] = 224,
        dynamic_img_size: bool = True,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__(num_classes, in_chans, embed_dim * 2 ** (len(depths) - 1), img_size, global_pool)
        del dynamic_img_size
        self.embed_dim = embed_dim
        self.patch_embed = PatchEmbed(
            self.img_size,
            patch_size=4,
            in_chans=in_chans,
            embed_dim=embed_dim,
            norm_layer=nn.LayerNorm,
            output_fmt="NHWC",
            strict_img_size=False,
            dynamic_img_pad=True,
        )
        rates = (drop_path_rate * number / max(1, sum(depths) - 1) for number in range(sum(depths)))
        self.layers = nn.ModuleList()
        for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            channels, last = embed_dim * 2**stage, stage == len(depths) - 1
            block = partial(
                FanSwinBlock,
                channels,
                self.stage_grid(stage),
                heads,
                channel_processing=not last,
                num_scales=num_scales,
                window_size=window_size,
                proj_drop=proj_drop_rate,
                attn_drop=attn_drop_rate,
            )
            blocks = [block(shift_size=window_size // 2 if index % 2 else 0, drop_path=next(rates)) for index in range(depth)]
            self.layers.append(FanSwinStage(blocks, None if last else channels))
            self.feature_info.append({"num_chs": channels, "reduction": 4 * 2**stage, "module": f"layers.{stage}"})
        self.depth = len(depths)
        self.norm = nn.LayerNorm(self.num_features)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _initialise(module)
        self.reset_classifier(num_classes)

    def stage_grid(self, stage: int) -> tuple[int, int]:
        """The grid (rows, columns) of a stage for images of `img_size`."""
        rows, columns = self.patch_embed.grid_size
        return math.ceil(rows / 2**stage), math.ceil(columns / 2**stage)

    def make_head(self, num_classes: int) -> nn.Linear:
        """A new classifier."""
        head = super().make_head(num_classes)
        _initialise(head)
        return head

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Make the model one for images of another size: windows keep their size, and stored masks are those of the new size.

        Raises:
            ValueError: a patch size is given, which the convolution of the stem fixes.
        """
        super().set_input_size(img_size, patch_size)
        self.patch_embed.set_input_size(img_size=self.img_size)
        for number, stage in enumerate(self.layers):
            for block in stage.blocks:  # type: ignore[union-attr]
                block.resize(self.stage_grid(number))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of the blocks for the backward pass."""
        for stage in self.layers:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def no_weight_decay(self) -> set[str]:
        """Parameters with more than one axis that take no weight decay."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for timm's layer-wise learning rates."""
        blocks = [(r"^layers\.(\d+).downsample", (99998,)), (r"^layers\.(\d+)\.\w+\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^patch_embed", "blocks": r"^layers\.(\d+)" if coarse else blocks}

    def walk(self, images: Images, taken: list[int], last: int) -> tuple[Tensor, list[Tokens], list[tuple[int, int]]]:
        """Run the stages up to number `last`: its maps, and tokens and grids of the stages in `taken`, before their merging."""
        maps = self.patch_embed(images)
        levels: list[Tensor] = []
        grids: list[tuple[int, int]] = []
        for index, stage in enumerate(self.layers):
            if index <= last:
                maps = stage(maps)
                if index in taken:
                    levels.append(maps.flatten(1, 2))
                    grids.append((maps.shape[1], maps.shape[2]))
                if index < last:
                    maps = stage.downsample(maps)  # type: ignore[operator]
        return maps, levels, grids

    def finish(self, features: Tensor) -> Tensor:
        """Patches after the last norm, (batch, rows, columns, channels)."""
        normed: Tensor = self.norm(features)
        return normed

    def keep_levels(self, count: int) -> None:
        """Remove every stage but the first `count`."""
        self.layers = self.layers[:count]

    def pool(self, features: Tensor) -> Tensor:
        """The patches pooled by `global_pool`, or the maps as they are where it is empty."""
        if self.global_pool == "":
            return features
        pooled: Tensor = global_pool_nlc(features.flatten(1, 2), self.global_pool, num_prefix_tokens=0)
        return pooled


def _initialise(linear: nn.Linear) -> None:
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


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
    _config = pretrained_config(crop_pct=0.9, first_conv="patch_embed.proj", pool_size=(7, 7))
    _stages = (0, 1, 2, 3)
    register_architecture(__name__, _name, partial(without_tap, **_architecture), _config, out_indices=_stages)
    register_architecture(__name__, f"tap_{_name}", partial(FanSwin, **_architecture), _config, out_indices=_stages)
