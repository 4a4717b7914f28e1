"""Each metric against an independent reference in float64, on random, uniform, one-hot and degenerate maps."""

import itertools

import numpy as np
import pytest
import torch

from overfocus.metrics import METRICS, STABILITY, measure

SORTS = ["random", "flat", "peaked", "uniform", "identity", "one column", "two columns", "onto the first token",
         "partly onto the first token", "underflow", "shifted"]  # fmt: skip
# tokens and their grid, prefix tokens in front of them
LAYOUTS = [((4, 4), 0), ((4, 4), 1), ((3, 5), 5), ((1, 1), 0), ((1, 1), 1), ((1, 2), 0), ((7, 7), 0)]


def heads_or_mean(weights, per_head):
    return weights.numpy() if per_head else weights.mean(1, keepdim=True).numpy()


def expected(reference, name, weights, per_head=False, **fields):
    rows = [[getattr(reference(head, **fields), name)() for head in image] for image in heads_or_mean(weights, per_head)]
    return np.array(rows) if per_head else np.array(rows)[:, 0]


def keywords(name, grid, prefix):
    return {"prefix_tokens": prefix} | ({"grid": grid} if name == "attention_distance" else {})


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("name", METRICS)
def test_metric_equals_reference(name, sort, maps, reference):
    for grid, prefix in LAYOUTS:
        weights = maps(grid[0] * grid[1] + prefix)[sort]
        got = METRICS[name](weights, **keywords(name, grid, prefix)).numpy()
        want = expected(reference, name, weights, prefix=prefix, grid=grid)
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=f"{grid} {prefix}")


@pytest.mark.parametrize("name", METRICS)
def test_metric_per_head_equals_reference(name, maps, reference):
    weights = maps(17)["random"]
    got = METRICS[name](weights, per_head=True, **keywords(name, (4, 4), 1)).numpy()
    assert got.shape == (2, 3)
    np.testing.assert_allclose(got, expected(reference, name, weights, per_head=True, prefix=1, grid=(4, 4)), atol=1e-5)


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3, 1.0])
def test_top_fraction_equals_reference(fraction, maps, reference):
    weights = maps(50)["random"]
    got = METRICS["top_share"](weights, prefix_tokens=1, top_fraction=fraction).numpy()
    np.testing.assert_allclose(got, expected(reference, "top_share", weights, prefix=1, fraction=fraction), atol=1e-5)


@pytest.mark.parametrize("name", STABILITY)
def test_stability_equals_reference(name, maps, reference):
    for grid, prefix in LAYOUTS:
        sorts = maps(grid[0] * grid[1] + prefix)
        for (before, clean), (after, corrupted) in itertools.product(sorts.items(), repeat=2):
            got = STABILITY[name](clean[:1], corrupted[-1:], prefix_tokens=prefix).item()
            first = reference(clean[0].mean(0).numpy(), prefix=prefix)
            second = reference(corrupted[-1].mean(0).numpy(), prefix=prefix)
            want = getattr(first, name)(second)
            np.testing.assert_allclose(got, want, atol=1e-5, err_msg=f"{before} → {after}, {grid} {prefix}")


@pytest.mark.parametrize("name", STABILITY)
def test_stability_per_head_equals_reference(name, draw_weights, reference):
    clean, corrupted = draw_weights(2, 3, 26, 26), draw_weights(2, 3, 26, 26, seed=9)
    got = STABILITY[name](clean, corrupted, prefix_tokens=1, per_head=True).numpy()
    want = [
        [getattr(reference(a, prefix=1), name)(reference(b, prefix=1)) for a, b in zip(first, second, strict=True)]
        for first, second in zip(clean.numpy(), corrupted.numpy(), strict=True)
    ]
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("sort", SORTS)
def test_measure_equals_reference(sort, per_head, maps, reference, make_map):
    for grid, prefix in LAYOUTS:
        sorts = maps(grid[0] * grid[1] + prefix)
        weights = torch.cat([sorts["random"][:1], sorts[sort]])
        pairs = torch.zeros(len(weights), dtype=torch.long)  # the first image is the clean one of all
        got = measure(make_map(weights, prefix_tokens=prefix, grid=grid), per_head=per_head, reference=pairs)
        for name in METRICS:
            want = expected(reference, name, weights, per_head=per_head, prefix=prefix, grid=grid)
            np.testing.assert_allclose(got[name].numpy(), want, atol=1e-5, err_msg=f"{name} {grid} {prefix}")
        images = heads_or_mean(weights, per_head)
        for name in STABILITY:
            assert got[name][0].isnan().all()
            for image, value in zip(images[1:], got[name][1:], strict=True):
                heads = zip(images[0], image, strict=True)
                want = [getattr(reference(a, prefix=prefix), name)(reference(b, prefix=prefix)) for a, b in heads]
                np.testing.assert_allclose(value.reshape(-1).numpy(), want, atol=1e-5, err_msg=f"{name} {grid} {prefix}")
