"""`verify` passes what is right, and fails as soon as anything is not."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import overfocus
from overfocus.capturing.sources import MaterialisedWeights, QueryKeyWeights


def make_model(name="vit_tiny_patch16_224", **settings):
    torch.manual_seed(0)
    model = timm.create_model(name, **({"img_size": 64, "depth": 2} | settings))
    for name, parameter in model.named_parameters():
        if "qkv" in name and parameter.ndim == 2:
            nn.init.normal_(parameter, 0, 0.1)  # attention far from uniform
    return model.eval()


def test_every_site_is_checked():
    verification = overfocus.verify(make_model())
    assert verification.passed
    assert verification.identical
    assert verification.difference == 0
    assert [site.module for site in verification.sites] == ["blocks.0.attn", "blocks.1.attn"]
    for site in verification.sites:
        assert site.kind == "global"
        assert site.shape == (2, 3, 17, 17)
        assert 0 <= site.output_error < 1e-5
        assert 0 <= site.row_error < 1e-6
    assert [site.module for site in verification.coverage] == ["blocks.0.attn", "blocks.1.attn"]


def test_plain_values_for_json():
    values = json.loads(json.dumps(overfocus.verify(make_model()).as_dict()))
    assert values["passed"] is True
    assert values["sites"][0]["module"] == "blocks.0.attn"
    assert values["coverage"][0]["captured"] is True


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "mutation",
    [
        lambda weights: weights.roll(1, -1),
        lambda weights: weights.roll(1, -2),
        lambda weights: weights.roll(1, -3),
        lambda weights: weights.flip(0),
        lambda weights: (weights * 1.01).softmax(-1),
        lambda weights: weights.mT,
        lambda weights: weights * 1.001,
        lambda weights: torch.full_like(weights, 1 / weights.shape[-1]),
        lambda weights: weights.masked_fill(weights == weights.amax(), torch.nan),
    ],
    ids=["keys", "queries", "heads", "images", "flatter", "transposed", "larger", "uniform", "nan"],
)
def test_wrong_weights_fail(monkeypatch, mutation, fused):
    """A map that is permuted, scaled, flattened or of another image is not the one that was used."""
    model = make_model()
    for block in model.blocks:
        block.attn.fused_attn = fused
    source = QueryKeyWeights if fused else MaterialisedWeights
    rows = source.rows

    def mutated(self, *arguments, **keywords):
        return mutation(rows(self, *arguments, **keywords))

    assert overfocus.verify(model).passed
    monkeypatch.setattr(source, "rows", mutated)
    monkeypatch.setattr("overfocus.attention.check_rows", lambda *_, **__: None)  # which would refuse some of these at once
    verification = overfocus.verify(model)
    assert not verification.passed
    assert not all(site.passed for site in verification.sites)
    assert verification.identical  # the model itself was left alone


@pytest.mark.parametrize("scale", [0.9, 1.1])
def test_a_wrong_scale_fails(monkeypatch, scale):
    model = make_model()
    initialise = QueryKeyWeights.__init__

    def scaled(self, query, *arguments, **keywords):
        initialise(self, query * scale, *arguments, **keywords)

    monkeypatch.setattr(QueryKeyWeights, "__init__", scaled)
    assert not overfocus.verify(model).passed


class Forgetful(nn.Module):
    """Another result in every call: nothing that a look at it could leave unchanged."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.attn(x, x, x)[0] + self.calls


def test_a_result_that_changes_fails():
    verification = overfocus.verify(Forgetful(), torch.randn(2, 5, 8))
    assert not verification.identical
    assert not verification.passed
    assert verification.difference == pytest.approx(1, abs=1e-5)
    assert all(site.passed for site in verification.sites)


class Beside(nn.Module):
    """A map that something else than values is added to."""

    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x) * 2


def test_only_the_attention_itself_is_compared():
    """What a module does with the attended values afterwards is its own affair."""
    assert overfocus.verify(Beside(), torch.randn(2, 2, 5, 8)).passed


def test_mixed_heads_have_no_row_error():
    verification = overfocus.verify(make_model("cait_xxs24_224"))
    assert verification.passed
    assert [site.row_error is None for site in verification.sites] == [True, True, False, False]


def test_modes_come_back():
    model = make_model().train()
    model.blocks[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    overfocus.verify(model)
    assert {name: module.training for name, module in model.named_modules()} == before


def test_modes_come_back_after_an_error():
    model = make_model().train()
    with pytest.raises(AssertionError):
        overfocus.verify(model, torch.randn(1, 3, 50, 50))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    "inputs",
    [
        lambda x: x,
        lambda x: (x, x, x),
        lambda x: {"query": x, "key": x, "value": x},
    ],
)
def test_inputs_in_any_form(inputs):
    x = torch.randn(2, 5, 8)
    model = nn.MultiheadAttention(8, 2, batch_first=True) if inputs(x) is not x else Forgetful()
    assert all(site.passed for site in overfocus.verify(model, inputs(x)).sites)


def test_the_size_that_the_model_states():
    model = make_model(img_size=(32, 96), in_chans=1)
    assert overfocus.verify(model).sites[0].shape == (2, 3, 13, 13)


def test_other_random_images():
    model, seen = make_model(), []
    model.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    for seed in (0, 0, 1):
        seen.append(None)
        overfocus.verify(model, seed=seed)
    places = [place for place, images in enumerate(seen) if images is None]
    first, again, other = (seen[place + 1] for place in places)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_model_that_states_no_size():
    with pytest.raises(overfocus.CaptureError, match=r"expected `inputs` for a model that states no size") as caught:
        overfocus.verify(Forgetful())
    assert "torch.randn(2, 3, 224, 224)" in str(caught.value)


def test_a_model_without_attention():
    with pytest.raises(overfocus.CaptureError, match="no attention was captured: the model ran no softmax attention"):
        overfocus.verify(timm.create_model("test_resnet"), torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fused", [True, False])
def test_halves_and_doubles_pass(dtype, fused):
    model = make_model().to(dtype)
    for block in model.blocks:
        block.attn.fused_attn = fused
    assert overfocus.verify(model).passed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wrong_weights_fail_in_halves_too(monkeypatch, dtype):
    rows = QueryKeyWeights.rows
    monkeypatch.setattr(QueryKeyWeights, "rows", lambda self, *arguments: rows(self, *arguments).roll(1, -1))
    assert not overfocus.verify(make_model().to(dtype)).passed


class SequenceFirst(nn.Module):
    """The function of torch alone, (tokens, batch, channels)."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2)

    def forward(self, x):
        x = x.transpose(0, 1)
        inner = self.attn
        return F.multi_head_attention_forward(
            x, x, x, 16, 2, inner.in_proj_weight, inner.in_proj_bias, None, None, False, 0.0,
            inner.out_proj.weight, inner.out_proj.bias, need_weights=False,
        )[0]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_the_function_of_multi_head_attention(batch):
    verification = overfocus.verify(SequenceFirst(), torch.randn(batch, 5, 16))
    assert verification.passed
    assert verification.sites[0].shape == (batch, 2, 5, 5)


class Randomised(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x) + torch.rand(1)


class HalfNan(nn.Module):
    def forward(self, x):
        output = F.scaled_dot_product_attention(x, x, x)
        return output, output / 0 * 0


@pytest.mark.parametrize("model", [Randomised(), HalfNan()])
def test_random_numbers_and_nan_in_the_output_are_the_same_in_both_runs(model):
    state = torch.get_rng_state()
    x = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    verification = overfocus.verify(model, x)
    assert verification.passed
    assert torch.equal(torch.get_rng_state(), state)


def test_exported_programs_are_verified():
    model, images = make_model(), torch.randn(2, 3, 64, 64)
    assert overfocus.verify(torch.export.export(model, (images,)).module(), images).passed
