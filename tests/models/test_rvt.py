"""RVT in every setting it must survive; the numbers themselves are in test_golden_models.py."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

import overfocus
import overfocus.models
from overfocus.models import Rvt
from overfocus.models.rvt import ARCHITECTURES, ConvolutionalMlp, RvtEmbedding, ScaledAttention, fit_masks


def small_rvt(**arguments: Any) -> Rvt:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"embed_dims": (16, 32), "depths": (2, 1), "num_heads": (2, 4), "num_scales": 3}
    return Rvt(**{**defaults, "num_classes": 7, **arguments}).eval()


def test_every_name_is_registered_with_its_preprocessing() -> None:
    names = [prefix + name for prefix in ("", "tap_") for name in ARCHITECTURES]
    assert set(names) <= set(timm.list_models("*rvt*"))
    for name in names:
        config = timm.models.get_pretrained_cfg(name)
        assert (config.crop_pct, config.interpolation, config.input_size) == (0.875, "bicubic", (3, 224, 224))


def test_masked_attention_multiplies_the_logits() -> None:
    attention = ScaledAttention(8, 2, mask_grid=(2, 3))
    nn.init.normal_(attention.att_mask)
    tokens = torch.randn(3, 6, 8)
    query, key, value = attention.qkv(tokens).chunk(3, dim=-1)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        logits = query[..., part] @ key[..., part].transpose(1, 2) / 2
        expected = (logits * torch.sigmoid(attention.att_mask[head])).softmax(-1) @ value[..., part]
        attention.proj.weight.data.zero_()
        attention.proj.weight.data[part, part] = torch.eye(4)
        torch.testing.assert_close((attention(tokens, (2, 3)) - attention.proj.bias)[..., part], expected, atol=1e-5, rtol=1e-4)


def test_mask_starts_within_its_narrow_bounds() -> None:
    mask = small_rvt(masked_blocks=1, img_size=64).transformers[0].blocks[0].attn.att_mask
    assert mask.abs().max() <= 0.02
    assert mask.std() > 0.008


def test_only_the_first_blocks_are_masked() -> None:
    with torch.device("meta"):
        for name, masked in [("rvt_tiny_plus", 10), ("tap_rvt_small_plus", 5), ("rvt_base", 0)]:
            blocks = [block for stage in timm.create_model(name).transformers for block in stage.blocks]
            assert [block.attn.att_mask is not None for block in blocks] == [number < masked for number in range(12)]


def test_plain_blocks_of_width_768_have_a_linear_mlp() -> None:
    with torch.device("meta"):
        kinds = {
            name: type(timm.create_model(name).transformers[0].blocks[0].mlp).__name__
            for name in ("rvt_base", "tap_rvt_base", "rvt_small")
        }
    assert kinds == {"rvt_base": "Mlp", "tap_rvt_base": "ConvolutionalMlp", "rvt_small": "ConvolutionalMlp"}


def test_linear_mlp_runs() -> None:
    model = Rvt(embed_dims=(768,), depths=(1,), num_heads=(2,), num_classes=3).eval()
    assert model(torch.randn(1, 3, 32, 48)).shape == (1, 3)


def test_convolutional_mlp_is_the_written_sequence() -> None:
    mlp = ConvolutionalMlp(4).double().eval()
    for name, tensor in mlp.state_dict().items():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5) if "running_var" in name else nn.init.normal_(tensor)
    tokens = torch.randn(2, 6, 4, dtype=torch.float64)
    gelu = nn.GELU()
    maps = tokens.permute(0, 2, 1).reshape(2, 4, 2, 3)
    maps = gelu(mlp.bn2(mlp.dwconv(gelu(mlp.bn1(mlp.fc1(maps))))))
    torch.testing.assert_close(mlp(tokens, (2, 3)), mlp.bn3(mlp.fc2(maps)).reshape(2, 4, 6).permute(0, 2, 1))


@pytest.mark.parametrize("pixels", [16, 31, 64, 97, 224, 225, 256, 384])
def test_length_of_the_embedding_is_known_beforehand(pixels: int) -> None:
    _, grid = RvtEmbedding(3, 8)(torch.zeros(1, 3, pixels, 224))
    assert grid == (RvtEmbedding.length(pixels), 14)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (75, 130)])
@pytest.mark.parametrize("num_scales", [None, 3])
def test_any_size_of_image(size: tuple[int, int], num_scales: int | None) -> None:
    logits = small_rvt(num_scales=num_scales)(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def test_masked_model_of_another_size_works_and_refuses_others() -> None:
    model = small_rvt(masked_blocks=2, img_size=(64, 96))
    assert model(torch.randn(2, 3, 64, 96)).shape == (2, 7)
    words = r"expected an image of 4 × 6 patches, .* got 6 × 4; build the model with img_size=\(height, width\) or dynamic"
    with pytest.raises(ValueError, match=words):
        model(torch.randn(2, 3, 96, 64))


def test_masks_are_resampled_to_another_grid() -> None:
    small, large = small_rvt(masked_blocks=1, img_size=64), small_rvt(masked_blocks=1, img_size=(128, 96))
    constant = small.state_dict()
    name = "transformers.0.blocks.0.attn.att_mask"
    constant[name] = torch.full_like(constant[name], 0.25)
    fitted = fit_masks(constant, large)
    large.load_state_dict(fitted, strict=True)
    torch.testing.assert_close(fitted[name], torch.full((2, 48, 48), 0.25))
    same = fit_masks(small.state_dict(), small)
    assert torch.equal(same[name], small.state_dict()[name])


def test_resampled_masks_keep_queries_and_keys_apart() -> None:
    large = small_rvt(masked_blocks=1, img_size=128)
    name = "transformers.0.blocks.0.attn.att_mask"
    by_query = torch.arange(16.0)[None, :, None].expand(2, 16, 16).clone()
    fitted = fit_masks({name: by_query}, large)[name]
    torch.testing.assert_close(fitted, fitted[:, :, :1].expand(-1, -1, 64))
    assert fitted[0, -1, 0] > fitted[0, 0, 0]


def test_hybrid_has_the_stem_and_masks_over_its_finer_grid() -> None:
    with torch.device("meta"):
        model = timm.create_model("tap_rvt_tiny_plus_hybrid")
    assert [len(stage.blocks) for stage in model.transformers] == [7, 2]
    assert model.transformers[0].blocks[6].attn.att_mask.shape == (6, 784, 784)
    small = small_rvt(stem_depths=(1, 1), masked_blocks=2, img_size=64)
    assert small(torch.randn(1, 3, 64, 64)).shape == (1, 7)


def test_drop_path_ramp_ends_one_step_below_the_rate() -> None:
    model = small_rvt(depths=(3, 1), drop_path_rate=0.2)
    rates = [block.drop_path.drop_prob for stage in model.transformers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15])


def test_classifier_follows_timms_conventions() -> None:
    model, images = small_rvt(num_classes=0, in_chans=1), torch.randn(2, 1, 64, 64)
    assert model(images).shape == (2, 32)
    model.reset_classifier(5)
    features = model.forward_features(images)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), model.norm(features.mean(dim=1)))
    assert model(images).shape == (2, model.get_classifier().out_features) == (2, 5)
    with pytest.raises(ValueError, match="expected global_pool to be one of '', 'avg', 'avgmax', 'max', got 'token'"):
        model.reset_classifier(5, global_pool="token")


def test_intermediate_features() -> None:
    model, images = small_rvt(), torch.randn(2, 3, 64, 96)
    features, maps = model.forward_intermediates(images)
    assert [tuple(level.shape) for level in maps] == [(2, 16, 4, 6), (2, 16, 4, 6), (2, 32, 2, 3)]
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), features)
    assert len(model.forward_intermediates(images, indices=1, intermediates_only=True, output_fmt="NLC")) == 1


def test_every_parameter_is_in_a_layer_group() -> None:
    model = small_rvt()
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_attention_with_position_aware_scaling_is_captured() -> None:
    model = small_rvt(masked_blocks=1, img_size=(64, 96))
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(torch.randn(2, 3, 64, 96))
    assert [(attention.kind, attention.grid) for attention in captured.maps] == [
        ("global", (4, 6)),
        ("global", (4, 6)),
        ("global", (2, 3)),
    ]


def test_checkpointing_changes_neither_gradients_nor_statistics() -> None:
    images, results = torch.randn(4, 3, 64, 64), []
    for checkpointed in (False, True):
        model = small_rvt(masked_blocks=1, img_size=64, drop_path_rate=0.2).train()
        model.set_grad_checkpointing(checkpointed)
        torch.manual_seed(1)
        model(images).square().sum().backward()
        results.append({**{name: parameter.grad for name, parameter in model.named_parameters()}, **dict(model.named_buffers())})
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, msg=name)


def test_autocast_stays_close_and_copies_are_independent() -> None:
    model, images = small_rvt(masked_blocks=1, img_size=64), torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(images)
    exact = model(images)
    assert (rough.float() - exact).abs().max() < 0.1 * exact.std()
    copied = copy.deepcopy(model)
    nn.init.zeros_(copied.head.weight)
    assert torch.equal(model(images), exact)


def test_export_gives_the_same_logits() -> None:
    model, images = small_rvt(masked_blocks=1, img_size=64), torch.randn(2, 3, 64, 64)
    exported = torch.export.export(model, (images,))
    torch.testing.assert_close(exported.module()(images), model(images), atol=1e-5, rtol=1e-5)
