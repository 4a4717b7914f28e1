"""The path on a GPU, tested without one: fake CUDA tensors, which fail where devices mix or the host waits for a number.

torch's backward pass asks the CUDA driver for its context, so that without one it runs on fake tensors of the device "meta",
which fail for the same reasons.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import overfocus.models  # noqa: F401  registers the models
from overfocus.capturing.sources import ArrangedWeights, Arrangement, QueryKeyWeights
from overfocus.losses import AttentionDiversificationLoss
from overfocus.losses.attention_diversification import row_alignment
from overfocus.models import DilationPredictor, TapEncoderLayer, TokenAwareAveragePooling, add_tap
from overfocus.models.blocks import ChannelProcessing

CUDA, META = torch.device("cuda", 0), torch.device("meta")
FAN: dict[str, Any] = {"embed_dims": (32,), "depths": (2,), "num_heads": (4,)}
RVT: dict[str, Any] = {"embed_dims": (16, 32), "depths": (2, 1), "num_heads": (2, 4)}
VIT: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}
SWIN: dict[str, Any] = {"embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)}


class NoTransfers(TorchDispatchMode):
    """Raises where a tensor moves between the host and the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [value for value in (*args, result) if isinstance(value, Tensor) and value.ndim > 0]
        if len({tensor.device.type for tensor in tensors}) > 1:
            raise AssertionError(f"{function} takes tensors of both devices")
        return result


def on_device(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with fake parameters and buffers on the device; call inside a FakeTensorMode."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                tensor = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                part._parameters[name] = nn.Parameter(tensor, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    return module


def check(module: nn.Module, run: Callable[[nn.Module, torch.device], Tensor]) -> None:
    """Forward and backward in evaluation and training."""
    for training in (False, True):
        for device in (CUDA, META):
            copied = copy.deepcopy(module).train(training)
            with FakeTensorMode():
                fake = on_device(copied, device)
                with NoTransfers():
                    result = run(fake, device)
                    if device == META or torch.cuda.is_available():
                        result.sum().backward()
                assert result.device == device


def test_the_check_notices_waits_and_mixes() -> None:
    class Waits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x.nonzero()[:, 0]]

    class Mixes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.zeros(x.shape)

    class Moves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.zeros(x.shape).to(x.device)

    def run(module: nn.Module, device: torch.device) -> Tensor:
        return module(torch.ones(3, device=device, requires_grad=True))

    with pytest.raises(DataDependentOutputException):
        check(Waits(), run)
    with pytest.raises(DynamicOutputShapeException):
        check(Counts(), run)
    with pytest.raises(RuntimeError, match="device"):
        check(Mixes(), run)
    with pytest.raises(AssertionError, match="both devices"):
        check(Moves(), run)


@pytest.mark.parametrize("grid", [(6, 5), (40, 24)])  # one matrix, and tiles
@pytest.mark.parametrize("pooling", ["average", "gaussian", "max", "learned"])
def test_tap(grid: tuple[int, int], pooling: str) -> None:
    def run(tap: nn.Module, device: torch.device) -> Tensor:
        tokens = torch.randn(2, 1 + grid[0] * grid[1], 8, device=device, requires_grad=True)
        return tap(tokens, grid, prefix_tokens=1)

    check(TokenAwareAveragePooling(8, pooling=pooling), run)


def test_tap_on_sequences_with_padding() -> None:
    def run(layer: nn.Module, device: torch.device) -> Tensor:
        padding = torch.zeros(2, 50, dtype=torch.bool, device=device)
        return layer(torch.randn(2, 50, 8, device=device, requires_grad=True), src_key_padding_mask=padding)

    check(TapEncoderLayer(8, 2, 16, batch_first=True), run)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channel_processing_and_predictor(dtype: torch.dtype) -> None:
    def run(module: nn.Module, device: torch.device) -> Tensor:
        return module(torch.randn(2, 30, 8, dtype=dtype, device=device, requires_grad=True), (6, 5))

    check(ChannelProcessing(8, 2).to(dtype), run)
    check(DilationPredictor(8).to(dtype), run)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("tap_fan_tiny_12_p16_224", FAN),
        ("fan_tiny_8_p4_hybrid", {**FAN, "stem_depths": (1, 1)}),
        ("tap_fan_swin_tiny_patch4_window7_224", {**SWIN, "num_scales": 3}),
        ("tap_rvt_tiny_plus", {**RVT, "masked_blocks": 2, "img_size": 64}),
        ("tap_rvt_tiny_plus", {**RVT, "masked_blocks": 2, "img_size": 96, "dynamic_img_size": True}),
        ("tap_vit_tiny_patch16_224", VIT),
        ("tap_swin_tiny_patch4_window7_224", {**SWIN, "img_size": 64}),
        ("tap_fan_tiny_8_p4_hybrid_segformer", {**FAN, "stem_depths": (1, 1), "out_block": 1}),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_models(name: str, arguments: dict[str, Any], memory_format: torch.memory_format) -> None:
    model = timm.create_model(name, **arguments)
    check(model, lambda fake, device: fake(torch.randn(2, 3, 64, 64, device=device).contiguous(memory_format=memory_format)))


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "eva02_tiny_patch14_224", "xcit_nano_12_p16_224"])
def test_added_tap_of_other_families(name: str) -> None:
    size = {} if name.startswith("xcit") else {"img_size": 56 if "14" in name else 64}
    side = size.get("img_size", 64)
    model = add_tap(timm.create_model(name, embed_dim=32, depth=2, num_heads=2, **size))
    check(model, lambda fake, device: fake(torch.randn(2, 3, side, side, device=device)))


@pytest.mark.parametrize("device", [CUDA, META])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_diversification_loss(dtype: torch.dtype, device: torch.device) -> None:
    arrangement = Arrangement((("image",), ("head",)), ((-1,), (3,)))
    with FakeTensorMode(), NoTransfers():
        learn = device == META or torch.cuda.is_available()
        weights = torch.randn(2, 3, 50, 50, device=device, dtype=dtype).softmax(-1).requires_grad_(learn)
        loss = AttentionDiversificationLoss()([weights, weights], prefix_tokens=1)
        if device == CUDA:
            query, key = (
                torch.randn(2, 3, 50, 8, device=device, dtype=dtype),
                torch.randn(2, 3, 50, 8, device=device, dtype=dtype),
            )
            source = ArrangedWeights(QueryKeyWeights(query, key, None, scale=None, is_causal=False), arrangement)
            loss = loss + row_alignment(source, 2.0, 1, 1)
        assert loss.device == device
        if learn:
            loss.backward()
            assert weights.grad is not None
