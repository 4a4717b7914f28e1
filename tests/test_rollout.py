"""Rollout against the definition of Abnar & Zuidema written out in numpy, and by hand."""

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

import overfocus
from overfocus.attention import attention_rollout, fuse_heads, token_row
from overfocus.metrics.formulas import high_norm_tokens


@pytest.fixture(scope="module")
def captured():
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, num_classes=5).eval()
    with torch.inference_mode(), overfocus.capture(model, norms=True) as captured:
        model(3 * torch.randn(3, 3, 32, 32))
    return captured


def reference_rollout(layers, fusion, discard):
    """One image: layers is a list of (heads, tokens, tokens) arrays."""
    result = np.eye(layers[0].shape[-1])
    for weights in layers:
        fused = {"mean": np.mean, "max": np.max, "min": np.min}[fusion](weights, axis=0).astype(np.float64)
        flat = fused.reshape(-1)
        smallest = np.argsort(flat)[: int(flat.size * discard)]
        flat[smallest[smallest != 0]] = 0
        mixed = fused + np.eye(len(fused))
        mixed /= mixed.sum(-1, keepdims=True)
        result = mixed @ result
    return result


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("discard", [0.0, 0.5, 0.9])
def test_equals_the_definition(captured, fusion, discard):
    rolled = attention_rollout(captured.maps, head_fusion=fusion, discard_ratio=discard)
    for image in range(3):
        layers = [attention.weights[image].double().numpy() for attention in captured.maps]
        np.testing.assert_allclose(rolled[image].numpy(), reference_rollout(layers, fusion, discard), atol=1e-5)


def test_rows_are_shares(captured):
    rolled = attention_rollout(captured.maps)
    torch.testing.assert_close(rolled.sum(-1), torch.ones(3, 17))
    assert bool((rolled >= 0).all())


def test_class_token_row_leaves_the_prefix_out(captured):
    weights = fuse_heads(captured.maps[-1].weights)
    row = token_row(weights, prefix_tokens=1, grid=(4, 4))
    torch.testing.assert_close(row[1, 2, 3], weights[1, 0, 1 + 2 * 4 + 3])
    assert token_row(weights, prefix_tokens=1, grid=(4, 4), query=5).shape == (3, 4, 4)


def test_without_class_token_the_mean_over_patches():
    weights = torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]])
    assert token_row(weights, prefix_tokens=0, grid=(2, 2)).tolist() == [[[0.25, 0.75], [0, 0]]]


def test_windows_have_no_rollout():
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, window_size=7, depths=(2, 2, 2, 2)).eval()
    with torch.inference_mode(), overfocus.capture(model) as captured:
        model(torch.randn(1, 3, 56, 56))
    with pytest.raises(overfocus.CaptureError, match=r"rollout needs global attention .* got window attention; use received"):
        attention_rollout(captured.maps)


def test_wrong_arguments(captured):
    with pytest.raises(ValueError, match=r"expected discard_ratio from 0 to below 1, got 1\.5"):
        attention_rollout(captured.maps, discard_ratio=1.5)
    with pytest.raises(ValueError, match="expected head_fusion to be one of mean, max, min, got 'sum'"):
        attention_rollout(captured.maps, head_fusion="sum")
    with pytest.raises(ValueError, match="expected 1 prefix tokens and 5×5 patches as keys, got 17"):
        token_row(captured.maps[0].weights[:, 0], prefix_tokens=1, grid=(5, 5))
    with pytest.raises(ValueError, match="expected a query from 0 to 16, got 17"):
        token_row(captured.maps[0].weights[:, 0], prefix_tokens=1, grid=(4, 4), query=17)


def test_norms_are_those_of_the_blocks_outputs():
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, num_classes=5, reg_tokens=2).eval()
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    with torch.inference_mode(), overfocus.capture(model, norms=True) as captured:
        model(torch.randn(2, 3, 32, 32))
    assert [norms.module for norms in captured.norms] == [f"blocks.{i}.attn" for i in range(3)]
    for norms, output in zip(captured.norms, outputs, strict=True):
        expected = np.linalg.norm(output.numpy(), axis=-1)
        np.testing.assert_allclose(norms.norms.numpy(), expected[:, 3:], rtol=1e-5)
        np.testing.assert_allclose(norms.prefix_norms.numpy(), expected[:, :3], rtol=1e-5)
        assert norms.grid == (4, 4)


def test_a_long_token_is_an_outlier():
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=4, num_classes=5).eval()

    def lengthen(_module, _args, output):
        output[1, 1 + 6] += 10
        return output

    model.blocks[0].mlp.register_forward_hook(lengthen)
    with torch.inference_mode(), overfocus.capture(model, norms=True) as captured:
        model(torch.randn(2, 3, 32, 32))
    outliers = high_norm_tokens(captured.norms[0].norms)
    assert outliers[1].nonzero().flatten().tolist() == [6]
    assert not bool(outliers[0].any())


def test_swin_norms_lie_on_the_image_grid():
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, window_size=7, depths=(2, 2, 2, 2)).eval()
    with torch.inference_mode(), overfocus.capture(model, norms=True) as captured:
        model(torch.randn(1, 3, 56, 56))
    assert captured.norms[0].norms.shape == (1, 14 * 14)
    assert captured.norms[0].grid == (14, 14)
