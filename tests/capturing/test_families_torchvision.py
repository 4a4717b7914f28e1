"""torchvision's transformers; windows are rebuilt with numpy, since torchvision keeps its partition inside a function."""

import numpy as np
import pytest
import torch

torchvision = pytest.importorskip("torchvision")
models = torchvision.models


def tiled(grid, size, shift):
    """torchvision's Swin pads below and to the right, then rolls, then cuts into squares."""
    numbers = np.arange(grid[0] * grid[1]).reshape(grid)
    numbers = np.pad(numbers, ((0, -grid[0] % size), (0, -grid[1] % size)), constant_values=-1)
    numbers = np.roll(numbers, (-shift, -shift), (0, 1))
    rows, columns = numbers.shape
    cut = numbers.reshape(rows // size, size, columns // size, size).transpose(0, 2, 1, 3)
    return torch.from_numpy(cut.reshape(-1, size * size))


def test_vision_transformer(family):
    model = models.VisionTransformer(image_size=64, patch_size=16, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=96)
    expected = family.sites(
        "encoder.layers.encoder_layer_{}.self_attention", range(2), "global", 3, (4, 4), prefix=1, key_prefix=1
    )
    family.check(family.sharpen(model), family.images(64), expected, unfused=None)


@pytest.mark.parametrize(("version", "rows", "columns"), [(1, 112, 112), (2, 112, 112), (1, 96, 128), (2, 96, 128)])
def test_swin(family, version, rows, columns):
    blocks = {} if version == 1 else {
        "block": models.swin_transformer.SwinTransformerBlockV2, "downsample_layer": models.swin_transformer.PatchMergingV2
    }  # fmt: skip
    model = models.SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[2, 2], num_heads=[1, 2], window_size=[7, 7], stochastic_depth_prob=0, **blocks
    )
    expected, grid = [], (rows // 4, columns // 4)
    for layer, heads in ((1, 1), (3, 2)):
        windows = -(-grid[0] // 7) * -(-grid[1] // 7)
        for block, branch in ((0, None), (1, "shifted")):
            expected += family.sites(
                f"features.{layer}.{{}}.attn", [block], "window", heads, (7, 7), windows=windows, image_grid=grid, branch=branch
            )
        grid = (grid[0] // 2, grid[1] // 2)
    captured = family.check(family.sharpen(model), family.images(rows, columns), expected, unfused="softmax")
    for attention, shift in zip(captured.maps, (0, 3, 0, 3), strict=True):
        assert torch.equal(attention.partition, tiled(attention.image_grid, 7, shift))


def test_maxvit(family):
    model = models.MaxVit(
        input_size=(112, 112), stem_channels=16, partition_size=7, block_channels=[16, 32], block_layers=[1, 1], head_dim=16,
        stochastic_depth_prob=0,
    )  # fmt: skip
    expected = []
    for block, heads, grid in ((0, 1, 28), (1, 2, 14)):
        for part, branch in (("window", None), ("grid", "grid")):
            expected += family.sites(
                f"blocks.{block}.layers.{{}}.layers.{part}_attention.attn_layer.1", [0], "window", heads, (7, 7),
                windows=(grid // 7) ** 2, image_grid=(grid, grid), branch=branch,
            )  # fmt: skip
    images = family.images(112)
    # torchvision's own map has an axis for windows: (batch, windows, heads, …)
    captured = family.check(family.sharpen(model, images), images, expected, unfused=None)
    for attention in captured.maps:
        step = attention.image_grid[0] // 7
        numbers = torch.arange(attention.image_grid[0] ** 2).reshape(attention.image_grid)
        if attention.branch == "grid":
            windows = torch.stack([numbers[row::step, column::step].flatten() for row in range(step) for column in range(step)])
        else:
            windows = tiled(attention.image_grid, 7, 0)
        assert torch.equal(attention.partition, windows)
