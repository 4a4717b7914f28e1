"""What is no attention is refused in one line that names the module."""

import re
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import overfocus
from overfocus.attention import check_rows


def spoil(model, name, value):
    with torch.no_grad():
        model.get_submodule(name).qkv.weight[0, 0] = value
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("fused", [True, False])
def test_nan_and_infinity_name_the_module(make_vit, family, value, fused):
    model = spoil(make_vit(), "blocks.1.attn", value)
    for block in model.blocks:
        block.attn.fused_attn = fused
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(family.images(32))
    assert torch.isfinite(captured.maps[0].weights).all()
    with pytest.raises(overfocus.CaptureError, match=r"^blocks\.1\.attn: the attention weights hold NaN or infinity") as caught:
        captured.maps[1].weights  # noqa: B018
    assert "\n" not in str(caught.value)
    assert "check the checkpoint's weights and the input" in str(caught.value)


def test_nan_stops_a_streaming_capture(make_vit, family):
    model = spoil(make_vit(), "blocks.0.attn", float("nan"))
    with (
        pytest.raises(overfocus.CaptureError, match=r"^blocks\.0\.attn: "),
        torch.no_grad(),
        overfocus.capture(model, reduce=lambda attention: attention.weights.sum()),
    ):
        model(family.images(32))


def test_rows_that_do_not_sum_to_one():
    weights = torch.full((1, 1, 2, 4), 0.25)
    check_rows(weights, "site")
    with pytest.raises(
        overfocus.CaptureError, match=re.escape("site: expected attention rows that sum to 1, got a row that sums to 0.5")
    ):
        check_rows(weights * 0.5, "site")
    check_rows(weights * 0.5, "site", tolerance=None)
    with pytest.raises(overfocus.CaptureError, match="sums to 0"):
        check_rows(weights * 0, "site")
    check_rows(weights * 0, "site", hidden_rows=True)
    check_rows(weights * 1.002, "site", tolerance=0.01)


class Conditional(nn.Module):
    """Attention modules of which a forward runs only one."""

    def __init__(self):
        super().__init__()
        self.attn_used = nn.MultiheadAttention(8, 2, batch_first=True)
        self.attn_unused = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attn_used(x, x, x)[0]


def test_coverage_names_what_did_not_run():
    model = Conditional().eval()
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(torch.randn(2, 5, 8))
    used, unused = captured.coverage
    assert (used.module, used.kind, used.captured, used.reason) == ("attn_used", "global", True, None)
    assert (unused.module, unused.kind, unused.captured) == ("attn_unused", None, False)
    assert unused.reason == "not called in this forward"
    assert used.class_name == unused.class_name == "MultiheadAttention"
    assert used.row()["shape"] == (2, 2, 5, 5)


class Shared(nn.Module):
    """One attention module that runs several times."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        for _ in range(3):
            x = x + self.attn(x, x, x)[0]
        return x


def test_a_module_that_runs_several_times_is_one_site_with_a_map_per_call():
    model = Shared().eval()
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(torch.randn(2, 5, 8))
    assert len(captured.maps) == 3
    assert not torch.equal(captured.maps[0].weights, captured.maps[1].weights)
    (site,) = captured.coverage
    assert site.captured


class Attending(nn.Module):
    def __init__(self, attend):
        super().__init__()
        self.attn = nn.Linear(8, 8)
        self.attend = attend

    def forward(self, x):
        return self.attend(self.attn, x)


def softmax_attention(x):
    return (x @ x.mT).softmax(-1) @ x


IN_THE_WAY = {
    "vmap": lambda layer, x: torch.vmap(lambda one: softmax_attention(layer(one)))(x),
    "grad": lambda layer, x: torch.func.grad(lambda one: softmax_attention(layer(one)).sum())(x),
    "keywords": lambda layer, x: torch.matmul(input=layer(x), other=x.mT),
    "nothing to attend": lambda layer, x: F.scaled_dot_product_attention(layer(x)[:, :0], x, x),
    "no batch": lambda layer, x: F.scaled_dot_product_attention(layer(x)[:0], x[:0], x[:0]),
    "two axes": lambda layer, x: softmax_attention(layer(x[0])),
    "complex": lambda layer, x: torch.view_as_real(torch.fft.fft(layer(x)) @ torch.fft.fft(x).mT),
    "out": lambda layer, x: torch.matmul(layer(x), x.mT, out=torch.empty(2, 5, 5)),
}


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_nothing_of_ours_is_raised_in_the_forward(name):
    model, x = Attending(IN_THE_WAY[name]), torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = model(x)
        with overfocus.capture(model) as captured:
            for _ in range(3):
                assert torch.equal(model(x), expected)
    assert all(site.reason is not None for site in captured.coverage if not site.captured)
    for attention in captured.maps:
        overfocus.metrics.measure(attention)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_jagged_tensors_are_captured():
    def attend(layer, x):
        heads = layer(x).unflatten(-1, (2, 4)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads)

    model = Attending(attend)
    items = [torch.randn(3, 8), torch.randn(5, 8)]
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(torch.nested.nested_tensor(items, layout=torch.jagged))
    (attention,) = captured.maps
    assert attention.shape == (2, 2, 5, 5)
    with torch.no_grad():
        heads = model.attn(items[0]).unflatten(-1, (2, 4)).transpose(0, 1)
    torch.testing.assert_close(attention.weights[0, :, :3, :3], (heads @ heads.mT / 2).softmax(-1))
    assert "padding counts" in captured.coverage[0].note


def test_errors_of_our_own_become_a_reason(make_vit, family, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("overfocus.capturing.layout_memory.LayoutMemory.find", broken)
    model, images = make_vit(), family.images(32)
    with torch.no_grad():
        expected = model(images)
        with overfocus.capture(model) as captured:
            assert torch.equal(model(images), expected)
    assert [site.reason for site in captured.coverage] == ["not captured: ZeroDivisionError: ours"] * 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError("full"), KeyboardInterrupt()])
def test_some_errors_are_the_users(make_vit, family, monkeypatch, error):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr("overfocus.capturing.layout_memory.LayoutMemory.find", broken)
    with pytest.raises(type(error)), overfocus.capture(make_vit()) as captured:
        captured.tracer.stack.model(family.images(32))


def test_capture_errors_of_reduce_wait_for_the_end_of_the_block(make_vit, family):
    model, finished = spoil(make_vit(), "blocks.0.attn", float("nan")), []
    with (  # noqa: PT012
        pytest.raises(overfocus.CaptureError, match=r"^blocks\.0\.attn: "),
        torch.no_grad(),
        overfocus.capture(model, reduce=overfocus.metrics.measure) as captured,
    ):
        model(family.images(32))
        finished.append(captured.reduced)
    assert finished == [(None, None)]


def test_captures_can_be_checked_after_each_batch(make_vit, family):
    model = spoil(make_vit(), "blocks.0.attn", float("nan"))
    with torch.no_grad(), overfocus.capture(model, reduce=overfocus.metrics.measure) as captured:
        model(family.images(32))
        with pytest.raises(overfocus.CaptureError, match="NaN"):
            captured.check()
        captured.check()


def test_queries_that_are_overwritten_are_noticed():
    def attend(layer, x):
        query = layer(x)[:, None]
        result = F.scaled_dot_product_attention(query, query, query)
        query.zero_()
        return result

    with torch.no_grad(), overfocus.capture(Attending(attend)) as captured:
        captured.tracer.stack.model(torch.randn(2, 5, 8))
    with pytest.raises(overfocus.CaptureError, match="overwrote its queries, keys or weights in place"):
        captured.maps[0].weights  # noqa: B018
    with torch.no_grad(), overfocus.capture(Attending(attend), reduce=lambda attention: attention.weights.sum()) as captured:
        captured.tracer.stack.model(torch.randn(2, 5, 8))
    torch.testing.assert_close(captured.reduced[0], torch.tensor(10.0))


def test_another_thread_is_named():
    def attend(layer, x):
        results = []
        thread = threading.Thread(target=lambda: results.append(layer(x, x, x)[0]))
        thread.start()
        thread.join()
        return results[0]

    model = Attending(attend)
    model.attn = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad(), overfocus.capture(model) as captured:
        model(torch.randn(2, 5, 8))
    (site,) = captured.coverage
    assert (site.module, site.captured) == ("attn", False)
    assert site.reason.startswith("ran in another thread")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_module_without_attention_in_its_name_that_runs_in_another_thread_is_named():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.here, self.there = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            results = []
            thread = threading.Thread(target=lambda: results.append(self.there(x)))
            thread.start()
            thread.join()
            return self.here(x) + results[0]

    model = Branches()
    with overfocus.capture(model) as captured:
        model(torch.randn(2, 4))
    (site,) = captured.coverage
    assert (site.module, site.captured) == ("there", False)
    assert "another thread" in site.reason


@pytest.mark.parametrize("met", ["the result", "a layer", "tokens"])
def test_attention_without_a_module_in_another_thread_is_named(met):
    """Tensors of another thread are met in this one: as the model's result, by a layer, by tokens."""

    class Thread(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            results = []
            thread = threading.Thread(target=lambda: results.append((q @ k.mT).softmax(-1) @ v))
            thread.start()
            thread.join()
            found = results[0] + x if met == "tokens" else results[0]
            return found if met == "the result" else self.head(found)

    with torch.no_grad(), overfocus.capture(Thread()) as captured:
        captured.tracer.stack.model(torch.randn(2, 9, 8))
    (site,) = captured.coverage
    assert (site.module, site.captured, site.class_name) == ("", False, "Thread")
    assert "another thread" in site.reason


class Unhashable:
    """A function of another library that takes part in torch's protocol."""

    __hash__ = None

    def __call__(self, x):
        function = torch.overrides.handle_torch_function
        return function(self, (x,), x) if torch.overrides.has_torch_function((x,)) else x


def test_functions_that_cannot_be_hashed_are_not_in_the_way():
    model = Attending(lambda layer, x: softmax_attention(Unhashable()(layer(x))))
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = model(x)
        with overfocus.capture(model) as captured:
            assert torch.equal(model(x), expected)
    assert len(captured.maps) == 1


def attend_in_a_thread(q, k, v):
    results = []
    thread = threading.Thread(target=lambda: results.append((q @ k.mT).softmax(-1) @ v))
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize("gradients", [True, False])
def test_another_thread_beside_captured_attention_is_named(gradients):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.head, self.shift = nn.Linear(8, 24), nn.Linear(8, 8), torch.randn(9, 8)

        def forward(self, x, apart):
            q, k, v = (self.qkv(x) + self.shift.repeat(1, 3)).chunk(3, -1)
            seen = (q @ k.mT).softmax(-1) @ v
            return self.head(seen + attend_in_a_thread(q, k, v)) if apart else self.head(seen + self.shift)

    for apart in (False, True):
        model = Both()
        for _ in range(3):  # the third is not traced
            with torch.set_grad_enabled(gradients), overfocus.capture(model) as captured:
                model(torch.randn(2, 9, 8), apart)
            assert sorted(site.captured for site in captured.coverage) == [*[False] * apart, True]
    assert "another thread" in "".join(site.reason or "" for site in captured.coverage)


def test_torchscript_is_named(make_vit, family):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.jit.trace(make_vit(), family.images(32))

        def forward(self, images):
            return self.inner(images)

    with torch.no_grad(), overfocus.capture(Outer()) as captured:
        captured.tracer.stack.model(family.images(32))
    (site,) = captured.coverage
    assert (site.module, site.kind, site.captured) == ("inner", "unsupported", False)
    assert site.reason.startswith("TorchScript runs outside Python")


def test_exported_programs_are_captured(make_vit, family):
    model, images = make_vit(), family.images(32)
    exported = torch.export.export(model, (images,)).module()
    with torch.no_grad(), overfocus.capture(model) as plain:
        model(images)
    with torch.no_grad(), overfocus.capture(exported) as captured:
        exported(images)
    assert [(attention.kind, attention.grid, attention.prefix_tokens) for attention in captured.maps] == [
        ("global", (4, 4), 1)
    ] * 2
    for one, other in zip(captured.maps, plain.maps, strict=True):
        torch.testing.assert_close(one.weights, other.weights)
    assert all(site.captured for site in captured.coverage)
