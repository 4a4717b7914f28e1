"""Channel processing and the convolutional stem against formulas written out in numpy, in double precision."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import expit, softmax

from overfocus.models.blocks import ChannelNorm, ChannelProcessing, DepthwiseMlp, HybridEmbedding, PixelMlp, by_pixels

GRID = (5, 3)
HEADS, CHANNELS = 4, 12


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """The module in double precision with random parameters and statistics everywhere, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(1 + 0.1 * noise.abs() if "running_var" in name else 0.5 * noise)
    return module


def array(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.detach().numpy()


def test_gate_is_the_written_formula() -> None:
    module = shaken(ChannelProcessing(CHANNELS, HEADS))
    tokens = torch.randn(2, 15, CHANNELS, dtype=torch.float64)
    u = array(tokens)
    queries = softmax(u @ array(module.q.weight).T + array(module.q.bias), axis=1)
    keys = softmax(u, axis=1)
    width = CHANNELS // HEADS
    for image in range(2):
        for channel in range(CHANNELS):
            head = channel // width
            mean_key = keys[image, :, head * width : (head + 1) * width].mean(axis=1)
            agreement = (queries[image, :, channel] * mean_key).sum()
            expected = array(module.temperature)[head, 0, 0] * expit(agreement)
            assert np.isclose(array(module.gate(tokens))[image, channel], expected)


def test_gate_scales_the_normed_values() -> None:
    module = shaken(ChannelProcessing(CHANNELS, HEADS))
    tokens = torch.randn(2, 15, CHANNELS, dtype=torch.float64)
    values = array(module.mlp_v(tokens, GRID))
    normed = (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + 1e-5)
    expected = (normed * array(module.norm_v.weight) + array(module.norm_v.bias)) * array(module.gate(tokens))[:, None]
    assert np.allclose(array(module(tokens, GRID)), expected)


def test_depthwise_mlp_with_and_without_its_inner_residual() -> None:
    for residual in (True, False):
        module = shaken(DepthwiseMlp(CHANNELS, residual))
        tokens = torch.randn(2, 15, CHANNELS, dtype=torch.float64)
        hidden = tokens @ module.fc1.weight.T + module.fc1.bias
        maps = hidden.permute(0, 2, 1).reshape(2, 4 * CHANNELS, *GRID)
        first, norm, second = module.dwconv.conv1, module.dwconv.bn, module.dwconv.conv2
        maps = F.gelu(F.conv2d(maps, first.weight, first.bias, padding=1, groups=4 * CHANNELS))
        shift, scale = norm.running_mean, norm.weight / (norm.running_var + 1e-5).sqrt()
        maps = (maps - shift[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
        maps = F.conv2d(maps, second.weight, second.bias, padding=1, groups=4 * CHANNELS)
        mixed = module.gamma * maps.reshape(2, 4 * CHANNELS, 15).permute(0, 2, 1) + (hidden if residual else 0)
        torch.testing.assert_close(module(tokens, GRID), mixed @ module.fc2.weight.T + module.fc2.bias)


def test_dropout_leaves_the_inner_residual_alone() -> None:
    module = DepthwiseMlp(CHANNELS, drop=1.0).train()
    module.fc2 = torch.nn.Identity()
    module.drop = torch.nn.Dropout(1.0)
    tokens = torch.randn(2, 15, CHANNELS)
    hidden = module.fc1(tokens)
    module.fc2.register_forward_hook(lambda _, inputs, __: torch.testing.assert_close(inputs[0], hidden))
    assert module(tokens, GRID).abs().max() == 0


def test_channel_norm_divides_by_the_variance_it_says() -> None:
    maps = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    values = array(maps)
    for unbiased in (False, True):
        module = shaken(ChannelNorm(6, unbiased))
        variance = values.var(axis=1, ddof=int(unbiased), keepdims=True)
        normed = (values - values.mean(axis=1, keepdims=True)) / np.sqrt(variance + 1e-6)
        expected = normed * array(module.weight)[:, None, None] + array(module.bias)[:, None, None]
        assert np.allclose(array(module(maps)), expected, rtol=1e-12)


def test_only_the_first_norm_of_the_stem_is_biased() -> None:
    stem = HybridEmbedding(3, 24, (2, 3)).backbone
    unbiased = {name: module.unbiased for name, module in stem.named_modules() if isinstance(module, ChannelNorm)}
    assert len(unbiased) == 7
    assert [name for name, flag in unbiased.items() if not flag] == ["stem.1"]


def test_pixels_mixed_in_parts_are_the_pixels_mixed_at_once() -> None:
    module = PixelMlp(8)
    maps = torch.randn(2, 8, 40, 37).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        in_parts = by_pixels(module._mix, maps)
        assert torch.equal(module(maps), in_parts)
    assert in_parts.shape == (2, 8, 40, 37)
    torch.testing.assert_close(in_parts, module(maps).detach(), atol=1e-5, rtol=1e-5)
