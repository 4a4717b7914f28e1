"""timm's entry points with TAP, and checkpoints of them."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import overfocus
from overfocus.models.add_tap import BASES


def build(name: str, **arguments: object) -> nn.Module:
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
    model = build(
        "tap_vit_tiny_patch16_224", num_classes=3, img_size=64, depth=1, num_scales=2, pooling="learned", init="identity"
    )
    assert model.blocks[0].token_pools.kernels.shape == (1, 192, 1, 3, 3)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(ValueError, match="expected at least 1 branch"):
        build("tap_vit_tiny_patch16_224", depth=1, num_scales=0)


@pytest.mark.parametrize(
    "name", ["tap_vit_tiny_patch16_224", "tap_deit_tiny_distilled_patch16_224", "tap_swin_tiny_patch4_window7_224"]
)
@torch.no_grad()
def test_load_model_recognises_a_bare_state_dict(name: str, tmp_path: Path) -> None:
    model = build(name, num_classes=7, num_scales=3)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    loaded = overfocus.load_model(tmp_path / "weights.pth")
    assert loaded.missing_keys == loaded.unexpected_keys == []
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(loaded.model(images), model(images))
