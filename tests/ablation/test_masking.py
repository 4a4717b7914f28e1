"""Hidden keys are out of the attention, in whatever way a model spells it, as if it never had them."""

import importlib

import pytest
import timm
import torch

import overfocus
from overfocus import CaptureError
from overfocus.capturing.sources import Arrangement
from overfocus.probes.ablation import KeySite, find_key_sites, hide_keys, ranks

FAMILIES = ["vit", "swin", "cait", "beit", "encoder", "spelled"]


def _hide_some(sites, count=2):
    """The `count` tokens of each map that receive most."""
    return [ranks(site.received, descending=True) < count for site in sites]


@pytest.mark.parametrize("family", ["vit", "spelled", "encoder"])
@torch.no_grad()
def test_equals_attention_computed_without_these_keys(family, make_model):
    """By hand: leave the rows of the hidden tokens out of keys and values, for queries of all tokens."""
    model = make_model(family)
    images = torch.randn(3, 3, *((4, 4) if family == "spelled" else (32, 32)))
    _, sites = find_key_sites(model, images)
    hidden = _hide_some(sites, 3)
    with hide_keys(model, sites, hidden):
        found = model(images)
    for image in range(3):
        assert torch.allclose(found[image], _without(model, family, images[image], hidden, image), atol=1e-5)


def _without(model, family, image, hidden, number):
    if family == "spelled":
        tokens = model.embed(image[None]).flatten(2)[0].T
        query, key, value = model.qkv(tokens).chunk(3, dim=-1)
        kept = ~hidden[0][number]
        weights = (query @ key[kept].T / 8**0.5).softmax(-1)
        return model.head((weights @ value[kept]).mean(0))
    if family == "encoder":
        tokens = model[:3](image[None])
        for layer, block in enumerate(model[3].layers):
            kept = tokens[:, ~hidden[layer][number]]
            tokens = block.norm1(tokens + block.self_attn(tokens, kept, kept, need_weights=False)[0])
            tokens = block.norm2(tokens + block.linear2(block.activation(block.linear1(tokens))))
        return model[4:](tokens)[0]
    tokens = model._pos_embed(model.patch_embed(image[None]))[0]
    for layer, block in enumerate(model.blocks):
        query, key, value = block.attn.qkv(block.norm1(tokens)).reshape(len(tokens), 3, 2, 16).permute(1, 2, 0, 3)
        kept = torch.cat([torch.ones(1, dtype=torch.bool), ~hidden[layer][number]])
        weights = (query @ key[:, kept].transpose(1, 2) / 4).softmax(-1)
        tokens = tokens + block.attn.proj((weights @ value[:, kept]).transpose(0, 1).flatten(1))
        tokens = tokens + block.mlp(block.norm2(tokens))
    return model.forward_head(model.norm(tokens[None]))[0]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "encoder"])  # capture reads its arguments
@torch.no_grad()
def test_hidden_keys_get_no_attention_and_the_others_all(family, fused, make_model):
    model = make_model(family, fused)
    images = torch.randn(2, 3, *((4, 4) if family == "spelled" else (32, 32)))
    whole, sites = find_key_sites(model, images)
    hidden = _hide_some(sites)
    with overfocus.capture(model) as captured, hide_keys(model, sites, hidden):
        without = model(images)
    assert len(captured.maps) == len(sites) == len(hidden)
    for attention, site, keys in zip(captured.maps, sites, hidden, strict=True):
        weights = attention.weights[..., site.key_prefix_tokens :]
        assert weights.movedim(-1, 1)[keys].abs().max() == 0
        if family != "cait":  # its heads are mixed after the softmax
            assert torch.allclose(attention.weights.sum(-1), torch.ones(()), atol=1e-5)
        assert weights.movedim(-1, 1)[~keys].abs().max() > 0
    assert not torch.equal(whole, without)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_nothing_hidden_changes_nothing_and_nothing_stays_behind(family, make_model):
    model = make_model(family)
    images = torch.randn(2, 3, *((4, 4) if family == "spelled" else (32, 32)))
    before, sites = find_key_sites(model, images)
    with hide_keys(model, sites, [torch.zeros_like(keys) for keys in _hide_some(sites)]):
        assert torch.allclose(model(images), before, atol=1e-5)
    with hide_keys(model, sites, _hide_some(sites)):
        model(images)
    assert torch.equal(model(images), before)


@torch.no_grad()
def test_images_of_one_batch_lose_keys_of_their_own(make_model):
    model = make_model("swin")
    images = torch.randn(2, 3, 32, 32)
    _, sites = find_key_sites(model, images)
    hidden = _hide_some(sites)
    none = [torch.zeros_like(keys) for keys in hidden]
    halves = [torch.cat([keys.chunk(2)[0], empty.chunk(2)[1]]) for keys, empty in zip(hidden, none, strict=True)]
    with hide_keys(model, sites, halves):
        found = model(images)
    with hide_keys(model, sites, hidden):
        first = model(images)[0]
    assert torch.allclose(found[0], first, atol=1e-5)
    assert torch.allclose(found[1], model(images)[1], atol=1e-5)


@torch.no_grad()
def test_a_site_that_did_not_pass_by_is_told(make_model):
    model = make_model("vit")
    _, sites = find_key_sites(model, torch.randn(2, 3, 32, 32))
    elsewhere = KeySite("blocks.7.attn", sites[0].arrangement, sites[0].shape, 1, 1, sites[0].received)
    with (
        pytest.raises(CaptureError, match=r"blocks\.7\.attn: its keys cannot be removed"),
        hide_keys(model, [elsewhere], _hide_some([elsewhere])),
    ):
        model(torch.randn(2, 3, 32, 32))


def test_equal_tokens_keep_their_order():
    received = torch.tensor([[0.2, 0.3, 0.2, 0.3]], dtype=torch.float64)
    assert ranks(received, descending=True).tolist() == [[2, 0, 3, 1]]
    assert ranks(received, descending=False).tolist() == [[0, 2, 1, 3]]


def test_a_model_without_attention_is_refused():
    with pytest.raises(CaptureError, match="no attention over tokens was found in Conv2d: nothing to remove"):
        find_key_sites(torch.nn.Conv2d(3, 4, 1), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("axes", "sizes"),
    [
        ((("image",), ("head",)), ((-1,), (3,))),
        ((("image", "head"),), ((-1, 3),)),
        ((("head",), ("image",)), ((3,), (-1,))),
        ((("image", "window"), ("head",)), ((-1, 4), (3,))),
        ((("image",), ("window",), ("head", "window")), ((-1,), (2,), (3, 2))),
    ],
)
def test_unfolding_is_the_way_back(axes, sizes):
    """Keys laid out as the model has them, then folded as capture folds weights, are the same for every head."""
    arrangement = Arrangement(axes, sizes, key_order=torch.tensor([2, 0, 3, 1]))
    keys = torch.arange(2 * arrangement.windows * 4.0).reshape(-1, 4)
    folded = arrangement.fold(arrangement.unfold(keys, 5))
    assert torch.equal(folded, keys[:, None, None].expand(-1, 3, 1, 4))
    assert (arrangement.unfold(keys, 5)[..., 4] == 1).all()  # a key that is none of the map stays


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224", "swinv2_tiny_window8_256", "pvt_v2_b0",
        "xcit_nano_12_p16_224", "maxvit_nano_rw_256", "crossvit_tiny_240", "levit_128s", "convit_tiny", "volo_d1_224",
        "mvitv2_tiny", "tiny_vit_5m_224", "tap_fan_tiny_12_p16_224", "tap_rvt_tiny", "fan_swin_tiny_patch4_window7_224",
    ],
)  # fmt: skip
@torch.no_grad()
def test_families(name):
    importlib.import_module("overfocus.models")
    model = timm.create_model(name).eval()
    images = torch.randn(2, *model.default_cfg["input_size"])
    _, sites = find_key_sites(model, images)
    hidden = [ranks(site.received, descending=True) < max(1, site.tokens // 20) for site in sites]
    with overfocus.capture(model) as captured, hide_keys(model, sites, hidden):
        assert torch.isfinite(model(images)).all()
    maps = [attention for attention in captured.maps if attention.kind != "channel"]
    for attention, site, keys in zip(maps, sites, hidden, strict=True):
        weights = attention.weights[..., site.key_prefix_tokens :]
        if weights.shape[-1] < keys.shape[-1]:  # capture leaves out keys that no query may see, as it does padding
            assert (weights.shape[-1] == (~keys).sum(-1)).all()
        else:
            assert weights.movedim(-1, 1)[keys].abs().max() < 1e-6
