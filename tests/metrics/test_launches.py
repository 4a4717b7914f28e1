"""What measuring costs an accelerator: launches a layer, waits a forward, and one device throughout; counted without a GPU."""

import pytest
import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import overfocus
from overfocus.capturing import sources
from overfocus.metrics import METRICS, STABILITY, ForwardMeasurement, blocks, measure, tokens
from tests.metrics.launches import Launches

MOST_LAUNCHES = 30
"""A layer, beyond those of the plain forward."""


@pytest.fixture
def accelerator(monkeypatch):
    """Block sizes of a device with 1 GB to work with, on the processor."""
    sizes = blocks.block_sizes(torch.device("cuda"), memory=2**30)
    monkeypatch.setattr(blocks, "PROCESSOR", sizes)


def build(name, depth, size=64, **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, img_size=size, depth=depth, **arguments).eval()


class Measured:
    """Capture and all metrics of one model, forward after forward, as `analyze` does it."""

    def __init__(self, model, reference, **arguments):
        self.model = model
        self.reference = reference
        self.measurement = ForwardMeasurement(**arguments)

    def learn(self, captured, images):
        """The first two forwards, which work out the layouts."""
        for _ in range(2):
            self.forward(captured, images)

    def forward(self, captured, images):
        self.measurement.begin(self.reference)
        captured.clear()
        self.model(images)
        return self.measurement.compute(captured.norms)


@pytest.mark.parametrize("batch", [2, 8, 32])
@pytest.mark.parametrize("compares", [False, True])
@pytest.mark.usefixtures("accelerator")
def test_launches_of_a_layer(batch, compares):
    """At most 30 more than the plain forward, of whatever batch, pair metrics, profiles and norms included."""
    depth = 12
    model, images = build("vit_tiny_patch16_224", depth), torch.randn(batch, 3, 64, 64)
    measured = Measured(model, [image // 4 * 4 for image in range(batch)] if compares else None)
    with torch.no_grad(), overfocus.capture(model, reduce=measured.measurement.add, norms=True) as captured:
        measured.learn(captured, images)
        with Launches() as counted:
            values = measured.forward(captured, images)
    with torch.no_grad(), Launches() as plain:
        model(images)
    layer = (counted.total - plain.total) / depth
    assert counted.waits == []
    assert layer <= MOST_LAUNCHES, (layer, counted.counts - plain.counts)
    with Launches() as reading:
        layers = values.read()
    assert reading.total <= 2 + len(values.together) * 3  # one buffer is filled and read
    assert len(layers) == depth


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"size": 64, "depth": 2}),
        ("vit_tiny_patch16_224", {"size": 64, "depth": 2, "per_head": True}),
        ("pvt_v2_b0", {"size": None}),
    ],
)
@pytest.mark.usefixtures("accelerator")
def test_nothing_waits(name, arguments):
    """After the first two forwards, which learn the layouts, the host reads nothing before the values of the whole forward."""
    model, images, measured = prepared(name, **arguments)
    with torch.no_grad(), overfocus.capture(model, reduce=measured.measurement.add, norms=True) as captured:
        measured.learn(captured, images)
        with Launches() as counted:
            measured.forward(captured, images)
    assert counted.waits == []


def prepared(name, size=64, per_head=False, **arguments):
    torch.manual_seed(0)
    sized = {} if size is None else {"img_size": size}
    model = timm.create_model(name, **sized, **arguments).eval()
    images = torch.randn(4, 3, size or 64, size or 64)
    return model, images, Measured(model, [0, 0, 2, 2], per_head=per_head)


@pytest.fixture
def fake_device():
    """What was kept for a fake device is forgotten, before real tensors meet it."""
    caches = (sources._sent, tokens._padding_on, tokens._kept_distances, tokens._coordinates, blocks.item_pairs)
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"size": 64, "depth": 2}),
        ("vit_tiny_patch16_224", {"size": 64, "depth": 2, "per_head": True}),
        ("swin_tiny_patch4_window7_224", {"size": 72, "depths": (1, 2), "window_size": 4}),
        ("cait_xxs24_224", {"size": 64, "depth": 2}),
        ("pvt_v2_b0", {"size": None}),
    ],
)
@pytest.mark.usefixtures("fake_device")
def test_fake_gpu_runs_the_measuring_path(name, arguments):
    """Layouts are learnt on the processor; then tensors that claim to be on a GPU mix devices nowhere and are never read."""
    model, images, measured = prepared(name, **arguments)
    with torch.no_grad(), overfocus.capture(model, reduce=measured.measurement.add, norms=True) as captured:
        measured.learn(captured, images)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        # an index stays on the processor, as it may: with another one the forward would be traced anew
        held = [*model.named_parameters(), *(item for item in model.named_buffers() if item[1].is_floating_point())]
        weights = {name: torch.empty(value.shape, dtype=value.dtype, device="cuda") for name, value in held}
        given = torch.empty(images.shape, device="cuda")
        with overfocus.capture(model, reduce=measured.measurement.add, norms=True) as captured:
            measured.measurement.begin(measured.reference)
            torch.func.functional_call(model, weights, (given,))
            values = measured.measurement.compute(captured.norms)
        assert len(values.together) > 0
        for together in values.together:
            assert together.values.device.type == together.faults.device.type == "cuda"
            assert together.received is None or together.received.device.type == "cuda"


@pytest.mark.parametrize("name", [*METRICS, *STABILITY])
@pytest.mark.usefixtures("fake_device")
def test_fake_gpu_runs_every_formula(name, make_map):
    """Each metric by itself, on the device alone."""
    with FakeTensorMode(), torch.no_grad():
        weights = torch.empty(4, 3, 17, 17, device="cuda")
        measurement = ForwardMeasurement([name])
        measurement.begin([0, 0, 2, 2])
        measurement.add(make_map(weights, prefix_tokens=1, grid=(4, 4)))
        (together,) = measurement.evaluate()
        assert together.names == [name]
        assert together.values.device.type == "cuda"


def test_budget_bounds_the_blocks(draw_weights, make_map, monkeypatch):
    """A small budget of memory gives the same values in more blocks."""
    weights = draw_weights(8, 3, 17, 17)
    attention = make_map(weights, prefix_tokens=1, grid=(4, 4))
    want = measure(attention, reference=[0] * 8)
    for memory, asked in ((2**30, 1), (weights.nbytes * 2, 2), (weights.nbytes // 2, 8)):
        monkeypatch.setattr(blocks, "PROCESSOR", blocks.block_sizes(torch.device("cuda"), memory))
        attention.source.asked = 0
        got = measure(attention, reference=[0] * 8)
        assert attention.source.asked == asked
        for metric, value in want.items():
            torch.testing.assert_close(got[metric], value, rtol=0, atol=1e-6, equal_nan=True, msg=metric)
