"""Backbones that give feature levels for dense prediction: FAN-Hybrid as the paper uses it, and any timm model."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overfocus.models.fan import Fan
from overfocus.models.patch_grid import to_maps, to_tokens


class FanLevels(Fan):
    """FAN-Hybrid without norm and classifier; image → four maps of stride 4, 8, 16 and 16.

    The first two come from the convolutional stem, the third from token block `out_block`, and the fourth holds the patch
    tokens behind the class-attention blocks, which move patches without regard to the class token. What only the class token
    would use stays in the checkpoint and takes no gradient.
    """

    def __init__(self, out_block: int, **arguments: Any) -> None:
        super().__init__(num_classes=0, paired_frequencies=False, **arguments)
        self.norm = nn.Identity()  # type: ignore[assignment]
        self.out_block = out_block
        self.cls_token.requires_grad_(False)
        for block in self.cls_attn_blocks:
            block.requires_grad_(False)
            for part in (block.gamma1, block.norm1, block.norm2):
                part.requires_grad_(True)
        width = self.num_features
        self.channels = (*self.patch_embed.backbone.channels, width, width)  # type: ignore[union-attr, misc]

    def forward(self, images: Float[Tensor, "batch in_chans height width"]) -> list[Tensor]:  # type: ignore[override]
        *levels, maps = self.patch_embed.levels(images.contiguous(memory_format=torch.channels_last))  # type: ignore[operator]
        grid = (maps.shape[2], maps.shape[3])
        embedded = to_tokens(maps) + self.pos_embed(grid)
        tokens = embedded
        for index, (tokens, _) in enumerate(self.token_maps(embedded, grid)):
            if index == self.out_block:
                levels.append(to_maps(tokens, grid))
        blocks: Any = self.cls_attn_blocks
        for block in blocks:
            tokens = 2 * block.norm2(torch.addcmul(tokens, block.gamma1, block.norm1(tokens)))
        return [*levels, to_maps(tokens, grid)]


class TimmLevels(nn.Module):
    """Feature levels of any timm model with intermediate features, finest first.

    Pyramids (Swin, PVT and the like) give their last four sizes. Models of fewer sizes (ViT has one) give four layers evenly
    spaced up to the last one.

    Raises:
        ValueError: if the model gives no intermediate features.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        info: Any = getattr(model, "feature_info", None)
        if not hasattr(model, "forward_intermediates") or info is None:
            raise ValueError(f"expected a timm model with forward_intermediates (ViT, Swin, PVT …), got {type(model).__name__}")
        self.model = model
        described = list(info)
        last_of_size = {level["reduction"]: index for index, level in enumerate(described)}
        if len(last_of_size) >= 4:
            self.indices = list(last_of_size.values())[-4:]
        else:
            self.indices = [(len(described) * part + 3) // 4 - 1 for part in (1, 2, 3, 4)]
        self.channels = tuple(described[index]["num_chs"] for index in self.indices)

    def no_weight_decay(self) -> set[str]:
        """Parameters with more than one axis that take no weight decay."""
        listed = getattr(self.model, "no_weight_decay", set)
        return {f"model.{name}" for name in listed()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of the blocks for the backward pass."""
        model: Any = self.model
        model.set_grad_checkpointing(enable)

    def forward(self, images: Float[Tensor, "batch in_chans height width"]) -> list[Tensor]:
        model: Any = self.model
        each = sorted(set(self.indices))  # of fewer than four layers some are levels twice
        levels: list[Tensor] = model.forward_intermediates(images, indices=each, output_fmt="NCHW", intermediates_only=True)
        return [levels[each.index(index)] for index in self.indices]
