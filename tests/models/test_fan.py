"""FAN in every setting it must survive; the numbers themselves are in test_golden_models.py."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.xcit import PositionalEncodingFourier
from torch import nn

import overfocus.models
from overfocus.models import Fan
from overfocus.models.fan import ARCHITECTURES, FourierEncoding, convert_state_dict

NAMES = [prefix + name for prefix in ("", "tap_") for name in ARCHITECTURES]


def small_fan(**arguments: Any) -> Fan:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"embed_dims": (32,), "depths": (2,), "num_heads": (4,), "stem_depths": (1, 1), "num_scales": 3}
    return Fan(**{**defaults, "num_classes": 7, **arguments}).eval()


def test_every_name_is_registered_with_its_preprocessing() -> None:
    for name in NAMES:
        config = timm.models.get_pretrained_cfg(name)
        cropped = name.endswith(("tiny_8_p4_hybrid", "xlarge_16_p4_hybrid"))
        assert (config.crop_pct, config.interpolation) == (0.9 if cropped else 1.0, "bicubic")
        assert config.mean == (0.485, 0.456, 0.406)
        assert config.input_size == (3, 224, 224)


def test_num_scales_is_the_number_of_branches_and_4_by_default() -> None:
    with torch.device("meta"):
        branches = [
            timm.create_model("tap_fan_tiny_8_p4_hybrid", num_scales=k).blocks[0].token_pools.branches for k in (1, 3, None)
        ]
        assert branches == [1, 3, 4]
        assert timm.create_model("fan_tiny_8_p4_hybrid", num_scales=4).blocks[0].dilation_predictor is None
        with pytest.raises(ValueError, match="at least 1 branch"):
            timm.create_model("tap_fan_tiny_8_p4_hybrid", num_scales=0)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"stem_depths": None}, {"num_scales": None}, {"embed_dims": (24, 32), "depths": (2, 1), "num_heads": (2, 4)}],
)
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (70, 131), (16, 16)])
def test_any_size_of_image(arguments: dict[str, Any], size: tuple[int, int]) -> None:
    logits = small_fan(**arguments)(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def test_images_of_a_batch_do_not_see_each_other() -> None:
    model, images = small_fan(), torch.randn(3, 3, 64, 96)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), atol=1e-5, rtol=1e-5)


def test_memory_format_of_the_image_does_not_matter() -> None:
    model, images = small_fan(), torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(model(images), model(images.contiguous(memory_format=torch.channels_last)), atol=1e-5, rtol=1e-5)


def test_encoding_pairs_its_frequencies_as_timms_does() -> None:
    ours, theirs = FourierEncoding(16), PositionalEncodingFourier(dim=16)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours((5, 7)), theirs(1, 5, 7).flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("paired", [True, False])
def test_encoding_is_the_written_formula(paired: bool) -> None:
    encoding = FourierEncoding(64, paired_frequencies=paired)
    nn.init.dirac_(encoding.token_projection.weight)
    nn.init.zeros_(encoding.token_projection.bias)
    waves = encoding((4, 6)).detach().reshape(4, 6, 64)
    for row, column, channel in [(0, 0, 0), (3, 5, 63), (2, 1, 17), (1, 4, 32), (3, 0, 31)]:
        place, length = (row, 4) if channel < 32 else (column, 6)
        index = channel % 32
        exponent = 2 * (index // 2) / 32 if paired else index / 32
        angle = 2 * math.pi * (place + 1) / (length + 1e-6) / 10000**exponent
        expected = math.sin(angle) if index % 2 == 0 else math.cos(angle)
        assert waves[row, column, channel].item() == pytest.approx(expected, abs=1e-5)


def test_class_attention_moves_normalises_and_doubles_the_patches() -> None:
    model = small_fan()
    block = model.cls_attn_blocks[0]
    nn.init.normal_(block.gamma1)
    tokens = torch.randn(2, 9, 32)
    patches = tokens[:, 1:]
    expected = 2 * block.norm2(patches + block.gamma1 * block.norm1(patches))
    torch.testing.assert_close(block(tokens)[:, 1:], expected)


def test_drop_path_is_the_same_in_every_block() -> None:
    model = small_fan(depths=(4,), drop_path_rate=0.3)
    assert [block.drop_path.drop_prob for block in model.blocks] == [0.3] * 4


def test_pooling_reads_the_stream_before_its_norm_and_the_residual_bypasses_it() -> None:
    block = small_fan().blocks[0]
    tokens, grid = torch.randn(2, 6, 32), (2, 3)
    block.gamma2.data.zero_()
    pooled = block.token_pools(tokens, block.dilation_predictor(tokens, grid), grid)
    torch.testing.assert_close(block(tokens, grid), tokens + block.gamma1 * block.attn(block.norm1(pooled)))


def test_classifier_follows_timms_conventions() -> None:
    model, images = small_fan(num_classes=0, in_chans=1), torch.randn(2, 1, 64, 64)
    assert model(images).shape == (2, 32)
    model.reset_classifier(5)
    assert model(images).shape == (2, 5)
    assert model.get_classifier().out_features == 5
    features = model.forward_features(images)
    assert features.shape == (2, 17, 32)
    assert torch.equal(model.forward_head(features, pre_logits=True), features[:, 0])
    model.reset_classifier(5, global_pool="avg")
    assert torch.equal(model.forward_head(features, pre_logits=True), features[:, 1:].mean(dim=1))
    with pytest.raises(ValueError, match="one of '', 'token', 'avg', 'avgmax', 'max', got 'map'"):
        model.reset_classifier(5, global_pool="map")


def test_classifier_of_the_large_hybrid_starts_small() -> None:
    assert small_fan(head_init_scale=0.001).head.weight.abs().max() < 2e-4
    assert ARCHITECTURES["fan_large_16_p4_hybrid"]["head_init_scale"] == 0.001


def test_intermediate_features() -> None:
    model, images = small_fan(depths=(3,)), torch.randn(2, 3, 64, 96)
    features, maps = model.forward_intermediates(images, indices=[0, 2])
    torch.testing.assert_close(features, model.forward_features(images))
    assert [tuple(level.shape) for level in maps] == [(2, 32, 4, 6)] * 2
    tokens = model.forward_intermediates(images, indices=[0], stop_early=True, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(tokens[0].transpose(1, 2).reshape(2, 32, 4, 6), maps[0])
    with pytest.raises(ValueError, match="expected output_fmt 'NCHW' or 'NLC', got 'NHWC'"):
        model.forward_intermediates(images, output_fmt="NHWC")


def test_features_only_through_timm() -> None:
    assert timm.create_model("tap_fan_tiny_8_p4_hybrid", features_only=True, out_indices=(3,)).feature_info.channels() == [192]
    backbone = timm.create_model("tap_fan_tiny_8_p4_hybrid", features_only=True, out_indices=(1, 7)).eval()
    assert backbone.feature_info.channels() == [192, 192]
    assert [tuple(level.shape) for level in backbone(torch.randn(1, 3, 32, 64))] == [(1, 192, 2, 4)] * 2


def test_every_parameter_is_in_a_layer_group() -> None:
    groups = timm.models.group_parameters(small_fan(), small_fan().group_matcher())
    assert sum(map(len, groups.values())) == len(list(small_fan().parameters()))


def test_old_names_of_parameters_are_converted() -> None:
    model = small_fan()
    state = model.state_dict()
    old = {name.replace("pos_embed.", "pos_embeder."): tensor for name, tensor in state.items()}
    for block in range(2):
        for kind in ("weight", "bias"):
            stem = f"cls_attn_blocks.{block}.attn"
            old[f"{stem}.qkv.{kind}"] = torch.cat([old.pop(f"{stem}.{part}.{kind}") for part in "qkv"])
    converted = convert_state_dict(old, model)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)


def training_step(model: Fan, images: torch.Tensor, checkpointed: bool) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(model).train()
    model.set_grad_checkpointing(checkpointed)
    torch.manual_seed(1)
    model(images).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return {**gradients, **dict(model.named_buffers())}


def test_checkpointing_changes_neither_gradients_nor_statistics() -> None:
    model, images = small_fan(drop_path_rate=0.3, stem_depths=None), torch.randn(4, 3, 48, 64)
    plain, checkpointed = training_step(model, images, False), training_step(model, images, True)
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], msg=name)
    assert not torch.equal(plain["blocks.0.mlp.mlp_v.dwconv.bn.running_mean"], torch.zeros(128))


def test_autocast_stays_close() -> None:
    model, images = small_fan(), torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(images)
    exact = model(images)
    assert (rough.float() - exact).abs().max() < 0.05 * exact.std()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.train()(images).float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    logits = small_fan().to(dtype)(torch.randn(2, 3, 64, 64, dtype=dtype))
    assert logits.dtype == dtype
    assert logits.isfinite().all()


def test_export_gives_the_same_logits() -> None:
    model, images = small_fan(), torch.randn(2, 3, 64, 96)
    exported = torch.export.export(model, (images,))
    torch.testing.assert_close(exported.module()(images), model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_compiled_graph_gives_the_same_logits(training: bool) -> None:
    model, images = small_fan().train(training), torch.randn(2, 3, 64, 96)
    expected = copy.deepcopy(model)(images)
    compiled: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_compiled_code_gives_the_same_logits() -> None:
    model, images = small_fan(), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(images), model(images), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_compiled_checkpointing_leaves_gradients_and_statistics() -> None:
    images, results = torch.randn(2, 3, 48, 64), []
    for compiled in (False, True):
        model = small_fan(stem_depths=None).train()
        model.set_grad_checkpointing(True)
        forward = torch.compile(model, backend="aot_eager") if compiled else model
        forward(images).square().sum().backward()
        results.append({**{name: parameter.grad for name, parameter in model.named_parameters()}, **dict(model.named_buffers())})
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_onnx_gives_the_same_logits(tmp_path: Path) -> None:
    reference = pytest.importorskip("onnx.reference")
    model, images = small_fan(), torch.randn(2, 3, 48, 64)
    torch.onnx.export(model, (images,), str(tmp_path / "fan.onnx"), input_names=["images"], opset_version=17, dynamo=False)
    (logits,) = reference.ReferenceEvaluator(str(tmp_path / "fan.onnx")).run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model(images).detach(), atol=1e-5, rtol=1e-4)


def test_state_dict_survives_the_ddp_prefix_and_a_round_trip() -> None:
    model, other = small_fan(), small_fan()
    nn.init.normal_(other.head.weight)
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    other.load_state_dict({name.removeprefix("module."): tensor for name, tensor in wrapped.items()}, strict=True)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(images), other(images))


def test_models_are_known_after_importing_the_package() -> None:
    assert set(NAMES) <= set(timm.list_models("*fan*"))
    assert overfocus.models.Fan is Fan
