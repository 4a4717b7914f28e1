"""Our classifiers in every use that timm's own models support: what a ViT or Swin of timm passes here, ours pass.

Small variants of each family run by default. With `-m slow` every registered name does, as a narrow and shallow model with its
own kinds of layers, heads and stem; with `-m nightly` each in its full size. timm's own ViT runs beside them, so that a check
that asks too much shows. The `_segformer` models are no classifiers and are left out by name.
"""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import FeatureInfo, get_notrace_functions, get_notrace_modules, get_pretrained_cfg_value
from torch import Tensor, nn

import overfocus.models
from overfocus.models.add_tap import BASES
from overfocus.models.fan import ARCHITECTURES as FAN
from overfocus.models.fan_swin import ARCHITECTURES as FAN_SWIN
from overfocus.models.rvt import ARCHITECTURES as RVT
from overfocus.models.segmentation import OUT_BLOCKS

NAMES = [*(prefix + name for prefix in ("", "tap_") for name in (*FAN, *FAN_SWIN, *RVT)), *(f"tap_{base}" for base in BASES)]
TINY_FAN = {"embed_dims": (32,), "depths": (4,), "num_heads": (4,)}
TINY_RVT = {"embed_dims": (16, 32), "depths": (3, 1), "num_heads": (2, 4)}
TINY_SWIN = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 2, 2)}
TINY_VIT = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 64}
SMALL: list[tuple[str, dict[str, Any]]] = [
    ("fan_tiny_12_p16_224", TINY_FAN),
    ("tap_fan_tiny_12_p16_224", TINY_FAN),
    ("tap_fan_xlarge_16_p4_hybrid", {**TINY_RVT, "num_heads": (4, 4), "stem_depths": (1, 1)}),
    ("fan_swin_tiny_patch4_window7_224", TINY_SWIN),
    ("tap_fan_swin_tiny_patch4_window7_224", {**TINY_SWIN, "num_scales": 3}),
    ("rvt_tiny", TINY_RVT),
    ("tap_rvt_tiny_plus", {**TINY_RVT, "masked_blocks": 2, "img_size": 64}),
    ("tap_vit_tiny_patch16_224", TINY_VIT),
    ("tap_deit_tiny_distilled_patch16_224", TINY_VIT),
    ("tap_swin_tiny_patch4_window7_224", TINY_SWIN),
    ("vit_tiny_patch16_224", TINY_VIT),  # timm's own
]


def narrow(name: str) -> dict[str, Any]:
    """Changes that leave a registered model its heads, stages and stem, but 8 channels a head and at most four blocks a stage."""
    found = {**FAN, **FAN_SWIN, **RVT}.get(name.removeprefix("tap_"))
    if found is None:  # with the heads of timm's base
        size = next(word for word in ("tiny", "small", "base") if word in name)
        if "swin" in name:
            return {"embed_dim": {"tiny": 24, "small": 24, "base": 32}[size], "depths": (2, 2, 2, 2)}
        return {"embed_dim": {"tiny": 24, "small": 48, "base": 96}[size], "depth": 4, "img_size": 64}
    changes: dict[str, Any] = {"depths": {1: (4,), 2: (3, 1), 4: (2, 2, 2, 2)}[len(found["depths"])]}
    if "embed_dim" in found:
        return {**changes, "embed_dim": 8 * found["num_heads"][0]}
    if "rvt_base" not in name:  # whose MLP is another one at its width of 768
        changes["embed_dims"] = tuple(8 * heads for heads in found["num_heads"])
    return {**changes, "masked_blocks": 2, "img_size": 64} if "masked_blocks" in found else changes


CASES = [pytest.param(name, changes, id=f"{name}-small") for name, changes in SMALL]
CASES += [pytest.param(name, narrow(name), id=f"{name}-narrow", marks=pytest.mark.slow) for name in NAMES]
CASES += [pytest.param(name, {}, id=name, marks=pytest.mark.nightly) for name in NAMES]
every_model = pytest.mark.parametrize(("name", "changes"), CASES)


def build(name: str, changes: dict[str, Any], **more: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **{**changes, **more}).eval()


def images_for(name: str, changes: dict[str, Any], count: int = 1, channels: int = 3) -> Tensor:
    """As small as the model's registered configuration allows."""
    side = changes.get("img_size", 224 if get_pretrained_cfg_value(name, "fixed_input_size") else 96)
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def test_every_registered_name_is_tested_or_no_classifier() -> None:
    ours = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("overfocus.")]
    segmentation = {f"{prefix}{name}_segformer" for prefix in ("", "tap_") for name in OUT_BLOCKS}
    assert set(ours) == set(NAMES) | segmentation


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_narrow_model_has_every_kind_of_layer_of_the_whole(name: str) -> None:
    """What the tests of narrow models see of a registered name is all there is but for width and repetition."""

    def kinds(changes: dict[str, Any]) -> tuple[set[str], set[tuple[str, str]]]:
        with torch.device("meta"):
            model = timm.create_model(name, **changes)
        types = {(re.sub(r"\d+", "#", entry), type(module).__name__) for entry, module in model.named_modules()}
        return {re.sub(r"\d+", "#", entry) for entry in model.state_dict()}, types

    assert kinds(narrow(name)) == kinds({})


@pytest.mark.parametrize("base", BASES)
def test_configuration_of_a_base_is_kept(base: str) -> None:
    ours, theirs = timm.get_pretrained_cfg(f"tap_{base}"), timm.get_pretrained_cfg(base)
    for field in ("input_size", "fixed_input_size", "pool_size", "first_conv", "classifier", "mean", "std", "crop_pct"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert not ours.has_weights


@every_model
def test_forward_with_and_without_checkpointing(name: str, changes: dict[str, Any]) -> None:
    model, images = build(name, changes), images_for(name, changes)
    logits = model(images)
    assert logits.shape == (1, 1000)
    assert logits.isfinite().all()
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(images), logits, rtol=1e-4, atol=1e-5)


@every_model
def test_backward_reaches_every_parameter(name: str, changes: dict[str, Any]) -> None:
    model = build(name, changes, num_classes=42).train()
    logits = model(images_for(name, changes, count=2))
    logits = torch.cat(logits) if isinstance(logits, tuple) else logits  # a distilled model in training
    assert logits.shape[-1] == 42
    logits.mean().backward()
    assert [parameter for parameter, tensor in model.named_parameters() if tensor.grad is None] == []


@every_model
def test_classifier_and_pooling_are_reset_and_left_out(name: str, changes: dict[str, Any]) -> None:
    model, images = build(name, changes), images_for(name, changes)
    state, config = model.state_dict(), model.default_cfg
    names = config["classifier"] if isinstance(config["classifier"], (tuple, list)) else (config["classifier"],)
    assert all(f"{module}.weight" in state for module in (*names, config["first_conv"]))

    features = model.forward_features(images)
    assert features.shape[-1] == model.num_features
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (1, model.head_hidden_size)
    model.reset_classifier(0)
    assert model.num_classes == 0
    torch.testing.assert_close(model(images), pooled)

    if "distilled" in name:
        return  # both of its tokens always go to the classifiers, in timm too
    model.reset_classifier(0, "")
    unpooled = model(images)
    assert unpooled.ndim == features.ndim == (4 if "swin" in name else 3)
    without = build(name, changes, num_classes=0, global_pool="")(images)
    assert without.shape == unpooled.shape
    model.reset_classifier(5, "avg")
    assert model(images).shape == (1, 5)


@pytest.mark.parametrize("name", [name for name in NAMES if "swin" in name])
def test_pool_size_is_the_grid_of_the_last_features(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
        features = model.forward_features(torch.empty(1, 3, 224, 224))
    assert tuple(features.shape[1:3]) == model.default_cfg["pool_size"]


@every_model
def test_features_only_gives_the_last_levels(name: str, changes: dict[str, Any]) -> None:
    images = images_for(name, changes)
    backbone = build(name, changes, features_only=True)
    levels = backbone(images)
    assert len(levels) == (4 if "swin" in name else 3)
    whole = build(name, changes)
    _, expected = whole.forward_intermediates(images, indices=len(levels))
    for level, other, channels, reduction in zip(
        levels, expected, backbone.feature_info.channels(), backbone.feature_info.reduction(), strict=True
    ):
        torch.testing.assert_close(level, other, rtol=1e-4, atol=1e-5)
        assert level.shape[1] == channels
        assert max(level.shape[2:]) <= math.ceil(images.shape[-1] / reduction) + 1


@every_model
def test_forward_intermediates(name: str, changes: dict[str, Any]) -> None:
    model, images = build(name, changes), images_for(name, changes)
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    features, levels = model.forward_intermediates(images)
    torch.testing.assert_close(features, model.forward_features(images))
    assert [level.shape[1] for level in levels] == info.channels()
    model.set_grad_checkpointing()
    torch.testing.assert_close(model.forward_intermediates(images)[0], features, rtol=1e-4, atol=1e-5)


@every_model
def test_pruned_model_gives_the_same_features(name: str, changes: dict[str, Any]) -> None:
    model, images = build(name, changes), images_for(name, changes)
    expected = model.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
    assert model.prune_intermediate_layers([0, 1], prune_norm=True) == [0, 1]
    assert sum(map(torch.Tensor.numel, model.parameters())) < sum(map(torch.Tensor.numel, build(name, changes).parameters()))
    for level, other in zip(model.forward_intermediates(images, intermediates_only=True), expected, strict=True):
        torch.testing.assert_close(level, other)
    assert model(images).shape[-1] == model.num_features


@pytest.mark.parametrize(("name", "changes"), [case for case in SMALL if not case[0].startswith("tap_swin")])
def test_prefix_tokens_and_dictionary_of_intermediates(name: str, changes: dict[str, Any]) -> None:
    model, images = build(name, changes), images_for(name, changes)
    found = model.forward_intermediates(images, indices=2, return_prefix_tokens=True, output_dict=True)
    assert len(found["image_intermediates"]) == 2
    assert ("image_intermediates_prefix" in found) == ("vit" in name or "deit" in name)
    torch.testing.assert_close(found["image_features"], model.forward_features(images))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@every_model
def test_torchscript_gives_the_same_logits(name: str, changes: dict[str, Any]) -> None:
    model, images = build(name, changes), images_for(name, changes)
    with torch.no_grad():
        expected = model(images)
        scripted = torch.jit.script(model)
        torch.testing.assert_close(scripted(images), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(images), expected)  # still works as it is


def traced(model: nn.Module) -> Any:
    """The graph that torch.fx records, as timm records its own models."""
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    settings = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    training, evaluation = extraction.get_graph_node_names(model, tracer_kwargs=settings)
    return extraction.create_feature_extractor(
        model, train_return_nodes=[training[-1]], eval_return_nodes=[evaluation[-1]], tracer_kwargs=settings
    )


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@every_model
def test_fx_graph_gives_the_same_logits_and_scripts(name: str, changes: dict[str, Any]) -> None:
    model, images = build(name, changes), images_for(name, changes)
    with torch.inference_mode():
        expected = model(images)
        graph = traced(model)
        (logits,) = graph(images).values()
        assert torch.equal(logits, expected)
        (logits,) = torch.jit.script(graph)(images).values()
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@every_model
def test_fx_graph_trains_every_parameter(name: str, changes: dict[str, Any]) -> None:
    if "distilled" in name:
        pytest.skip("two outputs in training, of which this test takes one")
    graph = traced(build(name, changes).train()).train()
    (logits,) = graph(images_for(name, changes, count=2)).values()
    logits.mean().backward()
    assert [parameter for parameter, tensor in graph.named_parameters() if tensor.grad is None] == []


@every_model
def test_a_pretrained_file_fits_other_channels_and_classes(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    original = build(name, changes)
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    given = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth")}}
    for classes in (3, 0):
        model = build(name, changes, **given, in_chans=1, num_classes=classes)
        first = model.default_cfg["first_conv"]
        expected, found = original.state_dict(), model.state_dict()
        torch.testing.assert_close(found[f"{first}.weight"], expected[f"{first}.weight"].sum(1, keepdim=True))
        same = [entry for entry in found if not entry.startswith(("head", f"{first}.weight"))]
        assert all(torch.equal(found[entry], expected[entry]) for entry in same)
        assert model(images_for(name, changes, channels=1)).shape == (1, classes or model.num_features)
    levels = build(name, changes, **given, features_only=True)(images_for(name, changes))
    _, expected_levels = original.forward_intermediates(images_for(name, changes), indices=len(levels))
    torch.testing.assert_close(levels[-1], expected_levels[-1])


@pytest.mark.parametrize("name", ["tap_vit_tiny_patch16_224", "tap_swin_tiny_patch4_window7_224"])
def test_a_pretrained_file_without_tap_keeps_its_output(name: str, tmp_path: Path) -> None:
    changes = dict(SMALL)[name]
    base = build(name.removeprefix("tap_"), changes)
    torch.save(base.state_dict(), tmp_path / "base.pth")
    model = build(name, changes, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "base.pth")})
    images = images_for(name, changes)
    torch.testing.assert_close(model(images), base(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "changes"), SMALL)
def test_other_image_sizes(name: str, changes: dict[str, Any]) -> None:
    model = build(name, changes)
    before = {entry: tensor.clone() for entry, tensor in model.state_dict().items()}
    model.set_input_size(img_size=(128, 96))
    images = torch.randn(1, 3, 128, 96)
    assert model(images).shape == (1, 1000)
    if not name.startswith("tap_swin"):  # timm scales its windows, but not when it builds a model
        rebuilt = build(name, changes, img_size=(128, 96))
        assert {entry: tensor.shape for entry, tensor in rebuilt.state_dict().items()} == {
            entry: tensor.shape for entry, tensor in model.state_dict().items()
        }
    kept = [entry for entry, tensor in model.state_dict().items() if tensor.shape == before[entry].shape and "mask" not in entry]
    assert all(torch.equal(model.state_dict()[entry], before[entry]) for entry in kept if "bias_table" not in entry)


@pytest.mark.parametrize(("name", "changes"), [case for case in SMALL if not case[0].startswith("tap_swin")])
def test_dynamic_image_size(name: str, changes: dict[str, Any]) -> None:
    model = build(name, changes, dynamic_img_size=True)
    assert model(torch.randn(1, 3, 96, 128)).shape == (1, 1000)
    at_home = images_for(name, changes)
    torch.testing.assert_close(model(at_home), build(name, changes)(at_home))


@pytest.mark.parametrize("name", ["fan_tiny_12_p16_224", "fan_swin_tiny_patch4_window7_224", "rvt_tiny"])
def test_a_patch_size_is_refused(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match="expected no patch_size, since the stem's convolutions fix it, got 8"):
        model.set_input_size(patch_size=8)


def test_scaling_of_another_size_is_that_of_a_model_built_for_it() -> None:
    name, changes = "tap_rvt_tiny_plus", dict(SMALL)["tap_rvt_tiny_plus"]
    small, dynamic = build(name, changes), build(name, changes, dynamic_img_size=True)
    nn.init.normal_(small.transformers[0].blocks[0].attn.att_mask)
    dynamic.load_state_dict(small.state_dict())
    images = torch.randn(1, 3, 96, 128)
    expected = dynamic(images)
    small.set_input_size((96, 128))
    torch.testing.assert_close(small(images), expected)
    assert overfocus.models.Rvt is type(small)
