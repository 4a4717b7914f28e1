"""Models, TAP and ADL on a CUDA device against the processor; run with `pytest -m gpu`."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import overfocus.models  # noqa: F401  registers the models
from overfocus.losses import AttentionDiversificationLoss, diversify
from overfocus.models import TokenAwareAveragePooling, add_tap

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FAN: dict[str, Any] = {"embed_dims": (32,), "depths": (2,), "num_heads": (4,)}
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("tap_fan_tiny_12_p16_224", FAN),
    ("fan_tiny_8_p4_hybrid", {**FAN, "stem_depths": (1, 1)}),
    ("tap_fan_swin_tiny_patch4_window7_224", {"embed_dim": 32, "depths": (2, 2), "num_heads": (1, 2), "num_scales": 3}),
    ("tap_rvt_tiny_plus", {"embed_dims": (32, 64), "depths": (2, 1), "num_heads": (2, 4), "masked_blocks": 2}),
    ("tap_vit_tiny_patch16_224", {"embed_dim": 64, "depth": 2, "num_heads": 2}),
    ("tap_swin_tiny_patch4_window7_224", {"embed_dim": 32, "depths": (2, 2), "num_heads": (1, 2)}),
    ("tap_fan_tiny_8_p4_hybrid_segformer", {**FAN, "stem_depths": (1, 1), "out_block": 1}),
]
every_model = pytest.mark.parametrize(("name", "arguments"), MODELS, ids=[name for name, _ in MODELS])
formats = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def build(name: str, arguments: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **arguments).eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Output and gradients in eval mode: dropout and drop path would draw other numbers on each device."""
    model.eval()
    output = model(images)
    output.square().mean().backward()
    gradients = {name: tensor.grad for name, tensor in model.named_parameters() if tensor.grad is not None}
    return {"output": output.detach(), **gradients}


def agree(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within the tolerance, relative to the largest expected value."""
    assert (found.detach().cpu().double() - expected.detach().double()).abs().max() <= tolerance * expected.abs().max() + 1e-9


@every_model
@formats
def test_forward_and_backward_are_those_of_the_processor(
    name: str, arguments: dict[str, Any], memory_format: torch.memory_format
) -> None:
    here = build(name, arguments)
    there = copy.deepcopy(here).cuda()
    with torch.no_grad():
        agree(there(images().cuda().contiguous(memory_format=memory_format)), here(images()), 1e-4)
    exact = trained(copy.deepcopy(here).double(), images().double())
    found = trained(there, images().cuda().contiguous(memory_format=memory_format))
    assert found.keys() == exact.keys()
    agree(found["output"], exact["output"], 1e-4)
    largest = max(tensor.abs().max() for name, tensor in exact.items() if name != "output")
    for entry, gradient in exact.items():  # some are 0 but for rounding, as of a bias in front of a softmax
        difference = (found[entry].cpu().double() - gradient).abs().max()
        assert difference <= 1e-3 * gradient.abs().max() + 1e-6 * largest, entry


@every_model
def test_mixed_precision_stays_close(name: str, arguments: dict[str, Any]) -> None:
    model = build(name, arguments).cuda()
    with torch.no_grad():
        exact = model(images().cuda())
        with torch.autocast("cuda", dtype=torch.bfloat16):
            agree(model(images().cuda()).float(), exact.cpu(), 0.1)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = model.train()(images().cuda())
    output.float().square().mean().backward()
    assert all(tensor.grad is None or tensor.grad.isfinite().all() for tensor in model.parameters())


@every_model
def test_compiled_in_one_graph(name: str, arguments: dict[str, Any]) -> None:
    model = build(name, arguments).cuda()
    with torch.no_grad():
        agree(torch.compile(model, fullgraph=True)(images().cuda()), model(images().cuda()).cpu(), 1e-4)


@every_model
def test_a_cuda_graph_replays_the_forward(name: str, arguments: dict[str, Any]) -> None:
    model, static = build(name, arguments).cuda(), images().cuda()
    with torch.no_grad():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                model(static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = model(static)
        static.copy_(images().flip(-1).cuda())
        graph.replay()
        agree(output, model(static).cpu(), 1e-5)


def test_tap_trains_inside_a_cuda_graph() -> None:
    tap = TokenAwareAveragePooling(64).cuda()
    for grid in ((14, 14), (32, 20)):

        class OnGrid(nn.Module):
            def __init__(self, module: nn.Module, grid: tuple[int, int]) -> None:
                super().__init__()
                self.module, self.grid = module, grid

            def forward(self, tokens: Tensor) -> Tensor:
                return self.module(tokens, self.grid)

        tokens = torch.randn(2, grid[0] * grid[1], 64, device="cuda", requires_grad=True)
        eager = OnGrid(copy.deepcopy(tap), grid)
        graphed = torch.cuda.make_graphed_callables(OnGrid(copy.deepcopy(tap), grid), (tokens,))
        gradients = [torch.autograd.grad(module(tokens).square().sum(), tokens)[0] for module in (eager, graphed)]
        agree(gradients[1], gradients[0].cpu(), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tap_waits_for_nothing(dtype: torch.dtype) -> None:
    tap = TokenAwareAveragePooling(64).cuda().to(dtype)
    tokens = torch.randn(2, 1 + 32 * 20, 64, device="cuda", dtype=dtype, requires_grad=True)
    tap(tokens, (32, 20), 1).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        tap(tokens, (32, 20), 1).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_model
def test_a_step_waits_for_nothing(name: str, arguments: dict[str, Any]) -> None:
    model, inputs = build(name, arguments).train().cuda(), images().cuda()
    model(inputs).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(inputs).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_diversification_loss_and_its_gradient() -> None:
    weights = torch.randn(2, 3, 50, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
    loss, results = AttentionDiversificationLoss(), []
    for leaf in (weights.float().requires_grad_(), weights.float().cuda().requires_grad_()):
        value = loss([leaf, leaf.square()], prefix_tokens=1)
        results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    agree(results[1][0], results[0][0], 1e-5)
    agree(results[1][1], results[0][1], 1e-4)


def test_diversified_step_is_that_of_the_processor() -> None:
    torch.manual_seed(0)
    here = add_tap(timm.create_model("vit_tiny_patch16_224", embed_dim=64, depth=2, num_heads=2)).eval()
    for block in here.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.3)
    there, results = copy.deepcopy(here).cuda(), []
    for model, device in ((here, "cpu"), (there, "cuda")):
        with diversify(model) as adl:
            loss = model(images().to(device)).square().mean() + adl.loss()
        loss.backward()
        results.append((loss.detach(), model.blocks[0].attn.qkv.weight.grad))
    agree(results[1][0], results[0][0], 1e-4)
    agree(results[1][1], results[0][1], 1e-3)
