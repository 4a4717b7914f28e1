"""Heat maps against the captured weights, worked out here from the definition; and what cannot be shown."""

import numpy as np
import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

import overfocus
from overfocus.attention import attention_rollout
from overfocus.errors import CaptureError
from overfocus.heatmaps import HeatMapRequest, heat_maps


def small_vit(**options):
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, num_classes=5, **options).eval()
    for block in model.blocks:  # random weights attend nearly uniformly
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.5)
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def weights_of(model, images):
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(images)
    return captured.maps, [attention.weights for attention in captured.maps]


def test_received_attention_of_every_layer(images):
    model = small_vit()
    maps, weights = weights_of(model, images)
    found = heat_maps(model, images, HeatMapRequest())
    assert [map.label for map in found] == ["layer 0", "layer 1", "layer 2"]
    assert [map.module for map in found] == [attention.module for attention in maps]
    for map, kept in zip(found, weights, strict=True):
        received = kept.mean(1)[:, 1:, 1:].sum(1)
        expected = 16 * received / received.sum(1, keepdim=True)
        torch.testing.assert_close(map.values.flatten(1), expected)
        assert map.values.mean().item() == pytest.approx(1.0)


def test_one_head_of_the_last_layer(images):
    model = small_vit()
    kept = weights_of(model, images)[1][-1]
    (found,) = heat_maps(model, images, HeatMapRequest(layer=-1, head=2))
    received = kept[:, 2, 1:, 1:].sum(1)
    torch.testing.assert_close(found.values.flatten(1), 16 * received / received.sum(1, keepdim=True))


def test_row_of_the_class_token_and_of_a_patch(images):
    model = small_vit()
    kept = weights_of(model, images)[1][1].mean(1)
    (of_class,) = heat_maps(model, images, HeatMapRequest("row", layer=1))
    torch.testing.assert_close(of_class.values.flatten(1), 17 * kept[:, 0, 1:])
    assert of_class.query is None
    (of_patch,) = heat_maps(model, images, HeatMapRequest("row", layer=1, query=(2, 3)))
    torch.testing.assert_close(of_patch.values.flatten(1), 17 * kept[:, 1 + 2 * 4 + 3, 1:])
    assert (of_patch.query, of_patch.query_grid) == ((2, 3), (4, 4))


def test_rollout_is_that_of_the_module_rollout(images):
    model = small_vit()
    maps, _ = weights_of(model, images)
    (found,) = heat_maps(model, images, HeatMapRequest("rollout", head_fusion="max", discard_ratio=0.5))
    row = attention_rollout(maps, head_fusion="max", discard_ratio=0.5)[:, 0, 1:]
    torch.testing.assert_close(found.values.flatten(1), 16 * row / row.sum(1, keepdim=True))


def test_model_without_class_token(images):
    model = small_vit(class_token=False, global_pool="avg")
    (row,) = heat_maps(model, images, HeatMapRequest("row", layer=0))
    assert row.query == (2, 2)
    (rolled,) = heat_maps(model, images, HeatMapRequest("rollout"))
    assert rolled.values.shape == (2, 4, 4)
    with pytest.raises(CaptureError, match="no class token; choose a patch as row,column"):
        heat_maps(model, images, HeatMapRequest("row", query="class"))
    with pytest.raises(CaptureError, match="no class token"):
        heat_maps(model, images, HeatMapRequest("rollout", query="class"))


def test_windows_are_put_back_where_they_lie(images):
    torch.manual_seed(0)
    model = SwinTransformer(img_size=32, patch_size=2, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4, num_classes=3)
    model.eval()
    maps, weights = weights_of(model, images)
    for number, (map, attention) in enumerate(zip(heat_maps(model, images, HeatMapRequest()), maps, strict=True)):
        assert map.values.shape == (2, 16, 16)
        windows = weights[number].mean(1).reshape(2, 16, 16, 16).sum(2) / 16
        expected = torch.zeros(2, 256)
        for window in range(16):
            expected[:, attention.partition[window]] = windows[:, window]
        torch.testing.assert_close(map.values.flatten(1), expected * 256 / 16)
    shifted = heat_maps(model, images, HeatMapRequest("row", layer=1, query=(5, 9)))[0]
    place = 5 * 16 + 9
    window, token = (int(number) for number in (maps[1].partition == place).nonzero()[0])
    row = weights[1].mean(1).reshape(2, 16, 16, 16)[:, window, token] * 16
    flat = shifted.values.flatten(1)
    torch.testing.assert_close(flat[:, maps[1].partition[window]], row)
    assert int(flat[0].isfinite().sum()) == 16
    assert shifted.label == "layer 1, shifted"
    with pytest.raises(CaptureError, match="windows have no class token"):
        heat_maps(model, images, HeatMapRequest("row", query="class"))
    with pytest.raises(CaptureError, match="rollout needs global attention"):
        heat_maps(model, images, HeatMapRequest("rollout"))


def test_pooled_keys_lie_on_their_own_grid():
    torch.manual_seed(0)
    model = timm.create_model("pvt_v2_b0", num_classes=3).eval()
    found = heat_maps(model, torch.randn(1, 3, 64, 64), HeatMapRequest("row", query=(0, 1)))
    assert found[0].values.shape[1:] == (2, 2)
    assert found[0].query_grid == (16, 16)
    np.testing.assert_allclose(found[0].values.mean().item(), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (HeatMapRequest(layer=3), "layer must be between -3 and 2 for this model, got 3"),
        (HeatMapRequest(layer=-4), "layer must be between -3 and 2 for this model, got -4"),
        (HeatMapRequest(head=4), "head must be between -4 and 3, got 4"),
        (HeatMapRequest("row", query=(4, 0)), r"expected a query from 0,0 to 3,3 \(row,column\), got 4,0"),
        (HeatMapRequest("rollout", query=(0, 9)), r"expected a query from 0,0 to 3,3 \(row,column\), got 0,9"),
    ],
)
def test_what_the_model_does_not_have(images, request_, message):
    with pytest.raises(CaptureError, match=message):
        heat_maps(small_vit(), images, request_)


def test_no_attention(images):
    with pytest.raises(CaptureError, match="no attention over tokens was found in ResNet"):
        heat_maps(timm.create_model("resnet10t").eval(), images, HeatMapRequest())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gradcam"}, "received, rollout, row, gradient-rollout or grad-cam, got 'gradcam'; did you mean grad-cam"),
        ({"method": "rollout", "layer": 2}, "rollout goes through all layers"),
        ({"query": "class"}, "received attention is that of all queries"),
        ({"discard_ratio": 0.5}, "belongs to the method rollout"),
        ({"target": 3}, "received is of no class"),
        ({"method": "grad-cam", "head": 1}, "grad-cam is of all heads"),
        ({"method": "grad-cam", "query": "class"}, "grad-cam is of the class"),
        ({"method": "gradient-rollout", "layer": 1}, "gradient-rollout goes through all layers"),
    ],
)
def test_requests_that_mean_nothing(options, message):
    with pytest.raises(CaptureError, match=message):
        HeatMapRequest(**options)
