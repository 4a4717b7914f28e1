"""Where a model runs: without gradients, in bf16, in training, wrapped, compiled."""

import os

import pytest
import timm
import torch
import torch.distributed
from torch import nn

import overfocus
from overfocus.metrics import measure


@pytest.fixture
def reference(make_vit, family):
    """A model, images, and its weights by plain arithmetic: the unfused model's, read from its own dropout."""
    model, images = make_vit(), family.images(32)
    return model, images, family.unfused_maps(model, (images,), sites={"blocks.0.attn", "blocks.1.attn"})


def assert_weights(captured, expected, tolerance=1e-6):
    assert len(captured.maps) == len(expected)
    for attention, weights in zip(captured.maps, expected, strict=True):
        torch.testing.assert_close(attention.weights, weights, rtol=0, atol=tolerance)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_gradient_modes(reference, context):
    model, images, expected = reference
    with context():
        plain = model(images)
        with overfocus.capture(model) as captured:
            assert torch.equal(model(images), plain)
        assert_weights(captured, expected)
    assert_weights(captured, expected)


def test_a_mode_inside_the_block(reference):
    model, images, expected = reference
    with overfocus.capture(model) as captured, torch.inference_mode():
        model(images)
    assert_weights(captured, expected)


@pytest.mark.parametrize("fused", [True, False])
def test_autocast_to_bfloat16(reference, fused):
    model, images, expected = reference
    for block in model.blocks:
        block.attn.fused_attn = fused
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(images)
        with overfocus.capture(model) as captured:
            assert torch.equal(model(images), plain)
        inside = [attention.weights for attention in captured.maps]
    assert all(weights.dtype == torch.float32 for weights in inside)
    assert_weights(captured, expected, tolerance=0.03)
    for weights in inside:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 17), rtol=0, atol=1e-6 if fused else 4e-3)  # a map in bf16


def test_weights_are_the_same_inside_and_outside_of_autocast(reference):
    model, images, _ = reference
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with overfocus.capture(model) as captured:
            model(images)
        inside = captured.maps[0].rows(0, 17)
    assert torch.equal(captured.maps[0].rows(0, 17), inside)


def test_a_model_in_half_precision(reference):
    model, images, expected = reference
    model, images = model.to(torch.bfloat16), images.to(torch.bfloat16)
    with torch.no_grad():
        plain = model(images)
        with overfocus.capture(model) as captured:
            assert torch.equal(model(images), plain)
    assert captured.maps[0].weights.dtype == torch.float32
    assert_weights(captured, expected, tolerance=0.03)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "cait_xxs24_224"])
@pytest.mark.parametrize("fused", [True, False])
def test_training_draws_the_same_dropout_and_gives_maps_without_it(family, name, fused):
    model = timm.create_model(name, img_size=64, depth=2, attn_drop_rate=0.5, proj_drop_rate=0.2, drop_path_rate=0.2)
    images = family.images(64)
    family.sharpen(model)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    with torch.no_grad(), overfocus.capture(model) as evaluated:
        model(images)
    model.train()
    torch.manual_seed(7)
    plain = model(images)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    with overfocus.capture(model) as captured:
        observed = model(images)
    weights = captured.maps[0].weights
    assert torch.equal(observed, plain)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(weights, evaluated.maps[0].weights, rtol=0, atol=1e-6)  # nothing dropped before the first map
    for attention in captured.maps:
        if attention.normalised:
            torch.testing.assert_close(attention.weights.sum(-1), torch.ones(attention.shape[:3]), rtol=0, atol=1e-5)
    assert [attention.normalised for attention in captured.maps] == [attention.normalised for attention in evaluated.maps]


def test_dropout_in_place_leaves_the_map_that_was_used(family):
    """TNT drops weights where they lie, so that the ones before are gone: the dropped and scaled map is given, and said to be."""
    model = timm.create_model("tnt_s_legacy_patch16_224", img_size=64, depth=1, attn_drop_rate=0.5)
    family.sharpen(model).train()
    with overfocus.capture(model, verify=True) as captured:
        model(family.images(64))
    for attention in captured.maps:
        assert not attention.normalised
        assert attention.deviation[0] < 1e-5
        assert 0.4 < (attention.weights == 0).float().mean() < 0.6


def test_distributed_data_parallel(reference, tmp_path):
    model, images, expected = reference
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        with overfocus.capture(wrapped) as captured:
            result = wrapped(images)
        result.sum().backward()
        assert [attention.module for attention in captured.maps] == ["blocks.0.attn", "blocks.1.attn"]
        assert_weights(captured, expected)
        with overfocus.capture(model) as captured:  # the model inside, run through its wrapper
            wrapped(images)
        assert_weights(captured, expected)
    finally:
        torch.distributed.destroy_process_group()


class Counting:
    """A `torch.compile` backend that counts what it compiles."""

    def __init__(self):
        self.compiled = 0

    def __call__(self, module, _):
        self.compiled += 1
        return module.forward


@pytest.mark.parametrize("spelling", ["torch.compile(model)", "model.compile()"])
def test_compiled_models_run_eagerly_while_captured(reference, spelling):
    model, images, expected = reference
    backend = Counting()
    with torch.no_grad():
        plain = model(images)
        if spelling == "model.compile()":
            compiled = model
            model.compile(backend=backend)
        else:
            compiled = torch.compile(model, backend=backend)
        compiled(images)
        before = backend.compiled
        assert before > 0
        with overfocus.capture(compiled) as captured:
            assert torch.equal(compiled(images), plain)
        assert [attention.module for attention in captured.maps] == ["blocks.0.attn", "blocks.1.attn"]
        assert_weights(captured, expected)
        compiled(images)
        assert backend.compiled == before  # what was compiled is used again


def test_a_model_compiled_in_part(reference):
    model, images, expected = reference
    model.blocks[0] = torch.compile(model.blocks[0], backend=Counting())
    with torch.no_grad():
        model(images)
        with overfocus.capture(model) as captured:
            model(images)
    assert_weights(captured, expected)
    assert overfocus.verify(model, images).passed


class Split(nn.Module):
    """A model over two devices: the meta device stands for a second one that needs no hardware."""

    def __init__(self):
        super().__init__()
        self.first = nn.MultiheadAttention(8, 2, batch_first=True)
        self.second = nn.MultiheadAttention(8, 2, batch_first=True, device="meta")

    def forward(self, x):
        x = self.first(x, x, x)[0].to("meta")
        return self.second(x, x, x)[0]


def test_modules_on_several_devices():
    model = Split()
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(torch.randn(2, 5, 8))
    assert [attention.shape for attention in captured.maps] == [(2, 2, 5, 5)] * 2
    torch.testing.assert_close(captured.maps[0].weights.sum(-1), torch.ones(2, 2, 5))


@pytest.mark.parametrize("name", ["tnt_s_legacy_patch16_224", "cait_xxs24_224", "levit_128s"])
def test_maps_in_half_precision_can_be_measured(family, name):
    settings = {} if "levit" in name else {"img_size": 64, "depth": 2}
    model, images = timm.create_model(name, **settings), family.images(224 if "levit" in name else 64)
    family.sharpen(model, images)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), overfocus.capture(model, reduce=measure) as captured:
        model(images)
    assert len(captured.reduced) > 1
    assert all(torch.isfinite(values["top_share"]).all() for values in captured.reduced)
