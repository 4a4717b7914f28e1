"""measure() on what capture hands over: image by image, windows, pooled keys, class attention."""

import pytest
import timm
import torch

import overfocus
from overfocus.metrics import METRICS, STABILITY, measure

CONCENTRATION = ["top_share", "max_ratio", "gini", "effective_tokens", "row_entropy", "prefix_share"]


def captured(name, size=64, batch=3, **arguments):
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=size, **arguments).eval()
    with torch.inference_mode(), overfocus.capture(model) as kept:
        model(torch.randn(batch, 3, size, size))
    return kept.maps


@pytest.fixture(scope="module")
def families():
    return {
        "global": captured("vit_tiny_patch16_224", depth=1)[0],
        "window": captured("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), window_size=4)[0],
        "class": captured("cait_xxs24_224", depth=1)[-1],
    }


@pytest.mark.parametrize("kind", ["global", "window", "class"])
def test_rows_of_some_images_are_those_of_the_whole_map(kind, families):
    attention = families[kind]
    assert attention.images_first
    whole = attention.rows(0, attention.shape[2])
    some = attention.rows(0, attention.shape[2], slice(1, 3))
    torch.testing.assert_close(some, whole[attention.windows : 3 * attention.windows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["global", "window", "class"])
def test_names_fit_the_kind(kind, families):
    attention = families[kind]
    assert attention.kind == kind
    values = measure(attention, reference=torch.tensor([0, 0, 0]))
    assert list(values) == ([*CONCENTRATION, *STABILITY] if kind == "class" else [*METRICS, *STABILITY])
    assert all(value.shape == (3,) and value.dtype == torch.float32 for value in values.values())
    assert all(value.isfinite().all() for name, value in values.items() if name in METRICS)


@pytest.mark.parametrize("kind", ["global", "window", "class"])
def test_profile_covers_the_image(kind, families):
    attention = families[kind]
    received = measure(attention, profiles=True)["received"]
    rows, columns = attention.image_grid or attention.key_grid or attention.grid
    assert received.shape == (3, rows * columns)
    torch.testing.assert_close(received.sum(1), torch.ones(3))
    assert (received >= 0).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_measured_while_the_model_runs(mode):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval()
    with mode(), overfocus.capture(model, reduce=measure) as kept:
        model(torch.randn(2, 3, 64, 64))
    assert len(kept.reduced) == 2
    assert not any(value.requires_grad for values in kept.reduced for value in values.values())


def test_half_precision_model_is_measured_in_float32():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), overfocus.capture(model, reduce=measure) as full:
        model(images)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), overfocus.capture(model, reduce=measure) as mixed:
        model(images)
    for name, value in mixed.reduced[0].items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, full.reduced[0][name], rtol=0.02, atol=0.01)
