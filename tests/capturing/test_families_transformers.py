"""Hugging Face transformers, with torch's fused attention and with their own: same maps, same labels."""

import pytest
import torch

import overfocus

transformers = pytest.importorskip("transformers")

ATTENTIONS = ("sdpa", "eager")
PLAIN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 64}


def build(model, config, attention, **settings):
    settings["attn_implementation"] = attention
    return getattr(transformers, model)(getattr(transformers, config)(**settings))


def check(family, model, expected, size=64):
    """Hold a model to its labels and, where it returns its attention weights itself, to those.

    Modules have other names from one release of transformers to the next: each map's own is taken, once it is an attention's.
    """
    images = family.images(size)
    with torch.inference_mode(), overfocus.capture(family.sharpen(model, images)) as captured:
        model(images)
    names = [attention.module for attention in captured.maps]
    assert len(set(names)) == len(names) == len(expected)
    assert all("att" in name.rpartition(".")[2] for name in names)
    expected = [labels | {"module": name} for labels, name in zip(expected, names, strict=True)]
    captured = family.check(model, images, expected, unfused=None)
    if model.config._attn_implementation == "eager":
        with torch.inference_mode():
            own = model(images, output_attentions=True).attentions
        last = len(names) // len(own)  # Swin returns the maps of the last block of each stage only
        for attention, weights in zip(captured.maps[last - 1 :: last], own, strict=True):
            torch.testing.assert_close(attention.weights, weights, rtol=0, atol=1e-5)
    return captured


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    ("model", "config", "prefix"),
    [
        ("ViTForImageClassification", "ViTConfig", 1),
        ("DeiTForImageClassificationWithTeacher", "DeiTConfig", 2),
        ("BeitForImageClassification", "BeitConfig", 1),
        ("Dinov2ForImageClassification", "Dinov2Config", 1),
        ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", 5),
        ("CLIPVisionModel", "CLIPVisionConfig", 1),
    ],
)
def test_plain(family, attention, model, config, prefix):
    built = build(model, config, attention, patch_size=8, **PLAIN)
    check(family, built, family.sites("", range(2), "global", 4, (8, 8), prefix=prefix, key_prefix=prefix))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_swin(family, attention):
    model = build(
        "SwinForImageClassification", "SwinConfig", attention, image_size=64, patch_size=2, embed_dim=16, depths=[2, 2],
        num_heads=[2, 4], window_size=4,
    )  # fmt: skip
    expected = []
    for heads, grid in ((2, 32), (4, 16)):
        for block, branch in ((0, None), (1, "shifted")):
            expected += family.sites(
                "", [block], "window", heads, (4, 4),
                windows=(grid // 4) ** 2, image_grid=(grid, grid), branch=branch,
            )  # fmt: skip
    captured = check(family, model, expected)
    for item, shift in zip(captured.maps, (0, 2, 0, 2), strict=True):
        rows = torch.roll(torch.arange(item.image_grid[0] ** 2).reshape(item.image_grid), (-shift, -shift), (0, 1))
        windows = rows.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).transpose(1, 2).flatten(2).flatten(0, 1)
        assert torch.equal(item.partition, windows)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_segformer(family, attention):
    model = build(
        "SegformerForSemanticSegmentation", "SegformerConfig", attention, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 64],
        decoder_hidden_size=32,
    )  # fmt: skip
    expected = []
    for heads, grid in ((1, 16), (2, 8), (5, 4), (8, 2)):
        kind = "global" if grid == 2 else "pooled"
        expected += family.sites("", [0], kind, heads, (grid, grid), key_grid=(2, 2))
    check(family, model, expected)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_images_given_by_name(family, attention):
    model = build("DeiTForImageClassification", "DeiTConfig", attention, patch_size=8, **PLAIN)
    images = family.images(64)
    family.sharpen(model)
    with torch.inference_mode(), overfocus.capture(model) as named:
        model(pixel_values=images)
    with torch.inference_mode(), overfocus.capture(model) as plain:
        model(images)
    assert [family.labels(one) for one in named.maps] == [family.labels(one) for one in plain.maps]
    assert all(torch.equal(one.weights, other.weights) for one, other in zip(named.maps, plain.maps, strict=True))
    assert overfocus.verify(model, {"pixel_values": images}).passed
