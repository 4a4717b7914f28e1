"""What is no attention is refused in one line that names the module."""

import re

import pytest
import torch
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
