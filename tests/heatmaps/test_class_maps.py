"""Maps for one class against the definitions worked out here by hooks on a model whose attention is not fused."""

import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

import overfocus
import overfocus.models  # registers FAN
from overfocus.errors import CaptureError
from overfocus.heatmaps import HeatMapRequest, heat_maps
from overfocus.heatmaps.draw import class_number


def small_vit(**options):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
    model = VisionTransformer(**{**sizes, **options}).eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.5)
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def reference_rollout(model, images, target):
    """R of Chefer et al. 2021, from maps that hooks on the unfused model keep."""
    maps = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, __, weights: maps.append(weights))
    gradients = torch.autograd.grad(model(images)[:, target].sum(), maps)
    relevance = torch.eye(maps[0].shape[-1]).repeat(len(images), 1, 1)
    for weights, gradient in zip(maps, gradients, strict=True):
        mixed = (weights * gradient).clamp(min=0).mean(1)
        relevance = relevance + torch.bmm(mixed, relevance)
    return relevance.detach() - torch.eye(relevance.shape[-1])


@pytest.mark.parametrize("fused", [True, False])
def test_gradient_rollout_of_a_class_token(images, fused):
    model = small_vit()
    for block in model.blocks:
        block.attn.fused_attn = fused
    (found,) = heat_maps(model, images, HeatMapRequest("gradient-rollout", target=3))
    expected = reference_rollout(small_vit(), images, 3)[:, 0, 1:]
    torch.testing.assert_close(found.values.flatten(1), expected / expected.mean(1, keepdim=True), rtol=1e-3, atol=1e-4)
    assert found.target == 3
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradient_rollout_of_a_patch_and_without_a_class_token(images):
    (of_patch,) = heat_maps(small_vit(), images, HeatMapRequest("gradient-rollout", query=(1, 2), target=0))
    expected = reference_rollout(small_vit(), images, 0)[:, 7, 1:]
    torch.testing.assert_close(of_patch.values.flatten(1), expected / expected.mean(1, keepdim=True), rtol=1e-3, atol=1e-4)
    options = {"class_token": False, "global_pool": "avg"}
    (found,) = heat_maps(small_vit(**options), images, HeatMapRequest("gradient-rollout", target=1))
    expected = reference_rollout(small_vit(**options), images, 1).mean(1)
    torch.testing.assert_close(found.values.flatten(1), expected / expected.mean(1, keepdim=True), rtol=1e-3, atol=1e-4)


def test_grad_cam_of_every_layer(images):
    model = small_vit()
    found = heat_maps(model, images, HeatMapRequest("grad-cam", target=2))
    kept = []
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda _, __, tokens: kept.append(tokens))
    gradients = torch.autograd.grad(model(images)[:, 2].sum(), kept)
    assert [map.layer for map in found] == [0, 1, 2]
    for map, tokens, gradient in zip(found, kept, gradients, strict=True):
        weights = gradient[:, 1:].mean(1)
        expected = (tokens[:, 1:] * weights[:, None]).sum(-1).clamp(min=0).detach()
        torch.testing.assert_close(map.values.flatten(1), expected / expected.mean(1, keepdim=True), rtol=1e-4, atol=1e-5)
    (last,) = heat_maps(small_vit(), images, HeatMapRequest("grad-cam", layer=-1, target=2))
    torch.testing.assert_close(last.values, found[-1].values)


def test_the_class_predicted_for_the_first_image_is_the_default(images):
    model = small_vit()
    predicted = model(images)[0].argmax().item()
    for method in ("gradient-rollout", "grad-cam"):
        assert heat_maps(model, images, HeatMapRequest(method))[0].target == predicted


def test_grad_cam_puts_windows_back_where_they_lie():
    torch.manual_seed(0)
    arguments = {"img_size": 56, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 3}
    model = timm.create_model("swin_tiny_patch4_window7_224", **arguments).eval()
    images = torch.randn(1, 3, 56, 56)
    found = heat_maps(model, images, HeatMapRequest("grad-cam", target=1))
    assert [tuple(map.values.shape[1:]) for map in found] == [(14, 14), (14, 14), (7, 7), (7, 7)]
    kept = []
    model.layers[0].blocks[0].norm1.register_forward_hook(lambda _, __, maps: kept.append(maps))
    (gradient,) = torch.autograd.grad(model(images)[:, 1].sum(), kept)
    expected = (kept[0] * gradient.mean((1, 2), keepdim=True)).sum(-1).clamp(min=0).detach()
    torch.testing.assert_close(found[0].values, expected / expected.mean(), rtol=1e-3, atol=1e-4)
    with pytest.raises(CaptureError, match=r"gradient-rollout needs global attention .* got window attention; use grad-cam"):
        heat_maps(model, images, HeatMapRequest("gradient-rollout"))


def test_class_attention_reads_the_patches():
    torch.manual_seed(0)
    sizes = {"embed_dims": (32,), "depths": (2,), "num_heads": (4,), "num_classes": 5}
    model = timm.create_model("fan_tiny_12_p16_224", **sizes).eval()
    (found,) = heat_maps(model, torch.randn(1, 3, 64, 64), HeatMapRequest("gradient-rollout", target=0))
    assert found.values.shape == (1, 4, 4)
    assert found.values.mean().item() == pytest.approx(1.0)


def test_a_class_the_model_does_not_have(images):
    for method in ("gradient-rollout", "grad-cam"):
        with pytest.raises(CaptureError, match="expected a class from 0 to 4, got 5"):
            heat_maps(small_vit(), images, HeatMapRequest(method, target=5))
        with pytest.raises(CaptureError, match=r"expected logits \(batch, classes\) to explain"):
            heat_maps(small_vit(num_classes=0, global_pool=""), images, HeatMapRequest(method))
    assert class_number("cat", ["dog", "cat"]) == class_number("1", None) == class_number(1, None) == 1
    imagenet = ["tench, Tinca tinca", "tabby, tabby cat", "crane", "crane, bird"]
    assert (
        class_number("tabby", imagenet) == class_number("Tabby cat", imagenet) == class_number("tabby, tabby cat", imagenet) == 1
    )
    with pytest.raises(CaptureError, match=r"such as 'tench, Tinca tinca', got 'tabbi'; did you mean 'tabby'\?$"):
        class_number("tabbi", imagenet)
    with pytest.raises(CaptureError, match="did you mean 'cat'"):
        class_number("cats", ["dog", "cat"])
    with pytest.raises(CaptureError, match="the model does not name its classes"):
        class_number("cat", None)


def test_every_head_of_every_layer(images):
    found = heat_maps(small_vit(), images, HeatMapRequest(head="all"))
    assert [(map.layer, map.head) for map in found] == [(layer, head) for layer in range(3) for head in range(4)]
    (alone,) = heat_maps(small_vit(), images, HeatMapRequest(layer=1, head=2))
    torch.testing.assert_close(found[6].values, alone.values)


def test_heatmap_in_python():
    model = overfocus.wrap(small_vit(), input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    shown = overfocus.heatmap(model, Image.new("RGB", (40, 40), "red"), method="received", layer=-1, corruptions="fog")
    assert [map.layer for map in shown.maps] == [2]
    assert shown.maps[0].values.shape == (2, 4, 4)
    assert shown._repr_png_().startswith(b"\x89PNG")
    assert overfocus.heatmap(model, None, method="grad-cam", head=None, target="2").maps[0].target == 2
