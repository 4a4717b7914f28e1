"""TAP added to timm's models: where it enters, what it leaves alone, what it survives; timm's entry points with TAP."""

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import overfocus
from overfocus.errors import OverfocusError
from overfocus.models import add_tap
from overfocus.models.add_tap import BASES

SMALL = {
    "vit_tiny_patch16_224": {"depth": 2, "img_size": 64},
    "deit_tiny_distilled_patch16_224": {"depth": 2, "img_size": 64},
    "vit_small_patch14_reg4_dinov2": {"depth": 2, "img_size": 56},
    "vit_relpos_small_patch16_224": {"depth": 2, "img_size": 64},
    "beit_base_patch16_224": {"depth": 2, "img_size": 64, "embed_dim": 96, "num_heads": 3},
    "eva02_tiny_patch14_224": {"depth": 2, "img_size": 56},
    "cait_xxs24_224": {"depth": 2, "img_size": 64},
    "xcit_nano_12_p16_224": {"depth": 2, "img_size": 64},
    "swin_tiny_patch4_window7_224": {"depths": (2, 1), "num_heads": (3, 6), "img_size": 56},
    "swinv2_tiny_window8_256": {"depths": (2, 1), "num_heads": (3, 6), "img_size": 64},
    "swinv2_cr_tiny_224": {"depths": (2, 1), "num_heads": (3, 6), "img_size": 56, "window_size": 7},
}
every_family = pytest.mark.parametrize("name", SMALL)


def build(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **{**SMALL[name], **arguments})
    with torch.no_grad():  # layer scales and norms that start near zero would hide what happens before them
        for key, parameter in model.named_parameters():
            if parameter.abs().max() < 1e-3 and "bias" not in key:
                nn.init.normal_(parameter, 0.5, 0.1)
    return model.eval()


def image(name: str, batch: int = 2) -> Tensor:
    size = int(SMALL[name]["img_size"])
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if "dilation_predictor" in dict(module.named_children())]


@every_family
@torch.no_grad()
def test_keeps_weights_and_names_and_changes_the_output(name: str) -> None:
    model = build(name)
    before, output = copy.deepcopy(model.state_dict()), model(image(name))
    assert add_tap(model) is model
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(".dilation_predictor.proj." in key for key in after.keys() - before.keys())
    assert len(after.keys() - before.keys()) == 7 * len(blocks_of(model))
    assert not torch.allclose(model(image(name)), output, atol=1e-5)


@every_family
@torch.no_grad()
def test_identity_keeps_the_output(name: str) -> None:
    model = build(name)
    output = model(image(name))
    add_tap(model, init="identity")
    assert torch.allclose(model(image(name)), output, atol=1e-4 * float(output.abs().max()))
    assert torch.equal(add_tap(build(name), branches=1)(image(name)), output)


@every_family
@torch.no_grad()
def test_survives_copies_pickles_and_state_dicts(name: str) -> None:
    model = add_tap(build(name), branches=3, layers=[0])
    output = model(image(name))
    duplicate = copy.deepcopy(model)
    blocks_of(duplicate)[0].dilation_predictor.proj[0].weight.zero_()
    assert torch.equal(model(image(name)), output)
    assert not torch.equal(duplicate(image(name)), output)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(image(name)), output)
    fresh = add_tap(build(name), branches=3, layers=[0])
    for parameter in fresh.parameters():
        parameter.add_(1)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(image(name)), output)


@every_family
def test_activation_checkpoints_give_the_same_gradients_and_statistics(name: str) -> None:
    def train(checkpointing: bool) -> dict[str, Tensor]:
        model = add_tap(build(name)).train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(0)
        model(image(name)).square().mean().backward()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
        return gradients | {key: value for key, value in model.state_dict().items() if ".proj.1." in key}

    plain, checkpointed = train(False), train(True)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.allclose(plain[key], checkpointed[key], rtol=1e-4, atol=1e-6) for key in plain)
    assert all(int(value) == 1 for key, value in plain.items() if "num_batches_tracked" in key)


def seen_by(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """What a module was given first."""
    seen = []
    handle = module.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    run()
    handle.remove()
    return seen[0]


@torch.no_grad()
def test_attention_sees_pooled_tokens_and_the_residual_does_not() -> None:
    model = add_tap(build("deit_tiny_distilled_patch16_224"), layers=[1])
    block = model.blocks[1]
    x = seen_by(block, lambda: model(image("deit_tiny_distilled_patch16_224")))
    pooled = block.token_pools(x[:, 2:], block.dilation_predictor(x[:, 2:], (4, 4)), (4, 4))
    pooled = torch.cat([x[:, :2], pooled], dim=1)
    hidden = x + block.attn(torch.nn.functional.layer_norm(pooled, (192,), block.norm1.weight, block.norm1.bias, block.norm1.eps))
    assert torch.allclose(block(x), hidden + block.mlp(block.norm2(hidden)), atol=1e-5)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
@torch.no_grad()
def test_swin_pools_the_whole_grid_before_its_windows(name: str) -> None:
    model = build(name)
    plain = copy.deepcopy(model)
    add_tap(model, layers=[1])
    block, x = model.layers[0].blocks[1], torch.randn(1, 14, 14, 96) if "v2" not in name else torch.randn(1, 16, 16, 96)
    size = (x.shape[1], x.shape[2])
    tokens = x.flatten(1, 2)
    pooled = block.token_pools(tokens, block.dilation_predictor(tokens, size), size).reshape(x.shape)
    original = plain.layers[0].blocks[1]
    attended = original._attn(original.norm1(pooled)) if "v2" not in name else original.norm1(original._attn(pooled))
    hidden = x + attended
    after = original.mlp(original.norm2(hidden)) if "v2" not in name else original.norm2(original.mlp(hidden))
    assert torch.allclose(block(x), hidden + after, atol=1e-5)


@pytest.mark.parametrize("sizes", [(64, 96), (96, 64), (128, 32)])
@torch.no_grad()
def test_follows_the_size_of_each_image(sizes: tuple[int, int]) -> None:
    model = add_tap(build("vit_tiny_patch16_224", dynamic_img_size=True))
    image = torch.randn(1, 3, *sizes)
    fixed = add_tap(build("vit_tiny_patch16_224", img_size=sizes))
    state = {key: value for key, value in model.state_dict().items() if key != "pos_embed"}
    fixed.load_state_dict(state, strict=False)
    fixed.pos_embed.copy_(
        timm.layers.resample_abs_pos_embed(model.pos_embed, (sizes[0] // 16, sizes[1] // 16), (4, 4), num_prefix_tokens=1)
    )
    model(torch.randn(1, 3, 64, 64))
    assert torch.allclose(model(image), fixed(image), atol=1e-5)


def test_checkpoints_repeat_each_block_on_its_own_grid() -> None:
    model = add_tap(build("vit_tiny_patch16_224", dynamic_img_size=True)).train()
    large, small = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 32, 48)

    def gradient(checkpointing: bool) -> Tensor:
        model.zero_grad()
        model.set_grad_checkpointing(checkpointing)
        (model(large).square().sum() + model(small).square().sum()).backward()
        return model.blocks[0].dilation_predictor.proj[0].weight.grad.clone()

    assert torch.allclose(gradient(True), gradient(False), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_works_inside_feature_extractors_and_other_models() -> None:
    name = "vit_tiny_patch16_224"
    model = add_tap(nn.Sequential(build(name), nn.Linear(5, 2)))
    assert len(blocks_of(model)) == 2
    features = timm.create_model(name, features_only=True, img_size=64, out_indices=(1,)).eval()
    before = features(image(name))[0]
    assert not torch.allclose(add_tap(features)(image(name))[0], before, atol=1e-3)


@pytest.mark.parametrize("pooling", ["max", "gaussian", "learned"])
@torch.no_grad()
def test_other_poolings_round_trip(pooling: str) -> None:
    model = add_tap(build("vit_tiny_patch16_224"), pooling=pooling)
    fresh = add_tap(build("vit_tiny_patch16_224"), pooling=pooling)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(image("vit_tiny_patch16_224")), model(image("vit_tiny_patch16_224")))


@pytest.mark.parametrize("layers", [[0, 1, 2, -1], [-1, 3]])
def test_chooses_layers(layers: list[int]) -> None:
    model = add_tap(build("vit_tiny_patch16_224", depth=4), layers=layers)
    chosen = {layer % 4 for layer in layers}
    assert [number for number, block in enumerate(model.blocks) if hasattr(block, "dilation_predictor")] == sorted(chosen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"branches": 0}, "expected at least 1 branch of pooling, got 0"),
        ({"pooling": "median"}, "expected pooling to be one of average, max, gaussian, learned, got 'median'"),
        ({"init": "zero"}, "expected init to be one of default, identity, got 'zero'"),
        ({"layers": [2]}, "expected layers from 0 to 1, got 2"),
    ],
)
def test_refuses_bad_arguments_and_leaves_the_model_as_it_was(arguments: dict[str, object], message: str) -> None:
    model = build("vit_tiny_patch16_224")
    names = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        add_tap(model, **arguments)
    assert list(model.state_dict()) == names
    assert not model.patch_embed._forward_hooks


def test_refuses_to_add_twice() -> None:
    model = add_tap(build("vit_tiny_patch16_224"), layers=[0])
    with pytest.raises(ValueError, match="expected a model without TAP in layer 0, got one that has it"):
        add_tap(model)
    assert len(blocks_of(add_tap(model, layers=[1]))) == 2


@pytest.mark.parametrize("name", ["resnet18", "pit_ti_224", "naflexvit_base_patch16_gap"])
def test_refuses_models_without_a_known_grid(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(
        OverfocusError, match=rf"expected a timm model of the families ViT, .*, got {type(model).__name__}, which has no"
    ):
        add_tap(model)


def test_refuses_a_patch_embedding_without_a_grid() -> None:
    model = build("vit_tiny_patch16_224")
    model.patch_embed = nn.Linear(3, 3)
    with pytest.raises(OverfocusError, match="with a patch grid, got Linear, which does not state one"):
        add_tap(model)


def test_refuses_blocks_without_a_place_for_it() -> None:
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, embed_dim=32, depth=1, num_heads=2, block_fn=timm.models.vision_transformer.ParallelScalingBlock
    )
    with pytest.raises(
        OverfocusError, match="expected blocks with a place in front of the attention alone, got ParallelScalingBlock"
    ):
        add_tap(model)


def test_refuses_dropped_patches() -> None:
    model = add_tap(build("vit_tiny_patch16_224", patch_drop_rate=0.5)).train()
    with pytest.raises(
        ValueError, match="expected patch tokens that fill the grid 4 × 4, got 8; TAP cannot work with dropped patches"
    ):
        model(image("vit_tiny_patch16_224"))


def by_name(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **arguments).eval()


def test_vit_deit_and_swin_are_registered() -> None:
    names = [
        f"tap_{kind}_{size}" for kind in ("vit", "deit") for size in ("tiny_patch16_224", "small_patch16_224", "base_patch16_224")
    ]
    names += [f"tap_swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")]
    assert set(names) <= {f"tap_{base}" for base in BASES} <= set(timm.list_models("tap_*"))


@pytest.mark.parametrize("base", BASES)
def test_has_the_original_and_a_predictor_per_block(base: str) -> None:
    with torch.device("meta"):
        ours, original = timm.create_model(f"tap_{base}", num_scales=3), timm.create_model(base)
    blocks = [module for module in ours.modules() if hasattr(module, "dilation_predictor")]
    added = ours.state_dict().keys() - original.state_dict().keys()
    assert original.state_dict().keys() <= ours.state_dict().keys()
    assert len(added) == 7 * len(blocks)
    assert len(blocks) == sum(1 for name, _ in original.named_modules() if name.endswith("attn"))
    assert {block.dilation_predictor.branches for block in blocks} == {3}
    assert ours.pretrained_cfg["architecture"] == f"tap_{base}"
    assert ours.pretrained_cfg["mean"] == original.pretrained_cfg["mean"] == timm.get_pretrained_cfg(f"tap_{base}").mean


def test_arguments_reach_timm_and_tap() -> None:
    model = by_name(
        "tap_vit_tiny_patch16_224", num_classes=3, img_size=64, depth=1, num_scales=2, pooling="learned", init="identity"
    )
    assert model.blocks[0].token_pools.kernels.shape == (1, 192, 1, 3, 3)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(ValueError, match="expected at least 1 branch"):
        by_name("tap_vit_tiny_patch16_224", depth=1, num_scales=0)


@pytest.mark.parametrize(
    "name", ["tap_vit_tiny_patch16_224", "tap_deit_tiny_distilled_patch16_224", "tap_swin_tiny_patch4_window7_224"]
)
@torch.no_grad()
def test_load_model_recognises_a_bare_state_dict(name: str, tmp_path: Path) -> None:
    model = by_name(name, num_classes=7, num_scales=3)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    loaded = overfocus.load_model(tmp_path / "weights.pth")
    assert loaded.missing_keys == loaded.unexpected_keys == []
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(loaded.model(images), model(images))
