"""timm's windowed transformers: which patches each window holds is rebuilt here with timm's own partition functions."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.gcvit import GlobalContextVit
from timm.models.hiera import Hiera
from timm.models.maxxvit import grid_partition
from timm.models.nest import Nest
from timm.models.swin_transformer import window_partition
from timm.models.vision_transformer_sam import window_partition as sam_window_partition

import overfocus

TINY = {"embed_dim": 24, "depths": (2, 2, 2), "num_heads": (1, 2, 4)}


def places(rows, columns):
    """The patch grid as an image (1, rows, columns, 1) of row-major numbers that begin at 1, so that 0 is padding."""
    return torch.arange(1, rows * columns + 1).reshape(1, rows, columns, 1)


def tiled(grid, size, shift=0):
    """Swin's windows: rolled, padded below and to the right, cut into squares."""
    rolled = torch.roll(places(*grid), (-shift, -shift), (1, 2))
    padded = F.pad(rolled, (0, 0, 0, -grid[1] % size, 0, -grid[0] % size))
    return window_partition(padded, (size, size)).flatten(1) - 1


def windows_first(raw, _):
    """(batch, windows, heads, …) → (batch · windows, heads, …), as Twins has its windows."""
    return raw.flatten(0, 1) if raw.ndim == 5 else raw


def heads_first(raw, _):
    """(batch, heads, windows, …) → (batch · windows, heads, …), as NesT has its blocks."""
    return raw.transpose(1, 2).flatten(0, 1) if raw.ndim == 5 else raw


def heads_in_batch(raw, attention):
    """(batch · windows · heads, …) → (batch · windows, heads, …), as SAM has them."""
    return raw.unflatten(0, (-1, attention.shape[1]))


def test_swin_puts_shifted_windows_back(family):
    model = family.sharpen(timm.create_model("swin_tiny_patch4_window7_224", img_size=112, window_size=7, **TINY))
    expected = family.sites("layers.0.blocks.{}.attn", [0], "window", 1, (7, 7), windows=16, image_grid=(28, 28))
    expected += family.sites(
        "layers.0.blocks.{}.attn", [1], "window", 1, (7, 7), windows=16, image_grid=(28, 28), branch="shifted"
    )
    expected += family.sites("layers.1.blocks.{}.attn", [0], "window", 2, (7, 7), windows=4, image_grid=(14, 14))
    expected += family.sites(
        "layers.1.blocks.{}.attn", [1], "window", 2, (7, 7), windows=4, image_grid=(14, 14), branch="shifted"
    )
    expected += family.sites("layers.2.blocks.{}.attn", range(2), "global", 4, (7, 7))  # one window: the whole image, unshifted
    captured = family.check(model, family.images(112), expected)
    for attention, shift in zip(captured.maps[:4], (0, 3, 0, 3), strict=True):
        assert torch.equal(attention.partition, tiled(attention.image_grid, 7, shift))


def test_swin_pads_images_that_windows_do_not_tile(family):
    model = family.sharpen(timm.create_model("swin_tiny_patch4_window7_224", img_size=(192, 160), window_size=7, **TINY))
    expected = []
    for layer, (heads, windows, grid) in enumerate([(1, 42, (48, 40)), (2, 12, (24, 20)), (4, 4, (12, 10))]):
        for block, branch in enumerate([None, "shifted"]):
            expected += family.sites(
                f"layers.{layer}.blocks.{{}}.attn",
                [block],
                "window",
                heads,
                (7, 7),
                windows=windows,
                image_grid=grid,
                branch=branch,
            )
    captured = family.check(model, family.images(192, 160), expected)
    for attention, shift in zip(captured.maps, (0, 3) * 3, strict=True):
        assert torch.equal(attention.partition, tiled(attention.image_grid, 7, shift))
        assert (attention.partition == -1).any()


def test_swin_v2(family):
    model = family.sharpen(timm.create_model("swinv2_tiny_window8_256", img_size=128, **TINY))
    expected = []
    for layer, (heads, windows, grid) in enumerate([(1, 16, (32, 32)), (2, 4, (16, 16))]):
        for block, branch in enumerate([None, "shifted"]):
            expected += family.sites(
                f"layers.{layer}.blocks.{{}}.attn",
                [block],
                "window",
                heads,
                (8, 8),
                windows=windows,
                image_grid=grid,
                branch=branch,
            )
    expected += family.sites("layers.2.blocks.{}.attn", range(2), "global", 4, (8, 8))
    captured = family.check(model, family.images(128), expected)
    for attention, shift in zip(captured.maps[:4], (0, 4, 0, 4), strict=True):
        assert torch.equal(attention.partition, tiled(attention.image_grid, 8, shift))


def test_swin_v2_cr(family):
    model = family.sharpen(timm.create_model("swinv2_cr_tiny_224", img_size=112, window_size=7, **TINY))
    expected = []
    for stage, (heads, windows, grid) in enumerate([(1, 16, (28, 28)), (2, 4, (14, 14))]):
        for block, branch in enumerate([None, "shifted"]):
            expected += family.sites(
                f"stages.{stage}.blocks.{{}}.attn",
                [block],
                "window",
                heads,
                (7, 7),
                windows=windows,
                image_grid=grid,
                branch=branch,
            )
    expected += family.sites("stages.2.blocks.{}.attn", range(2), "global", 4, (7, 7))
    captured = family.check(model, family.images(112), expected)
    for attention, shift in zip(captured.maps[:4], (0, 3, 0, 3), strict=True):
        assert torch.equal(attention.partition, tiled(attention.image_grid, 7, shift))


@pytest.mark.parametrize(("name", "heads"), [("maxvit_rmlp_pico_rw_256", (1, 2, 4)), ("maxvit_tiny_tf_224", (1, 2, 4))])
def test_maxvit_has_blocks_and_grids(family, name, heads):
    model = timm.create_model(name, img_size=128, embed_dim=(32, 64, 128), depths=(1, 1, 1), block_type=("M",) * 3)
    expected, size = [], 4
    for stage, grid in enumerate([32, 16, 8]):
        for part, branch in (("block", None), ("grid", "grid")):
            expected += family.sites(
                f"stages.{stage}.blocks.{{}}.attn_{part}.attn", [0], "window", heads[stage], (size, size),
                windows=(grid // size) ** 2, image_grid=(grid, grid), branch=branch,
            )  # fmt: skip
    images = family.images(128)
    captured = family.check(family.sharpen(model, images), images, expected)
    for attention in captured.maps:
        cut = grid_partition if attention.branch == "grid" else window_partition
        assert torch.equal(attention.partition, cut(places(*attention.image_grid), (size, size)).flatten(1) - 1)


@pytest.mark.parametrize(("pixels", "windows"), [(128, 4), (96, 4)])
def test_sam_has_windows_and_global_blocks(family, pixels, windows):
    model = timm.create_model(
        "samvit_base_patch16_224", img_size=pixels, depth=2, embed_dim=48, num_heads=3, window_size=4, global_attn_indexes=(1,)
    )
    grid = (pixels // 16, pixels // 16)
    expected = family.sites("blocks.{}.attn", [0], "window", 3, (4, 4), windows=windows, image_grid=grid)
    expected += family.sites("blocks.{}.attn", [1], "global", 3, grid)
    captured = family.check(family.sharpen(model), family.images(pixels), expected, order=heads_in_batch)
    cut = sam_window_partition(places(*grid), 4)[0].flatten(1) - 1
    assert torch.equal(captured.maps[0].partition, cut)
    assert bool((cut == -1).any()) == (pixels == 96)


def test_hiera_has_mask_units(family):
    model = family.sharpen(Hiera(img_size=(64, 64), embed_dim=24, num_heads=1, stages=(1, 2, 2, 1)))
    four = {"windows": 4}
    expected = family.sites("blocks.{}.attn", [0], "window", 1, (8, 8), image_grid=(16, 16), **four)
    # the first block of a stage pools its queries two by two
    expected += family.sites("blocks.{}.attn", [1], "window", 2, (4, 4), key_grid=(8, 8), image_grid=(16, 16), **four)
    expected += family.sites("blocks.{}.attn", [2], "window", 2, (4, 4), image_grid=(8, 8), **four)
    expected += family.sites("blocks.{}.attn", [3], "window", 4, (2, 2), key_grid=(4, 4), image_grid=(8, 8), **four)
    expected += family.sites("blocks.{}.attn", [4], "global", 4, (4, 4))
    expected += family.sites("blocks.{}.attn", [5], "pooled", 8, (2, 2), key_grid=(4, 4))
    captured = family.check(model, family.images(64), expected, unfused=None)
    for attention, size in zip(captured.maps[:4], (8, 8, 4, 4), strict=True):
        assert torch.equal(attention.partition, tiled(attention.image_grid, size))
    # an unfused Hiera has the same numbers in its own order of tokens, which the next test settles
    for attention, raw in zip(captured.maps, family.unfused_maps(model, (family.images(64),), "softmax"), strict=True):
        mine, raw = attention.weights.flatten(2), heads_first(raw, attention).flatten(2)
        torch.testing.assert_close(mine.sort(-1).values, raw.sort(-1).values, rtol=0, atol=1e-5)


def test_hiera_windows_see_their_own_pixels(family):
    model = family.sharpen(Hiera(img_size=(64, 64), embed_dim=24, num_heads=1, stages=(1, 1, 1, 1)))
    images = family.images(64, batch=1)
    changed = images.clone()
    row, column = 3, 11  # inside the second mask unit, rows 0 to 7 and columns 8 to 15
    changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 3
    maps = []
    with torch.inference_mode():
        for batch in (images, changed):
            with overfocus.capture(model) as captured:
                model(batch)
            maps.append(captured.maps[0])
    before, after = (attention.weights[:, 0] for attention in maps)
    assert (before != after).flatten(1).any(1).tolist() == [False, True, False, False]
    # Weights of two keys that did not change keep their ratio for a query that did not change.
    ratio = (after[1] / before[1]).log()
    moved = (ratio - ratio.median(1, keepdim=True).values).abs() > 1e-4
    partition = maps[0].partition[1]
    # stem of 7×7 pixels, stride 4 and padding 3: a token sees three pixels up and left of its own block
    seen = {16 * y + x for y in (row, row + 1) for x in (column, column + 1)}
    assert set(partition[moved.float().mean(1) > 0.5].tolist()) == seen
    assert set(partition[moved.float().mean(0) > 0.5].tolist()) == seen


def test_gcvit_has_local_and_global_queries(family):
    model = GlobalContextVit(
        img_size=(128, 128), window_ratio=(32, 32, 32, 32), embed_dim=16, depths=(2, 2, 2, 1), num_heads=(1, 2, 4, 8), mlp_ratio=2
    )
    expected = family.sites("stages.0.blocks.{}.attn", range(2), "window", 1, (4, 4), windows=64, image_grid=(32, 32))
    expected += family.sites("stages.1.blocks.{}.attn", range(2), "window", 2, (4, 4), windows=16, image_grid=(16, 16))
    expected += family.sites("stages.2.blocks.{}.attn", range(2), "window", 4, (4, 4), windows=4, image_grid=(8, 8))
    expected += family.sites("stages.3.blocks.{}.attn", range(1), "global", 8, (4, 4))
    captured = family.check(family.sharpen(model), family.images(128), expected)
    for attention in captured.maps[:6]:
        assert torch.equal(attention.partition, tiled(attention.image_grid, 4))


def test_nest_has_blocks(family):
    model = Nest(img_size=64, embed_dims=(24, 48, 48), num_heads=(1, 2, 4), depths=(1, 2, 1))
    expected = family.sites(
        "levels.0.transformer_encoder.{}.attn", range(1), "window", 1, (4, 4), windows=16, image_grid=(16, 16)
    )
    expected += family.sites("levels.1.transformer_encoder.{}.attn", range(2), "window", 2, (4, 4), windows=4, image_grid=(8, 8))
    expected += family.sites("levels.2.transformer_encoder.{}.attn", range(1), "global", 4, (4, 4))
    captured = family.check(family.sharpen(model), family.images(64), expected, order=heads_first)
    for attention in captured.maps[:3]:
        assert torch.equal(attention.partition, tiled(attention.image_grid, 4))


def test_twins_has_windows_and_subsampled_keys(family):
    model = timm.create_model(
        "twins_svt_small", img_size=224, depths=(2, 2, 2, 2), embed_dims=(16, 32, 64, 64), num_heads=(1, 2, 2, 2)
    )
    expected = []
    for stage, (heads, grid) in enumerate([(1, 56), (2, 28), (2, 14)]):
        expected += family.sites(
            f"blocks.{stage}.{{}}.attn", [0], "window", heads, (7, 7), windows=(grid // 7) ** 2, image_grid=(grid, grid)
        )
        # keys every 8, 4 and 2 patches
        expected += family.sites(f"blocks.{stage}.{{}}.attn", [1], "pooled", heads, (grid, grid), key_grid=(7, 7))
    expected += family.sites("blocks.3.{}.attn", range(2), "global", 2, (7, 7))
    captured = family.check(family.sharpen(model), family.images(224, batch=1), expected, order=windows_first)
    for attention in captured.maps[:6:2]:
        assert torch.equal(attention.partition, tiled(attention.image_grid, 7))


def test_tiny_vit_has_windows(family):
    model = timm.create_model(
        "tiny_vit_5m_224", depths=(1, 1, 2, 1), embed_dims=(16, 32, 64, 64), num_heads=(1, 2, 2, 2), window_sizes=(7, 7, 14, 7)
    )
    expected = family.sites("stages.1.blocks.{}.attn", range(1), "window", 2, (7, 7), windows=16, image_grid=(28, 28))
    expected += family.sites("stages.2.blocks.{}.attn", range(2), "global", 2, (14, 14))
    expected += family.sites("stages.3.blocks.{}.attn", range(1), "global", 2, (7, 7))
    images = family.images(224)
    captured = family.check(family.sharpen(model, images), images, expected, unfused="softmax")
    assert torch.equal(captured.maps[0].partition, tiled((28, 28), 7))


def test_tiny_vit_attends_its_padding(family):
    """A window larger than the feature map is filled up with tokens that get attention like any other."""
    model = timm.create_model("tiny_vit_5m_224", depths=(1, 1, 1, 1), embed_dims=(16, 32, 64, 64), num_heads=(1, 2, 2, 2))
    expected = family.sites("stages.1.blocks.{}.attn", [0], "window", 2, (7, 7), windows=4, image_grid=(14, 14))
    expected += family.sites("stages.2.blocks.{}.attn", [0], "window", 2, (14, 14), image_grid=(7, 7))
    expected += family.sites("stages.3.blocks.{}.attn", [0], "window", 2, (7, 7), image_grid=(4, 4))
    images = family.images(112)
    captured = family.check(family.sharpen(model, images), images, expected, unfused="softmax")
    for attention, size in zip(captured.maps, (7, 14, 7), strict=True):
        assert torch.equal(attention.partition, tiled(attention.image_grid, size))


def test_davit_has_windows_and_channels(family):
    model = timm.create_model("davit_tiny", depths=(1, 1, 1, 1), embed_dims=(16, 32, 64, 64), num_heads=(1, 2, 4, 4))
    expected = []
    for stage, (heads, grid) in enumerate([(1, 28), (2, 14), (4, 7), (4, 4)]):
        windows = math.ceil(grid / 7) ** 2
        kind = "global" if grid == 7 else "window"
        expected += family.sites(
            f"stages.{stage}.blocks.0.{{}}.attn", [0], kind, heads, (7, 7), windows=windows, image_grid=(grid, grid)
        )
        expected += family.channel_sites(f"stages.{stage}.blocks.0.{{}}.attn", [1], heads)
    captured = family.check(family.sharpen(model), family.images(112), expected, unfused="softmax")
    assert torch.equal(captured.maps[0].partition, tiled((28, 28), 7))
    assert torch.equal(captured.maps[6].partition, tiled((4, 4), 7))


def test_efficientvit_has_cascaded_heads(family):
    model = timm.create_model("efficientvit_m0", depth=(1, 1, 1))
    # each head has a map of its own, since a head's input is the output of the one before
    expected = family.sites("stages.0.blocks.{}.mixer.m.attn", [0] * 4, "window", 1, (7, 7), windows=4, image_grid=(14, 14))
    expected += family.sites("stages.1.blocks.{}.mixer.m.attn", [0] * 4, "global", 1, (7, 7))
    expected += family.sites("stages.2.blocks.{}.mixer.m.attn", [0] * 4, "global", 1, (4, 4))
    images = family.images(224)
    captured = family.check(
        family.sharpen(model, images), images, expected, unfused="softmax", order=lambda raw, _: raw.unsqueeze(1)
    )
    assert torch.equal(captured.maps[0].partition, tiled((14, 14), 7))
