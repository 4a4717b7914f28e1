"""TAP under torch.compile, torch.export and ONNX export."""

import io
import warnings

import onnx
import pytest
import timm
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from overfocus.models import TokenAwareAveragePooling, add_tap


class OnGrid(nn.Module):
    """TAP on one grid, with one prefix token."""

    def __init__(self, grid: tuple[int, int], pooling: str = "average") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tap = TokenAwareAveragePooling(4, pooling=pooling)
        self.grid = grid

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tap(tokens, grid=self.grid, prefix_tokens=1)

    def example(self) -> Tensor:
        return torch.randn(2, 1 + self.grid[0] * self.grid[1], 4)


grids = pytest.mark.parametrize("grid", [(6, 5), (20, 9)])  # one matrix, and tiles


@grids
@pytest.mark.parametrize("pooling", ["average", "max", "learned"])
@torch.no_grad()
def test_onnx_gives_the_same_tokens(grid: tuple[int, int], pooling: str) -> None:
    module = OnGrid(grid, pooling).eval()
    tokens, file = module.example(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (tokens,), file, dynamo=False, input_names=["tokens"])
    graph = onnx.load_from_string(file.getvalue())
    onnx.checker.check_model(graph)
    result = ReferenceEvaluator(graph).run(None, {"tokens": tokens.numpy()})[0]
    assert torch.allclose(torch.from_numpy(result), module(tokens), atol=1e-5)


@grids
@torch.no_grad()
def test_exported_program_gives_the_same_tokens(grid: tuple[int, int]) -> None:
    module = OnGrid(grid).eval()
    tokens = module.example()
    assert torch.allclose(torch.export.export(module, (tokens,)).module()(tokens), module(tokens), atol=1e-6)


@grids
def test_compiled_without_a_graph_break(grid: tuple[int, int]) -> None:
    module = OnGrid(grid)
    tokens = module.example().requires_grad_()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    gradients = [torch.autograd.grad(run(tokens).square().sum(), tokens)[0] for run in (module, compiled)]
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": 64}),
        ("swinv2_tiny_window8_256", {"depths": (1,), "num_heads": (3,), "img_size": 64}),
    ],
)
def test_models_compile_without_a_graph_break(name: str, arguments: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = add_tap(timm.create_model(name, num_classes=3, **arguments)).eval()
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(images), model(images), atol=1e-5)


def test_compiled_model_follows_the_image_size() -> None:
    torch.manual_seed(0)
    model = add_tap(timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1, dynamic_img_size=True)).eval()
    compiled = torch.compile(model, backend="eager")
    for size in ((64, 64), (96, 64), (64, 96)):
        images = torch.randn(1, 3, *size)
        assert torch.allclose(compiled(images), model(images), atol=1e-5)


@pytest.mark.slow
def test_inductor_gives_the_same_output() -> None:
    torch.manual_seed(0)
    model = add_tap(timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=1)).eval()
    images = torch.randn(1, 3, 224, 224)
    assert torch.allclose(torch.compile(model)(images), model(images), atol=1e-4)
