"""Windows, pooled keys, class attention, padding: what is measured on which kind, and how it is put together."""

import math

import numpy as np
import pytest
import torch

from overfocus.metrics import METRICS, STABILITY, measure

CONCENTRATION = ["top_share", "max_ratio", "gini", "effective_tokens", "row_entropy", "prefix_share"]


def test_global_map_has_every_metric(draw_weights, make_map):
    attention = make_map(draw_weights(2, 3, 17, 17), prefix_tokens=1, grid=(4, 4))
    assert list(measure(attention)) == list(METRICS)
    assert list(measure(attention, reference=torch.tensor([0, 0]))) == [*METRICS, *STABILITY]


def test_channel_map_has_none(draw_weights, make_map):
    assert measure(make_map(draw_weights(2, 3, 16, 16), "channel"), profiles=True) == {}


def test_distance_is_left_out_without_a_grid(draw_weights, make_map):
    assert "attention_distance" not in measure(make_map(draw_weights(2, 3, 16, 16)))


def test_each_window_is_measured_then_their_mean_taken(draw_weights, make_map, reference):
    weights = draw_weights(6, 2, 9, 9)
    partition = torch.arange(27).reshape(3, 9)
    values = measure(make_map(weights, "window", windows=3, grid=(3, 3), partition=partition, image_grid=(3, 9)))
    assert list(values) == list(METRICS)
    for name, value in values.items():
        want = [
            [getattr(reference(w.mean(0).numpy(), grid=(3, 3)), name)() for w in image] for image in weights.view(2, 3, 2, 9, 9)
        ]
        np.testing.assert_allclose(value.numpy(), np.mean(want, 1), atol=1e-5, err_msg=name)


def test_windows_per_head(draw_weights, make_map):
    weights = draw_weights(6, 2, 9, 9)
    values = measure(make_map(weights, "window", windows=3, grid=(3, 3)), per_head=True)
    for head in range(2):
        alone = measure(make_map(weights[:, head : head + 1], "window", windows=3, grid=(3, 3)))
        for name, value in values.items():
            assert value.shape == (2, 2)
            torch.testing.assert_close(value[:, head], alone[name], msg=name)


def test_windows_are_put_back_in_place(make_map):
    """Two windows of a 2×2 image, each one row of it; in each, all tokens look at the second token."""
    weights = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).expand(2, 1, 2, 2)
    partition = torch.tensor([[2, 3], [1, 0]])
    attention = make_map(weights, "window", windows=2, grid=(1, 2), partition=partition, image_grid=(2, 2))
    received = measure(attention, profiles=True)["received"]
    torch.testing.assert_close(received, torch.tensor([[0.5, 0.0, 0.0, 0.5]]))


def test_profile_is_left_out_where_windows_have_no_place(draw_weights, make_map):
    assert "received" not in measure(make_map(draw_weights(4, 1, 4, 4), "window", windows=2, grid=(2, 2)), profiles=True)


def test_padding_is_left_out(draw_weights, make_map, reference):
    """A 3×3 image in windows of 2×2: three of the four windows hold padding."""
    partition = torch.tensor([[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]])
    weights = draw_weights(8, 2, 4, 4)
    fields = {"windows": 4, "grid": (2, 2), "partition": partition, "image_grid": (3, 3)}
    pairs = torch.tensor([0, 0])
    values = measure(make_map(weights, "window", **fields), profiles=True, reference=pairs)
    places = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    of_windows = [[], []]
    for image in range(2):
        for window in range(4):
            kept = (partition[window] >= 0).numpy()
            part = weights[image * 4 + window].mean(0).numpy()[np.ix_(kept, kept)]
            measured = reference(part)
            of_windows[image].append(measured)
            between = np.linalg.norm(places[kept][:, None] - places[kept][None], axis=-1)
            measured.attention_distance = lambda p=part, d=between: float((p / p.sum(1, keepdims=True) * d).sum(1).mean())
    for name in METRICS:
        want = [np.nanmean([getattr(window, name)() for window in image]) for image in of_windows]
        np.testing.assert_allclose(values[name].numpy(), want, atol=1e-5, err_msg=name)
    for name in STABILITY:
        want = np.nanmean([getattr(a, name)(b) for a, b in zip(*of_windows, strict=True)])
        np.testing.assert_allclose(values[name].numpy(), [math.nan, want], atol=1e-5, err_msg=name)
    received = np.zeros((2, 9))
    for image in range(2):
        for window in range(4):
            tokens = partition[window][partition[window] >= 0].numpy()
            received[image, tokens] += of_windows[image][window].received / 4
    np.testing.assert_allclose(values["received"].numpy(), received, atol=1e-6)


def test_windows_of_padding_alone_do_not_count(draw_weights, make_map):
    weights = draw_weights(2, 1, 4, 4)
    partition = torch.tensor([[0, 1, 2, 3], [-1, -1, -1, -1]])
    padded = measure(make_map(weights, "window", windows=2, grid=(2, 2), partition=partition, image_grid=(2, 2)))
    alone = measure(make_map(weights[:1], "window", grid=(2, 2)))
    for name, value in alone.items():
        torch.testing.assert_close(padded[name], value, msg=name)


def test_undefined_windows_are_left_out_of_the_mean(make_map):
    """One window looks at its class token only, so that its profile is undefined; the other looks at both patches evenly."""
    onto_prefix = torch.tensor([1.0, 0.0, 0.0]).expand(3, 3)
    even = torch.tensor([0.0, 0.5, 0.5]).expand(3, 3)
    weights = torch.stack([onto_prefix, even]).unsqueeze(1)
    values = measure(make_map(weights, "window", windows=2, prefix_tokens=1, grid=(1, 2)))
    assert values["effective_tokens"].item() == pytest.approx(1)
    assert values["prefix_share"].item() == pytest.approx(0.5)


def test_pooled_keys(draw_weights, make_map, reference):
    weights = draw_weights(2, 3, 17, 5)
    fields = {"prefix_tokens": 1, "key_prefix_tokens": 1, "grid": (4, 4), "key_grid": (2, 2)}
    pairs = torch.tensor([0, 0])
    values = measure(make_map(weights, "pooled", **fields), profiles=True, reference=pairs)
    names = [*CONCENTRATION, "token_cosine", "attention_distance"]
    assert list(values) == [*names, *STABILITY, "received"]
    measured = [reference(w.mean(0).numpy(), prefix=1, grid=(4, 4), key_grid=(2, 2)) for w in weights]
    for name in names:
        np.testing.assert_allclose(values[name].numpy(), [getattr(m, name)() for m in measured], atol=1e-5, err_msg=name)
        keywords = {"grid": (4, 4), "key_grid": (2, 2)} if name == "attention_distance" else {}
        torch.testing.assert_close(METRICS[name](weights, prefix_tokens=1, **keywords), values[name], rtol=0, atol=1e-5)
    for name in STABILITY:
        np.testing.assert_allclose(values[name][1], getattr(measured[0], name)(measured[1]), atol=1e-5, err_msg=name)
    np.testing.assert_allclose(values["received"].numpy(), [m.received for m in measured], atol=1e-6)


def test_pooled_keys_with_another_prefix(draw_weights, make_map, reference):
    weights = draw_weights(2, 3, 18, 4)
    values = measure(make_map(weights, "pooled", prefix_tokens=2, key_prefix_tokens=0, grid=(4, 4), key_grid=(2, 2)))
    assert (values["prefix_share"] == 0).all()
    want = [reference(w.mean(0).numpy(), prefix=2, key_prefix=0).gini() for w in weights]
    np.testing.assert_allclose(values["gini"].numpy(), want, atol=1e-5)
    torch.testing.assert_close(METRICS["gini"](weights, prefix_tokens=2, key_prefix_tokens=0), values["gini"], rtol=0, atol=1e-5)


def test_pooled_key_stands_in_the_middle_of_what_it_covers():
    """One key over a 2×2 grid: each patch is half a diagonal away."""
    distance = METRICS["attention_distance"](torch.ones(1, 1, 4, 1), grid=(2, 2), key_grid=(1, 1))
    assert distance.item() == pytest.approx(math.sqrt(0.5))


def test_class_attention(make_map, reference):
    """One class query over itself and three patches."""
    row = torch.tensor([0.2, 0.4, 0.3, 0.1])
    attention = make_map(row.view(1, 1, 1, 4), "class", prefix_tokens=1, key_prefix_tokens=1, grid=(1, 3))
    values = measure(attention, profiles=True)
    assert list(values) == [*CONCENTRATION, "received"]
    torch.testing.assert_close(values["received"], torch.tensor([[0.5, 0.375, 0.125]]))
    assert values["max_ratio"].item() == pytest.approx(1.5)
    assert values["prefix_share"].item() == pytest.approx(0.2)
    measured = reference(row.view(1, 4).numpy(), prefix=0, key_prefix=1)
    for name in CONCENTRATION:
        assert values[name].item() == pytest.approx(getattr(measured, name)(), abs=1e-5)
        assert METRICS[name](row.view(1, 1, 1, 4), key_prefix_tokens=1).item() == pytest.approx(values[name].item(), abs=1e-5)


def test_class_attention_is_compared(draw_weights, make_map, reference):
    weights = draw_weights(2, 3, 1, 17)
    attention = make_map(weights, "class", prefix_tokens=1, key_prefix_tokens=1, grid=(4, 4))
    values = measure(attention, reference=torch.tensor([0, 0]))
    first, second = (reference(w.mean(0).numpy(), prefix=0, key_prefix=1) for w in weights)
    for name in STABILITY:
        assert values[name][1].item() == pytest.approx(getattr(first, name)(second), abs=1e-5)


def test_map_changed_after_its_softmax_is_measured_by_magnitude(make_map):
    """Mixed heads have rows that do not sum to 1 and negative entries: each entry counts with its share of the row."""
    mixed = torch.randn(2, 3, 17, 17, generator=torch.Generator().manual_seed(4))
    shares = mixed.abs() / mixed.abs().sum(-1, keepdim=True)
    got = measure(make_map(mixed, prefix_tokens=1, grid=(4, 4), normalised=False))
    want = measure(make_map(shares, prefix_tokens=1, grid=(4, 4)))
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-5, msg=name)


def test_hidden_rows_have_no_entropy(draw_weights, make_map):
    weights = draw_weights(1, 1, 4, 4)
    weights[:, :, 3] = 0
    values = measure(make_map(weights, hidden_rows=True))
    want = METRICS["row_entropy"](weights[:, :, :3])
    torch.testing.assert_close(values["row_entropy"], want)


def test_profile_is_that_of_the_mean_over_heads(draw_weights, make_map):
    attention = make_map(draw_weights(2, 3, 17, 17), prefix_tokens=1, grid=(4, 4))
    apart, together = (measure(attention, per_head=per_head, profiles=True)["received"] for per_head in (True, False))
    torch.testing.assert_close(apart, together)
