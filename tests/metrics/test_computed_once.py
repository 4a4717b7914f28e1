"""Attention computed once: the weights that are measured give the output too, and neither changes by more than rounding."""

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import overfocus
from overfocus.capturing.sources import AttendingWeights, QueryKeyWeights, attending
from overfocus.metrics import ForwardMeasurement, blocks
from tests.metrics.launches import Launches

FUSED = "_scaled_dot_product_flash_attention_for_cpu"
MODELS = {
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "deit_tiny_distilled_patch16_224": {"img_size": 48, "depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "depths": (2, 2), "embed_dim": 48, "num_heads": (2, 4)},
    "pvt_v2_b0": {},
    "eva02_tiny_patch14_224": {"img_size": 56, "depth": 2},
}


def build(name):
    torch.manual_seed(0)
    model = timm.create_model(name, **MODELS[name], num_classes=5).eval()
    return model, torch.randn(4, 3, *[MODELS[name].get("img_size", 64)] * 2)


def measured(model, images, **options):
    """Values of each layer, and the logits."""
    measurement = ForwardMeasurement()
    with torch.no_grad(), overfocus.capture(model, reduce=measurement.add, norms=True, **options) as captured:
        for _ in range(3):  # two forwards that are traced, and one that is not
            measurement.begin([0, 0, 2, 2])
            captured.clear()
            logits = model(images)
            layers = measurement.finish(captured.norms)
    return layers, logits


@pytest.mark.parametrize("name", MODELS)
def test_tables_and_logits_agree(name):
    model, images = build(name)
    exact, expected = measured(model, images)
    with Launches() as counted:
        once, logits = measured(model, images, exact=False)
    assert not counted.counts[FUSED]
    with torch.no_grad():
        assert torch.equal(expected, model(images))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert [layer.module for layer in once] == [layer.module for layer in exact]
    for mine, other in zip(once, exact, strict=True):
        mine, other = torch.from_numpy(mine.values), torch.from_numpy(other.values)
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("sizes", [{"images": 1}, {"large_image": 0, "queries": 1}, {"large_image": 0, "queries": 20_000}])
def test_in_blocks_of_images_and_of_queries(sizes, monkeypatch):
    model, images = build("vit_tiny_patch16_224")
    with torch.no_grad():
        expected = model(images)
    monkeypatch.setattr(blocks, "PROCESSOR", replace(blocks.PROCESSOR, **sizes))
    with Launches() as counted:
        _, logits = measured(model, images, exact=False)
    assert not counted.counts[FUSED]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


READS = {
    "nothing": id,
    "one image": lambda attention: attention.rows(0, attention.shape[2], slice(1, 2)),
    "some rows": lambda attention: attention.rows(3, 7),
    "rows twice": lambda attention: (attention.rows(0, 9), attention.weights),
}


@pytest.mark.parametrize("read", READS)
def test_whatever_is_read_the_output_is_whole(read):
    model, images = build("vit_tiny_patch16_224")
    with torch.no_grad(), overfocus.capture(model, reduce=READS[read], exact=False):
        found = model(images)
    with torch.no_grad():
        expected = model(images)
    assert torch.equal(found, expected) == (read == "nothing")  # the fused kernel where no weight is wanted
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_an_error_in_reduce_leaves_the_output_alone():
    model, images = build("vit_tiny_patch16_224")

    def refuse(attention):
        raise overfocus.CaptureError(f"not {attention.module}")

    with (
        torch.no_grad(),
        pytest.raises(overfocus.CaptureError, match="not blocks"),
        overfocus.capture(model, refuse, exact=False),
    ):
        found = model(images)
    with torch.no_grad():
        assert torch.equal(found, model(images))


def test_kept_maps_stay_readable():
    model, images = build("vit_tiny_patch16_224")
    with torch.no_grad(), overfocus.capture(model, exact=False) as captured:
        model(images)
    with torch.no_grad(), overfocus.capture(model) as expected:
        model(images)
    for mine, other in zip(captured.maps, expected.maps, strict=True):
        assert torch.equal(mine.weights, other.weights)


def qkv(*shape, keys=None, width=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(*shape, tokens, width, generator=generator) for tokens in (9, keys or 9, keys or 9))
    return query.to(dtype), key.to(dtype), value.to(dtype)


CALLS = {
    "plain": (qkv(2, 3), {}),
    "axes in another order": ((torch.randn(2, 9, 3, 8).transpose(1, 2), *qkv(2, 3)[1:]), {}),
    "packed": (torch.randn(2, 9, 3, 3, 8).permute(2, 0, 3, 1, 4).unbind(0), {}),
    "without heads": (qkv(4), {}),
    "five axes": (qkv(2, 2, 3), {}),
    "pooled keys": (qkv(2, 3, keys=4), {}),
    "causal": (qkv(2, 3), {"is_causal": True}),
    "scale": (qkv(2, 3), {"scale": 0.7}),
    "added mask": (qkv(2, 3), {"attn_mask": torch.randn(9, 9)}),
    "hidden row": (qkv(2, 3), {"attn_mask": torch.ones(9, 9, dtype=torch.bool).tril(-1)}),
    "grouped queries": ((torch.randn(2, 6, 9, 8), *qkv(2, 3)[1:]), {"enable_gqa": True}),
    "wider values": ((*qkv(2, 3)[:2], torch.randn(2, 3, 9, 20)), {}),
}


@pytest.mark.parametrize("call", CALLS)
def test_equals_the_fused_function(call):
    tensors, options = CALLS[call]
    expected = F.scaled_dot_product_attention(*tensors, **options)
    weights, output = attending(*tensors, **options)
    assert isinstance(weights, AttendingWeights)
    assert output.stride() == expected.stride()
    weights.rows(0, 9, slice(0, 1))
    weights.rows(2, 5)
    found = weights.finish(lambda: pytest.fail("all was computed once"))
    assert found is output
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    weights, _ = attending(*tensors, **options)
    assert weights.finish(lambda: expected) is expected


@pytest.mark.parametrize(
    ("tensors", "options"),
    [
        (qkv(2, 3, dtype=torch.bfloat16), {}),
        (qkv(2, 3, dtype=torch.float64), {}),
        (qkv(2, 3), {"dropout_p": 0.1}),
        ((qkv(2, 3)[0].requires_grad_(), *qkv(2, 3)[1:]), {}),
        (qkv(2, 3), {"attn_mask": torch.zeros(9, 9, requires_grad=True)}),
        ((qkv(1, 3)[0], *qkv(2, 3)[1:]), {}),
        ((qkv(0, 3)), {}),
        ((torch.empty(2, 3, 9, 8, device="meta"), *qkv(2, 3)[1:]), {}),
    ],
)
def test_other_calls_run_themselves(tensors, options):
    assert attending(*tensors, **options) is None


def test_training_runs_the_fused_function():
    model, images = build("vit_tiny_patch16_224")
    with overfocus.capture(model, reduce=lambda attention: attention.rows(0, 1), exact=False):
        model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_with_gradients_the_maps_are_part_of_the_graph():
    model, images = build("vit_tiny_patch16_224")
    with overfocus.capture(model, gradients=True, exact=False) as captured:
        logits = model(images)
    weights = [attention.source.source.weights for attention in captured.maps]
    slopes = torch.autograd.grad(logits[:, 0].sum(), weights)
    assert all(slope.shape == one.shape and slope.any() for slope, one in zip(slopes, weights, strict=True))
    torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-5)


def test_verifying_looks_at_the_model_itself():
    model, images = build("vit_tiny_patch16_224")
    with torch.no_grad(), overfocus.capture(model, verify=True, exact=False) as captured, Launches() as counted:
        model(images)
    assert counted.counts[FUSED] == 2
    assert all(attention.deviation[0] < 1e-5 for attention in captured.maps)


class Outside(nn.Module):
    """Attention that nobody runs as a part of the model."""

    def forward(self, x):
        return x + 1


def test_attention_outside_of_the_model_is_left_alone():
    query, key, value = qkv(2, 3)
    with overfocus.capture(Outside(), reduce=lambda attention: attention.weights, exact=False), Launches() as counted:
        F.scaled_dot_product_attention(query, key, value)
    assert counted.counts[FUSED] == 1


def test_softmax_in_place_is_the_softmax():
    query, key, _ = qkv(2, 3)
    expected = (query @ key.transpose(-1, -2) / 8**0.5).softmax(-1)
    torch.testing.assert_close(QueryKeyWeights(query, key).rows(0, 9), expected, rtol=0, atol=1e-6)
