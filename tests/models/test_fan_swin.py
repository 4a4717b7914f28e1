"""FAN-Swin: windows, masks and merging against their definitions, sizes of image, and TAP on request."""

from typing import Any

import pytest
import timm
import torch

import overfocus
from overfocus.models import FanSwin
from overfocus.models.blocks import ChannelProcessing
from overfocus.models.fan_swin import ARCHITECTURES


def small_swin(**arguments: Any) -> FanSwin:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "img_size": 56, "num_classes": 7}
    return FanSwin(**{**defaults, **arguments}).eval()


def test_every_name_is_registered_with_its_preprocessing() -> None:
    names = [prefix + name for prefix in ("", "tap_") for name in ARCHITECTURES]
    assert set(names) <= set(timm.list_models("*fan_swin*"))
    for name in names:
        config = timm.models.get_pretrained_cfg(name)
        assert (config.crop_pct, config.interpolation, config.input_size) == (0.9, "bicubic", (3, 224, 224))


def test_tap_is_the_references_empty_promise_unless_asked_for() -> None:
    with torch.device("meta"):
        plain = timm.create_model("fan_swin_tiny_patch4_window7_224", num_scales=4)
        by_default = timm.create_model("tap_fan_swin_tiny_patch4_window7_224")
        with_tap = timm.create_model("tap_fan_swin_tiny_patch4_window7_224", num_scales=4)
    assert plain.state_dict().keys() == by_default.state_dict().keys()
    added = with_tap.state_dict().keys() - plain.state_dict().keys()
    assert len(added) == 12 * 7
    assert all(".dilation_predictor.proj." in name for name in added)


def test_pooling_changes_what_attention_reads() -> None:
    images = torch.randn(2, 3, 56, 56)
    plain, pooled = small_swin(), small_swin(num_scales=3)
    missing = pooled.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert all(".dilation_predictor." in name for name in missing)
    assert not torch.allclose(plain(images), pooled(images))
    for block in (block for stage in pooled.layers for block in stage.blocks):
        # Branch 0, the token itself, takes all the weight.
        block.dilation_predictor.proj[2] = torch.nn.Conv2d(3, 3, 3, padding=1)
        torch.nn.init.zeros_(block.dilation_predictor.proj[2].weight)
        block.dilation_predictor.proj[2].bias.data = torch.tensor([50.0, 0.0, 0.0])
    torch.testing.assert_close(pooled(images), plain(images), atol=1e-5, rtol=1e-5)


def test_last_stage_has_an_ordinary_mlp_and_the_others_no_inner_residual() -> None:
    mlps = [[block.mlp for block in stage.blocks] for stage in small_swin().layers]
    assert all(isinstance(mlp, ChannelProcessing) and not mlp.mlp_v.residual for mlp in mlps[0])
    assert not any(isinstance(mlp, ChannelProcessing) for mlp in mlps[1])


def test_relative_position_index_is_in_the_checkpoint_and_as_defined() -> None:
    index = small_swin().state_dict()["layers.0.blocks.0.attn.relative_position_index"]
    for query in (0, 8, 48):
        for key in (0, 20, 47):
            rows, columns = query // 7 - key // 7, query % 7 - key % 7
            assert index[query, key] == (rows + 6) * 13 + columns + 6


def test_mask_of_shifted_windows_is_in_the_checkpoint_and_as_defined() -> None:
    state = small_swin().state_dict()
    assert [name for name in state if name.endswith("attn_mask")] == ["layers.0.blocks.1.attn_mask"]
    mask = state["layers.0.blocks.1.attn_mask"]
    assert mask.shape == (4, 49, 49)

    def region(place: int) -> int:  # of a row or column of the shifted grid, 14 long
        return (place >= 14 - 7) + (place >= 14 - 3)

    for window, query, key in [(0, 0, 48), (1, 3, 4), (1, 0, 48), (2, 0, 48), (3, 0, 48), (3, 0, 1), (2, 7, 8)]:
        regions = []
        for token in (query, key):
            row, column = window // 2 * 7 + token // 7, window % 2 * 7 + token % 7
            regions.append((region(row), region(column)))
        assert mask[window, query, key] == (0.0 if regions[0] == regions[1] else -100.0)


def test_merging_takes_the_four_sub_grids_in_the_references_order() -> None:
    merge = small_swin().layers[0].downsample
    merge.norm = torch.nn.Identity()
    merge.reduction = torch.nn.Identity()
    maps = torch.randn(1, 4, 6, 8)
    corners = [maps[:, 0::2, 0::2], maps[:, 1::2, 0::2], maps[:, 0::2, 1::2], maps[:, 1::2, 1::2]]
    assert torch.equal(merge(maps), torch.cat(corners, dim=-1))


@pytest.mark.parametrize("size", [(56, 56), (112, 56), (50, 75), (28, 140)])
@pytest.mark.parametrize("num_scales", [1, 3])
def test_any_size_of_image(size: tuple[int, int], num_scales: int) -> None:
    logits = small_swin(num_scales=num_scales)(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def test_mask_made_on_the_way_is_the_stored_one() -> None:
    built_for, other = small_swin(), small_swin(img_size=112)
    parameters = {name: tensor for name, tensor in built_for.state_dict().items() if not name.endswith("attn_mask")}
    other.load_state_dict(parameters, strict=False)
    for block in other.layers[1].blocks:
        block.shift_size = (0, 0)  # its grid is one window here, where the other model has no shift either
    images = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(other(images), built_for(images), atol=1e-5, rtol=1e-5)


def test_drop_path_ramp_ends_at_the_rate() -> None:
    blocks = [block for stage in small_swin(drop_path_rate=0.3).layers for block in stage.blocks]
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_classifier_follows_timms_conventions() -> None:
    model, images = small_swin(num_classes=0, in_chans=1), torch.randn(2, 1, 56, 56)
    assert model(images).shape == (2, 16)
    model.reset_classifier(5)
    features = model.forward_features(images)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.mean(dim=(1, 2)))
    assert model(images).shape == (2, model.get_classifier().out_features) == (2, 5)
    with pytest.raises(ValueError, match="expected global_pool to be one of '', 'avg', 'avgmax', 'max', got 'token'"):
        model.reset_classifier(5, global_pool="token")


def test_intermediate_features_and_layer_groups() -> None:
    model, images = small_swin(), torch.randn(2, 3, 56, 56)
    features, maps = model.forward_intermediates(images)
    assert [tuple(level.shape) for level in maps] == [(2, 8, 14, 14), (2, 16, 7, 7)]
    assert torch.equal(features, model.forward_features(images))
    assert len(model.forward_intermediates(images, indices=[0], stop_early=True, intermediates_only=True)) == 1
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_windows_are_captured() -> None:
    model = small_swin(num_scales=3)
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(torch.randn(2, 3, 56, 56))
    assert [(attention.kind, attention.windows) for attention in captured.maps] == [
        ("window", 4),
        ("window", 4),
        ("global", 1),
        ("global", 1),
    ]


def test_training_step_with_and_without_checkpointing() -> None:
    images, results = torch.randn(2, 3, 56, 56), []
    for checkpointed in (False, True):
        model = small_swin(num_scales=3).train()
        model.set_grad_checkpointing(checkpointed)
        torch.manual_seed(1)
        model(images).square().sum().backward()
        results.append({**{name: parameter.grad for name, parameter in model.named_parameters()}, **dict(model.named_buffers())})
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, msg=name)


def test_export_gives_the_same_logits() -> None:
    model, images = small_swin(num_scales=3), torch.randn(2, 3, 56, 56)
    exported = torch.export.export(model, (images,))
    torch.testing.assert_close(exported.module()(images), model(images), atol=1e-5, rtol=1e-5)
