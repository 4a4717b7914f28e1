"""Inputs of many sizes one after the other, and models called piece by piece: labels belong to the forward that they are of."""

import pytest
import timm
import torch

import overfocus


def grids(captured):
    return [(attention.grid, attention.prefix_tokens) for attention in captured.maps]


def test_images_with_as_many_tokens_but_another_shape(make_vit, family):
    model = make_vit(dynamic_img_size=True)
    shapes = [(2, 8), (4, 4), (8, 2), (4, 4), (1, 16)]
    with torch.no_grad(), overfocus.capture(model) as captured:
        for rows, columns in shapes:
            model(family.images(8 * rows, 8 * columns))
    assert grids(captured) == [(shape, 1) for shape in shapes for _ in range(2)]
    for rows, columns in shapes:  # and again in a capture of their own, from what was learnt
        with torch.no_grad(), overfocus.capture(model) as captured:
            model(family.images(8 * rows, 8 * columns))
        assert grids(captured) == [((rows, columns), 1)] * 2


def test_swin_over_sizes(family):
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", strict_img_size=False, embed_dim=16, depths=(2,), num_heads=(1,), window_size=7
    )
    family.sharpen(model)
    with torch.no_grad(), overfocus.capture(model) as captured:
        for rows, columns in ((28, 56), (56, 28), (60, 40)):
            model(family.images(rows, columns))
    assert [(attention.image_grid, attention.windows, attention.branch) for attention in captured.maps] == [
        ((7, 14), 2, None),
        ((7, 14), 2, "shifted"),
        ((14, 7), 2, None),
        ((14, 7), 2, "shifted"),
        ((15, 10), 6, None),
        ((15, 10), 6, "shifted"),
    ]
    for attention in captured.maps:
        assert sorted(attention.partition[attention.partition >= 0].tolist()) == list(
            range(attention.image_grid[0] * attention.image_grid[1])
        )


@pytest.mark.parametrize("name", ["vit", "swin", "hiera"])
def test_batches_of_any_length(family, make_vit, name):
    if name == "vit":
        model, size = make_vit(), 32
    elif name == "swin":
        model, size = (
            timm.create_model(
                "swin_tiny_patch4_window7_224", img_size=56, embed_dim=16, depths=(2,), num_heads=(1,), window_size=7
            ),
            56,
        )
    else:
        model, size = timm.models.hiera.Hiera(img_size=(64, 64), embed_dim=16, num_heads=1, stages=(1, 1, 1, 1)), 64
    family.sharpen(model)
    images = family.images(size, batch=7)
    with torch.no_grad():
        with overfocus.capture(model) as whole:
            model(images)
        with overfocus.capture(model) as parts:
            for batch in (images[:1], images[1:4], images[4:6], images[6:]):
                model(batch)
    sites = len(whole.maps)
    for number, attention in enumerate(whole.maps):
        pieces = parts.maps[number::sites]
        assert [piece.batch for piece in pieces] == [1, 3, 2, 1]
        assert {(piece.kind, piece.windows, piece.grid) for piece in pieces} == {
            (attention.kind, attention.windows, attention.grid)
        }
        torch.testing.assert_close(torch.cat([piece.weights for piece in pieces]), attention.weights, rtol=0, atol=1e-5)


def test_features_without_a_head(make_vit, family):
    model = make_vit()
    with torch.no_grad(), overfocus.capture(model) as captured:
        model.forward_features(family.images(32))
    assert grids(captured) == [((4, 4), 1)] * 2
    assert [attention.module for attention in captured.maps] == ["blocks.0.attn", "blocks.1.attn"]


def test_a_single_block(make_vit):
    model = make_vit()
    tokens = torch.randn(3, 17, 32)
    with torch.no_grad(), overfocus.capture(model) as captured:
        model.blocks[1](tokens)
    (attention,) = captured.maps
    assert (attention.module, attention.kind, attention.shape) == ("blocks.1.attn", "global", (3, 2, 17, 17))
    assert torch.allclose(attention.weights.sum(-1), torch.ones(3, 2, 17))


def test_pieces_after_a_whole_forward(make_vit, family):
    model = make_vit()
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(family.images(32))
        for tokens in (17, 10):
            model.blocks[0](torch.randn(2, tokens, 32))
        model(family.images(32))
    assert [attention.shape[2] for attention in captured.maps] == [17, 17, 17, 10, 17, 17]
    assert grids(captured)[:2] == grids(captured)[-2:] == [((4, 4), 1)] * 2


def test_a_model_with_another_name_for_its_forward(make_vit, family):
    model = make_vit()
    with torch.no_grad(), overfocus.capture(model) as captured:
        model.forward_intermediates(family.images(32), intermediates_only=True)
    assert grids(captured) == [((4, 4), 1)] * 2


def test_dropped_patches_leave_no_grid(make_vit, family):
    model = make_vit(patch_drop_rate=0.5).train()
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(family.images(32, batch=1))
    for attention in captured.maps:
        assert attention.shape[2:] == (9, 9)
        assert attention.prefix_tokens == 1
        assert attention.grid is None
        assert torch.allclose(attention.weights.sum(-1), torch.ones(1, 2, 9))
