"""On a CUDA device: capture and metrics agree with the processor, wait once a forward, and follow AMP and streams."""

import pytest
import timm
import torch

import overfocus
from overfocus.metrics import METRICS, STABILITY, ForwardMeasurement, measure

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

MODELS = [
    ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3}),
    ("vit_tiny_patch16_224", {"img_size": 384, "depth": 2}),
    ("swin_tiny_patch4_window7_224", {"img_size": 72, "depths": (1, 2), "window_size": 4}),
    ("cait_xxs24_224", {"img_size": 64, "depth": 2}),
    ("pvt_v2_b0", {}),
]


def build(name, arguments):
    torch.manual_seed(0)
    side = arguments.get("img_size", 64)
    return timm.create_model(name, **arguments).eval(), torch.randn(6, 3, side, side)


def values_of(model, images, **arguments):
    """The values of each layer, and what each forward returned."""
    measurement = ForwardMeasurement(**arguments)
    with torch.no_grad(), overfocus.capture(model, reduce=measurement.add, norms=True) as captured:
        measurement.begin([0, 0, 0, 3, 3, 3])
        output = model(images)
        return measurement.names, measurement.finish(captured.norms), output


@pytest.fixture(autouse=True)
def exact_products():
    """Products in whole float32, without TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize(("name", "arguments"), MODELS)
def test_every_metric_equals_that_of_the_processor(name, arguments, per_head):
    model, images = build(name, arguments)
    names, on_host, _ = values_of(model, images, per_head=per_head)
    _, on_gpu, _ = values_of(model.cuda(), images.cuda(), per_head=per_head)
    assert [layer.module for layer in on_gpu] == [layer.module for layer in on_host]
    for mine, other in zip(on_gpu, on_host, strict=True):
        for place, metric in enumerate(names):
            tolerance = 2e-2 if metric == "rank_correlation" else 1e-4  # tokens of nearly the same attention may change places
            torch.testing.assert_close(
                torch.from_numpy(mine.values[..., place]),
                torch.from_numpy(other.values[..., place]),
                rtol=1e-4, atol=tolerance, equal_nan=True, msg=lambda text, m=metric: f"{m}: {text}",
            )  # fmt: skip
        if other.received is not None:
            torch.testing.assert_close(torch.from_numpy(mine.received), torch.from_numpy(other.received), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*METRICS, *STABILITY])
def test_each_function_runs_on_the_device(name, draw_weights):
    weights = draw_weights(4, 3, 17, 17)
    grid = {"grid": (4, 4)} if name == "attention_distance" else {}
    given = (weights,) if name in METRICS else (weights, weights.flip(0))
    function = (METRICS | STABILITY)[name]
    got = function(*(tensor.cuda() for tensor in given), prefix_tokens=1, **grid)
    assert got.device.type == "cuda"
    torch.testing.assert_close(got.cpu(), function(*given, prefix_tokens=1, **grid), rtol=0, atol=1e-4)


def test_capture_leaves_results_as_they_are():
    model, images = build(*MODELS[0])
    model, images = model.cuda(), images.cuda()
    with torch.no_grad():
        plain = model(images)
    assert torch.equal(values_of(model, images)[2], plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype):
    model, images = build(*MODELS[1])
    model, images = model.cuda(), images.cuda()
    names, full, _ = values_of(model, images)
    with torch.autocast("cuda", dtype):
        _, mixed, _ = values_of(model, images)
    for mine, other in zip(mixed, full, strict=True):
        for metric in ("top_share", "effective_tokens", "row_entropy", "js_divergence"):
            place = names.index(metric)
            torch.testing.assert_close(
                torch.from_numpy(mine.values[..., place]), torch.from_numpy(other.values[..., place]), rtol=0.05, atol=0.02,
                equal_nan=True,
            )  # fmt: skip


def test_one_wait_a_forward():
    """torch raises where an operation makes the host wait; only the transfer at the end may."""
    model, images = build(*MODELS[0])
    model, images = model.cuda(), images.cuda()
    measurement = ForwardMeasurement()
    with torch.no_grad(), overfocus.capture(model, reduce=measurement.add, norms=True) as captured:
        for forward in range(4):
            measurement.begin([0, 0, 0, 3, 3, 3])
            captured.clear()
            torch.cuda.set_sync_debug_mode("error" if forward > 1 else "default")
            try:
                model(images)
                values = measurement.compute(captured.norms)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert len(values.read()) == 3


def test_two_streams():
    model, images = build(*MODELS[1])
    model, images = model.cuda(), images.cuda()
    _, want, _ = values_of(model, images)
    streams = [torch.cuda.Stream() for _ in range(2)]
    got = []
    torch.cuda.synchronize()
    for stream in streams:
        with torch.cuda.stream(stream):
            got.append(values_of(model, images)[1])
    torch.cuda.synchronize()
    for values in got:
        for mine, other in zip(values, want, strict=True):
            torch.testing.assert_close(
                torch.from_numpy(mine.values), torch.from_numpy(other.values), rtol=1e-5, atol=1e-5, equal_nan=True
            )


def test_small_budget_gives_the_same(draw_weights, make_map):
    weights = draw_weights(8, 3, 65, 65).cuda()
    attention = make_map(weights, prefix_tokens=1, grid=(8, 8))
    want = measure(attention, reference=[0] * 8)
    for memory in (weights.nbytes * 2, weights.nbytes // 4, 1000):
        got = measure(attention, reference=[0] * 8, memory=memory)
        for metric, value in want.items():
            torch.testing.assert_close(got[metric], value, rtol=0, atol=1e-5, equal_nan=True, msg=metric)


def test_nan_is_named_when_the_forward_has_ended():
    model, images = build(*MODELS[0])
    model, images = model.cuda(), images.cuda()
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight[0, 0] = torch.nan
    with pytest.raises(overfocus.CaptureError, match=r"blocks\.1\.attn: expected attention weights, got NaN"):
        values_of(model, images)
