"""Attention as people write it by hand, in every spelling; and softmaxes that are none."""

import math

import einops
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

import overfocus

HEADS, WIDTH = 2, 8


class Projected(nn.Module):
    """Queries, keys and values (batch, heads, tokens, width) of 4×4 patches, attended by `attend`, which tells its weights."""

    def __init__(self, attend):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, HEADS * WIDTH, 8, stride=8)
        self.qkv = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH)
        nn.init.normal_(self.qkv.weight, 0, 0.5)
        self.attend = attend
        self.used = None

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        batch, length, _ = tokens.shape
        q, k, v = self.qkv(tokens).reshape(batch, length, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
        output, self.used = self.attend(q, k, v)
        return output.transpose(1, 2).reshape(batch, length, -1)


def plain(q, k, v):
    weights = (q @ k.transpose(-2, -1) / math.sqrt(WIDTH)).softmax(dim=-1)
    return weights @ v, weights


def method_and_function(q, k, v):
    weights = torch.softmax(torch.matmul(q * WIDTH**-0.5, k.mT), -1)
    return torch.matmul(weights, v), weights


def functional_in_float32(q, k, v):
    weights = F.softmax(q @ k.mT / WIDTH**0.5, dim=-1, dtype=torch.float32).to(q.dtype)
    return F.dropout(weights, 0.0, training=False) @ v, weights


def module(q, k, v):
    weights = nn.Softmax(dim=-1)(q @ k.mT / WIDTH**0.5)
    return weights @ v, weights


def einsum(q, k, v):
    weights = torch.einsum("bhqd,bhkd->bhqk", q, k).div(WIDTH**0.5).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v), weights


def einsum_with_other_letters(q, k, v):
    weights = torch.einsum("zyxw,zyvw->zyxv", [q, k]).mul(WIDTH**-0.5).softmax(-1)
    return torch.einsum("zyvw,zyxv->zyxw", v, weights), weights


def batched_matrices(q, k, v):
    q, k, v = (tensor.flatten(0, 1) for tensor in (q, k, v))
    weights = torch.bmm(q, k.transpose(1, 2)).mul(WIDTH**-0.5).softmax(-1)
    return torch.bmm(weights, v).unflatten(0, (-1, HEADS)), weights.unflatten(0, (-1, HEADS))


def batched_with_bias(q, k, v):
    q, k, v = (tensor.flatten(0, 1) for tensor in (q, k, v))
    scores = torch.baddbmm(torch.linspace(-2, 2, k.shape[1]), q, k.transpose(1, 2), alpha=WIDTH**-0.5)
    weights = scores.softmax(-1)
    return torch.bmm(weights, v).unflatten(0, (-1, HEADS)), weights.unflatten(0, (-1, HEADS))


def values_on_the_left(q, k, v):
    weights = (q @ k.mT * WIDTH**-0.5).softmax(-1)
    return (v.mT @ weights.mT).mT, weights


def keys_on_the_left(q, k, v):
    scores = k @ q.mT * WIDTH**-0.5  # (…, keys, queries)
    weights = scores.softmax(-2)
    return (v.mT @ weights).mT, weights.mT


def heads_last(q, k, v):
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))  # (batch, tokens, heads, width)
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).mul(WIDTH**-0.5).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).transpose(1, 2), weights


def heads_first(q, k, v):
    q, k, v = (tensor.transpose(0, 1) for tensor in (q, k, v))  # (heads, batch, tokens, width)
    weights = (q @ k.mT * WIDTH**-0.5).softmax(-1)
    return (weights @ v).transpose(0, 1), weights.transpose(0, 1)


def masked(q, k, v):
    scores = (q @ k.mT * WIDTH**-0.5).masked_fill(torch.ones(16, 16, dtype=torch.bool).triu(1), -torch.inf)
    weights = scores.softmax(-1)
    return weights @ v, weights


def causal_in_fused(q, k, v):
    weights = (q @ k.mT * WIDTH**-0.5 + torch.full((16, 16), -torch.inf).triu(1)).softmax(-1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True), weights


def exponentials(q, k, v):
    weights = torch.exp(torch.log_softmax(q @ k.mT * WIDTH**-0.5, -1))
    return weights @ v, weights


def special_softmax(q, k, v):
    weights = torch.special.softmax(torch.linalg.matmul(q, k.mT) * WIDTH**-0.5, -1)
    return torch.linalg.matmul(weights, v), weights


def softmax_by_name(q, k, v):
    weights = torch.softmax(input=torch.matmul(input=q, other=k.mT) * WIDTH**-0.5, dim=-1)
    return torch.matmul(input=weights, other=v), weights


def batched_by_name(q, k, v):
    q, k, v = (tensor.flatten(0, 1) for tensor in (q, k, v))
    scores = torch.baddbmm(input=torch.zeros(16, 16), batch1=q, batch2=k.mT, alpha=WIDTH**-0.5)
    weights = scores.softmax(dim=-1)
    return torch.bmm(input=weights, mat2=v).unflatten(0, (-1, HEADS)), weights.unflatten(0, (-1, HEADS))


def exponentials_over_their_sum(q, k, v):
    exponentials = (q @ k.mT * WIDTH**-0.5).exp()
    weights = exponentials / exponentials.sum(-1, keepdim=True)
    return weights @ v, weights


def einsum_with_an_ellipsis(q, k, v):
    weights = torch.einsum("...id,...jd->...ij", q, k).mul(WIDTH**-0.5).softmax(-1)
    return torch.einsum("...ij,...jd->...id", weights, v), weights


def einsum_by_numbers(q, k, v):
    weights = torch.einsum(q, [0, 1, 2, 3], k, [0, 1, 4, 3], [0, 1, 2, 4]).mul(WIDTH**-0.5).softmax(-1)
    return torch.einsum(weights, [0, 1, 2, 3], v, [0, 1, 3, 4], [0, 1, 2, 4]), weights


def einops_with_an_ellipsis(q, k, v):
    q, k, v = (einops.rearrange(tensor, "b h ... d -> b h (...) d") for tensor in (q, k, v))
    weights = (einops.einsum(q, k, "... i d, ... j d -> ... i j") * WIDTH**-0.5).softmax(-1)
    return einops.einsum(weights, v, "... i j, ... j d -> ... i d"), weights


def stretched_and_summed(q, k, v):
    weights = ((q[..., :, None, :] * k[..., None, :, :]).sum(-1) * WIDTH**-0.5).softmax(-1)
    return (weights.unsqueeze(-1) * v.unsqueeze(-3)).sum(dim=-2), weights


def dotted(q, k, v):
    weights = (torch.linalg.vecdot(q[:, :, :, None], k[:, :, None]) * WIDTH**-0.5).softmax(-1)
    return weights @ v, weights


def averaged(q, k, v):
    weights = ((q.unsqueeze(-2) * k.unsqueeze(-3)).mean(-1) * WIDTH**0.5).softmax(-1)
    return (weights.unsqueeze(-1) * v.unsqueeze(-3)).sum(-2), weights


def kernel(q, k, v):
    """The operator that fused attention calls, as decomposed programs do."""
    return torch._scaled_dot_product_attention_math(q, k, v, scale=WIDTH**-0.5)


def two_axes_of_queries(q, k, v):
    weights = torch.einsum("bhxyd,bhkd->bhxyk", q.unflatten(2, (4, 4)), k).mul(WIDTH**-0.5).softmax(-1)
    return torch.einsum("bhxyk,bhkd->bhxyd", weights, v).flatten(2, 3), weights.flatten(2, 3)


def _one_by_one(attend):
    def attended(q, k, v):
        pairs = [[attend(*(tensor[image, head] for tensor in (q, k, v))) for head in range(HEADS)] for image in range(len(q))]
        return tuple(torch.stack([torch.stack([pair[part] for pair in heads]) for heads in pairs]) for part in (0, 1))

    attended.__name__ = attend.__name__
    return attended


@_one_by_one
def matrices_per_image_and_head(q, k, v):
    weights = torch.mm(q, k.T).mul(WIDTH**-0.5).softmax(-1)
    return torch.mm(weights, v), weights


@_one_by_one
def linear_per_image_and_head(q, k, v):
    weights = F.linear(q, k).mul(WIDTH**-0.5).softmax(-1)
    return F.linear(weights, v.T), weights


@_one_by_one
def tensordot_per_image_and_head(q, k, v):
    weights = torch.tensordot(q, k, dims=([1], [1])).mul(WIDTH**-0.5).softmax(-1)
    return torch.tensordot(weights, v, dims=1), weights


def heads_behind_each_other(q, k, v):
    q, k, v = (torch.cat(list(tensor.unbind(1))) for tensor in (q, k, v))
    weights = torch.bmm(q, k.mT).mul(WIDTH**-0.5).softmax(-1)
    return torch.bmm(weights, v).unflatten(0, (HEADS, -1)).transpose(0, 1), weights.unflatten(0, (HEADS, -1)).transpose(0, 1)


def keys_repeated_for_the_heads(q, k, v):
    q, k, v = q.flatten(0, 1), *(tensor[:, 0].repeat_interleave(HEADS, 0) for tensor in (k, v))
    weights = torch.bmm(q, k.mT).mul(WIDTH**-0.5).softmax(-1)
    return torch.bmm(weights, v).unflatten(0, (-1, HEADS)), weights.unflatten(0, (-1, HEADS))


@_one_by_one
def fused_per_image_and_head(q, k, v):
    return F.scaled_dot_product_attention(q, k, v), torch.linalg.multi_dot([q, k.T]).mul(WIDTH**-0.5).softmax(-1)


@_one_by_one
def chained_matrices(q, k, v):
    weights = torch.linalg.multi_dot([q, k.T]).mul(WIDTH**-0.5).softmax(-1)
    return torch.linalg.multi_dot([weights, v]), weights


def flattened_behind_the_softmax(q, k, v):
    weights = (q @ k.mT * WIDTH**-0.5).softmax(-1).flatten(0, 1)
    output = torch.baddbmm(torch.zeros(1, 1, WIDTH), weights, v.flatten(0, 1))
    return output.unflatten(0, (-1, HEADS)), weights.unflatten(0, (-1, HEADS))


def powers_of_two(q, k, v):
    powers = torch.exp2(q @ k.mT * WIDTH**-0.5)
    weights = powers / powers.sum(-1, keepdim=True)
    return weights @ v, weights


def powers_of_e(q, k, v):
    powers = math.e ** (q @ k.mT * WIDTH**-0.5)
    weights = powers / powers.sum(-1, keepdim=True)
    return weights @ v, weights


def powers_by_function(q, k, v):
    powers = torch.pow(2.0, q @ k.mT * WIDTH**-0.5)
    weights = F.normalize(powers, p=1, dim=-1)
    return weights @ v, weights


def divided_by_einsum(q, k, v):
    exponentials = (q @ k.mT * WIDTH**-0.5).exp()
    weights = torch.einsum("bhij,bhi->bhij", exponentials, 1 / exponentials.sum(-1))
    return weights @ v, weights


def einsum_with_a_metric(q, k, v):
    weights = torch.einsum("bhid,d,bhjd->bhij", q, torch.full((WIDTH,), WIDTH**-0.5), k).softmax(-1)
    return weights @ v, weights


def einsum_with_a_matrix(q, k, v):
    weights = torch.einsum("bhid,de,bhje->bhij", q, torch.eye(WIDTH).roll(1, 0), k).softmax(-1)
    return weights @ v, weights


def cosines(q, k, v):
    weights = (F.cosine_similarity(q[:, :, :, None], k[:, :, None], dim=-1) * 9).softmax(-1)
    return weights @ v, weights


def distances(q, k, v):
    weights = (-(torch.cdist(q, k) ** 2)).softmax(-1)
    return weights @ v, weights


def stretched_by_expand(q, k, v):
    q, k = q.unsqueeze(3).expand(-1, -1, -1, 16, -1), k.unsqueeze(2).expand(-1, -1, 16, -1, -1)
    weights = ((q * k).sum(-1, keepdim=True).squeeze(-1) * WIDTH**-0.5).softmax(-1)
    return weights @ v, weights


def one_key_head_by_einsum(q, k, v):
    weights = torch.einsum("bhid,bjd->bhij", q, k[:, 0]).mul(WIDTH**-0.5).softmax(-1)
    return torch.einsum("bhij,bjd->bhid", weights, v[:, 0]), weights


def one_key_head_behind_the_queries(q, k, v):
    weights = torch.einsum("bihd,bjd->bihj", q.transpose(1, 2), k[:, 0]).mul(WIDTH**-0.5).softmax(-1)
    return torch.einsum("bihj,bjd->bihd", weights, v[:, 0]).transpose(1, 2), weights.transpose(1, 2)


def one_key_head_of_folded_queries(q, k, v):
    weights = (q.flatten(1, 2) @ k[:, 0].mT * WIDTH**-0.5).softmax(-1)
    return (weights @ v[:, 0]).unflatten(1, (HEADS, 16)), weights.unflatten(1, (HEADS, 16))


def one_fused_key_head_of_interleaved_queries(q, k, v):
    folded = q.transpose(1, 2).flatten(1, 2)
    output = F.scaled_dot_product_attention(folded[:, None], k[:, :1], v[:, :1])[:, 0].unflatten(1, (16, HEADS))
    return output.transpose(1, 2), (q @ k[:, :1].mT * WIDTH**-0.5).softmax(-1)


def rotated_as_complex(q, k, v):
    """Rotary embedding by complex numbers."""
    turn = torch.polar(torch.ones(16, WIDTH // 2), torch.linspace(0, 3, 16 * WIDTH // 2).reshape(16, -1))
    q, k = (
        torch.view_as_real(torch.view_as_complex(tensor.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
        for tensor in (q, k)
    )
    weights = (q @ k.mT * WIDTH**-0.5).softmax(-1)
    return weights @ v, weights


def scores_of_heads_stacked(q, k, v):
    weights = torch.stack([q[:, head] @ k[:, head].mT for head in range(HEADS)], 1).mul(WIDTH**-0.5).softmax(-1)
    return weights @ v, weights


def weights_of_images_stacked(q, k, v):
    weights = torch.stack([(one @ other.mT * WIDTH**-0.5).softmax(-1) for one, other in zip(q, k, strict=True)])
    return weights @ v, weights


def scores_in_chunks_of_queries(q, k, v):
    weights = torch.cat([chunk @ k.mT * WIDTH**-0.5 for chunk in q.chunk(3, 2)], 2).softmax(-1)
    return weights @ v, weights


def scores_written_head_by_head(q, k, v):
    scores = q.new_zeros(len(q), HEADS, 16, 16)
    for head in range(HEADS):
        scores[:, head] = q[:, head] @ k[:, head].mT * WIDTH**-0.5
    weights = scores.softmax(-1)
    return weights @ v, weights


def weights_written_over_scores(q, k, v):
    weights = q @ k.mT * WIDTH**-0.5
    for start in range(0, 16, 8):
        weights[:, :, start : start + 8] = weights[:, :, start : start + 8].softmax(-1)
    return weights @ v, weights


def largest_scores_scattered(q, k, v):
    scores = q @ k.mT * WIDTH**-0.5
    largest, places = scores.topk(3, -1)
    weights = torch.zeros_like(scores).scatter(-1, places, largest.softmax(-1))
    return weights @ v, weights


def largest_scores_kept(q, k, v):
    """Keys that no query chooses are no padding."""
    scores = q @ k.mT * WIDTH**-0.5
    weights = scores.masked_fill(scores < scores.topk(2, -1).values[..., -1:], -torch.inf).softmax(-1)
    return weights @ v, weights


def largest_scores_by_a_mask(q, k, v):
    scores = q @ k.mT * WIDTH**-0.5
    chosen = torch.zeros_like(scores).scatter_(-1, scores.topk(2, -1).indices, 1.0)
    weights = torch.where(chosen > 0, scores, torch.full_like(scores, -torch.inf)).softmax(-1)
    return weights @ v, weights


def flexible(q, k, v):
    scores = q @ k.mT * WIDTH**-0.5 - 0.1 * (torch.arange(16)[:, None] - torch.arange(16)).abs()
    return flex_attention(q, k, v, score_mod=lambda score, _, __, i, j: score - 0.1 * (i - j).abs()), scores.softmax(-1)


SPELLINGS = [
    plain,
    method_and_function,
    functional_in_float32,
    module,
    einsum,
    einsum_with_other_letters,
    batched_matrices,
    batched_with_bias,
    values_on_the_left,
    keys_on_the_left,
    heads_last,
    heads_first,
    masked,
    causal_in_fused,
    exponentials,
    special_softmax,
    softmax_by_name,
    batched_by_name,
    exponentials_over_their_sum,
    einsum_with_an_ellipsis,
    einsum_by_numbers,
    einops_with_an_ellipsis,
    stretched_and_summed,
    dotted,
    averaged,
    kernel,
    two_axes_of_queries,
    matrices_per_image_and_head,
    linear_per_image_and_head,
    tensordot_per_image_and_head,
    heads_behind_each_other,
    keys_repeated_for_the_heads,
    fused_per_image_and_head,
    chained_matrices,
    flattened_behind_the_softmax,
    powers_of_two,
    powers_of_e,
    powers_by_function,
    divided_by_einsum,
    einsum_with_a_metric,
    einsum_with_a_matrix,
    cosines,
    distances,
    stretched_by_expand,
    one_key_head_by_einsum,
    one_key_head_behind_the_queries,
    one_key_head_of_folded_queries,
    one_fused_key_head_of_interleaved_queries,
    rotated_as_complex,
    scores_of_heads_stacked,
    weights_of_images_stacked,
    scores_in_chunks_of_queries,
    scores_written_head_by_head,
    weights_written_over_scores,
    largest_scores_scattered,
    largest_scores_kept,
    largest_scores_by_a_mask,
    flexible,
]


def run(model, images):
    model.eval()
    with torch.no_grad():
        expected = model(images)
        with overfocus.capture(model) as captured:
            assert torch.equal(model(images), expected)
    return captured


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("attend", SPELLINGS, ids=lambda attend: attend.__name__)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_spellings(family, attend, batch):
    model = Projected(attend)
    (attention,) = run(model, family.images(32, batch=batch)).maps
    assert (attention.kind, attention.grid, attention.prefix_tokens) == ("global", (4, 4), 0)
    assert attention.shape == (batch, HEADS, 16, 16)
    torch.testing.assert_close(attention.weights, model.used, rtol=0, atol=1e-6)
    assert attention.weights.max() > 0.3
    assert overfocus.verify(model, family.images(32)).passed


def mixed_heads(q, k, v):
    weights = (q @ k.mT * WIDTH**-0.5).softmax(-1)
    weights = torch.einsum("bhqk,hg->bgqk", weights, torch.tensor([[0.7, -0.4], [0.5, 0.9]]))
    return weights @ v, weights


def mixed_heads_in_the_last_axis(q, k, v):
    scores = torch.einsum("bhqd,bhkd->bqkh", q, k) * WIDTH**-0.5
    scores = scores @ torch.tensor([[0.8, 0.1], [-0.3, 1.1]])
    weights = scores.softmax(2) @ torch.tensor([[0.7, -0.4], [0.5, 0.9]])
    return torch.einsum("bqkh,bhkd->bhqd", weights, v), weights.permute(0, 3, 1, 2)


def difference(q, k, v):
    first = (q @ k.mT * WIDTH**-0.5).softmax(-1)
    second = (k @ q.mT * WIDTH**-0.5).softmax(-1)
    weights = first - 0.3 * second
    return weights @ v, weights


def gated(q, k, v):
    weights = (q @ k.mT * WIDTH**-0.5).softmax(-1) * torch.linspace(0.1, 1, 16)
    weights = weights / weights.sum(-1, keepdim=True)
    return weights @ v, weights


def sink(q, k, v):
    scores = torch.cat([q @ k.mT * WIDTH**-0.5, torch.ones(*q.shape[:3], 1)], -1)
    weights = scores.softmax(-1)[..., :-1]
    return weights @ v, weights


def over_the_queries(q, k, v):
    weights = (q @ k.mT * WIDTH**-0.5).softmax(-2)
    return weights @ v, weights


def assigned(q, k, v):
    """Each key goes to one query, whose keys share evenly; queries may get none (GroupViT)."""
    groups = (q @ k.mT * WIDTH**-0.5).softmax(-2)
    hard = F.one_hot(groups.argmax(-2), 16).mT.to(groups) + groups - groups.detach()
    weights = hard / (hard.sum(-1, keepdim=True) + 1e-6)
    return weights @ v, weights


def followed_twice(q, k, v):
    weights = (q @ k.mT * WIDTH**-0.5).softmax(-1)
    weights = weights @ weights
    return weights @ v, weights


def followed_there_and_back(q, k, v):
    weights = (q @ k.mT * WIDTH**-0.5).softmax(-1) @ (k @ q.mT * WIDTH**-0.5).softmax(-1)
    return weights @ v, weights


def similar_rows(q, k, v):
    weights = (q @ k.mT * WIDTH**-0.5).softmax(-1)
    weights = torch.einsum("bhik,bhjk->bhij", weights, weights)
    return weights @ v, weights


def mean_of_the_heads(q, k, v):
    weights = (q @ k.mT * WIDTH**-0.5).softmax(-1).mean(1, keepdim=True).expand(-1, HEADS, -1, -1)
    return weights @ v, weights


def exponentials_divided_late(q, k, v):
    exponentials = (q @ k.mT * WIDTH**-0.5).exp()
    return (exponentials @ v) / exponentials.sum(-1, keepdim=True), exponentials


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("attend", "normalised"),
    [
        (mixed_heads, False),
        (mixed_heads_in_the_last_axis, False),
        (difference, False),
        (gated, True),
        (sink, False),
        (over_the_queries, False),
        (assigned, True),
        (followed_twice, True),
        (followed_there_and_back, True),
        (similar_rows, False),
        (mean_of_the_heads, True),
        (exponentials_divided_late, False),
    ],
)
def test_the_map_that_is_used_counts(family, attend, normalised, batch):
    model = Projected(attend)
    (attention,) = run(model, family.images(32, batch=batch)).maps
    assert attention.normalised == normalised
    assert attention.shape == (batch, HEADS, 16, 16)
    torch.testing.assert_close(attention.weights, model.used, rtol=0, atol=1e-6)
    assert overfocus.verify(model, family.images(32)).passed


def branch_weights(q, _, v):
    gate = q.mean((2, 3), keepdim=True).softmax(1)
    return gate * v, None


def selected_channels(q, _, v):
    gate = q.mean(2, keepdim=True).softmax(-1)
    return v * gate, None


def token_scores(q, k, v):
    scores = q.sum(-1, keepdim=True).softmax(2)
    return (scores * k).sum(2, keepdim=True) * v, None


def linear_attention(q, k, v):
    return q.softmax(-1) @ (k.softmax(-2).mT @ v), None


@pytest.mark.parametrize("attend", [branch_weights, selected_channels, token_scores, linear_attention])
def test_other_softmaxes_are_gatings(family, attend):
    captured = run(Projected(attend), family.images(32))
    assert captured.maps == ()
    assert {site.kind for site in captured.coverage} == {"gating"}
    assert all(not site.captured and "softmax" in site.reason for site in captured.coverage)


def summed_over_the_queries(q, k, v):
    weights = (q @ k.mT).softmax(-1)
    return torch.einsum("bhij,bhjd->bhd", weights, v).unsqueeze(2).expand(-1, -1, 16, -1), None


def scaled_in_the_same_product(q, k, v):
    weights = (q @ k.mT).softmax(-1)
    return torch.einsum("bhij,j,bhjd->bhid", weights, torch.arange(16.0), v), None


@pytest.mark.parametrize("attend", [summed_over_the_queries, scaled_in_the_same_product])
def test_weights_used_in_an_unknown_way_are_no_softmax_over_something_else(family, attend):
    captured = run(Projected(attend), family.images(32))
    assert captured.maps == ()
    (site,) = captured.coverage
    assert (site.kind, site.captured) == ("unsupported", False)
    assert site.reason.startswith("a softmax over query-key products, whose weights")


def elu_features(q, k, v):
    q, k = F.elu(q) + 1, F.elu(k) + 1
    weights = q @ k.mT
    return weights / weights.sum(-1, keepdim=True) @ v, None


def grouped_convolution(q, k, v):
    """Scores of every image and head by one convolution, whose kernel are the keys."""
    groups = len(q) * HEADS
    scores = F.conv1d(q.mT.reshape(1, -1, 16), k.reshape(groups * 16, WIDTH, 1), groups=groups)
    weights = (scores.reshape(len(q), HEADS, 16, 16).mT * WIDTH**-0.5).softmax(-1)
    return weights @ v, weights


def test_products_without_a_softmax_are_named(family):
    captured = run(Projected(elu_features), family.images(32))
    assert [site.reason for site in captured.coverage] == ["no softmax: products of queries and keys, as in linear attention"]


@pytest.mark.parametrize("batch", [1, 2])
def test_scores_of_a_convolution_are_a_map_without_a_grid(family, batch):
    model = Projected(grouped_convolution)
    (attention,) = run(model, family.images(32, batch=batch)).maps
    assert (attention.grid, attention.shape) == (None, (batch, HEADS, 16, 16))
    torch.testing.assert_close(attention.weights, model.used, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("batch", [2, 3])
def test_images_that_are_attended_one_by_one_keep_their_heads(family, fused, batch):
    def attend(q, k, v):
        weights = [(q[image] @ k[image].mT * WIDTH**-0.5).softmax(-1) for image in range(len(q))]
        if fused:
            return torch.stack([F.scaled_dot_product_attention(*tensors) for tensors in zip(q, k, v, strict=True)]), weights
        return torch.stack([weights[image] @ v[image] for image in range(len(q))]), weights

    model = Projected(attend)
    maps = run(model, family.images(32, batch=batch)).maps
    assert [(attention.kind, attention.grid, attention.shape) for attention in maps] == [
        ("global", (4, 4), (1, HEADS, 16, 16))
    ] * batch
    for attention, weights in zip(maps, model.used, strict=True):
        torch.testing.assert_close(attention.weights[0], weights)


def sigmoid(q, k, v):
    return (q @ k.mT).sigmoid() @ v, None


def rectified(q, k, v):
    return F.relu(q @ k.mT).square() @ v, None


@pytest.mark.parametrize(("attend", "reason"), [(sigmoid, "sigmoid"), (rectified, "squared")])
def test_weights_that_are_no_softmax_say_what_they_are(family, attend, reason):
    captured = run(Projected(attend), family.images(32))
    assert captured.maps == ()
    (site,) = captured.coverage
    assert (site.kind, site.reason) == ("unsupported", f"no softmax: weights are scores after {reason}")


def neighbourhood(q, k, v):
    """Each query has the keys of the 3×3 places around it."""
    around = [
        F.unfold(tensor.mT.reshape(len(q), -1, 4, 4), 3, padding=1).reshape(len(q), HEADS, WIDTH, 9, 16).permute(0, 1, 4, 3, 2)
        for tensor in (k, v)
    ]
    weights = torch.einsum("bhnd,bhnkd->bhnk", q, around[0]).softmax(-1)
    return torch.einsum("bhnk,bhnkd->bhnd", weights, around[1]), weights


def neighbourhood_elementwise(q, k, v):
    around = [torch.stack([tensor.roll(step, 2) for step in range(16)], 2)[..., :9, :] for tensor in (k, v)]
    weights = (q.unsqueeze(-2) * around[0]).sum(-1).softmax(-1)
    return (weights.unsqueeze(-1) * around[1]).sum(-2), weights


@pytest.mark.parametrize("attend", [neighbourhood, neighbourhood_elementwise])
def test_queries_with_keys_of_their_own_say_so(family, attend):
    captured = run(Projected(attend), family.images(32))
    assert captured.maps == ()
    assert "keys of its own" in captured.coverage[0].reason


def keys_in_chunks(q, k, v):
    """A softmax over parts of the keys, one after the other (FlashAttention spelled out)."""
    output, highest, total = torch.zeros_like(q), torch.full((*q.shape[:-1], 1), -1e30), 0
    for keys, values in zip(k.chunk(2, 2), v.chunk(2, 2), strict=True):
        scores = q @ keys.mT * WIDTH**-0.5
        new = torch.maximum(highest, scores.amax(-1, keepdim=True))
        exponentials, shrink = (scores - new).exp(), (highest - new).exp()
        total = total * shrink + exponentials.sum(-1, keepdim=True)
        output, highest = output * shrink + exponentials @ values, new
    return output / total, None


def test_exponentials_of_a_part_of_the_keys_are_in_no_metric(family):
    captured = run(Projected(keys_in_chunks), family.images(32))
    assert {attention.kind for attention in captured.maps} == {"unlabelled"}
    assert "only part of the queries or keys" in captured.coverage[0].reason


def random_features(q, k, v):
    """Performer: linear attention whose features are exponentials."""
    features = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    q, k = ((t @ features - t.square().sum(-1, keepdim=True) / 2).exp() for t in (q, k))
    return (q @ (k.mT @ v)) / (q @ k.sum(2).unsqueeze(-1)), None


def test_random_features_are_no_softmax(family):
    captured = run(Projected(random_features), family.images(32))
    assert captured.maps == ()


class Context(nn.Module):
    """GCNet's block: one softmax over all places pools them, and the pooled channels are added everywhere."""

    def __init__(self):
        super().__init__()
        self.key, self.mix = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        weights = self.key(x).flatten(2).softmax(-1)
        return x + self.mix((x.flatten(2).unsqueeze(1) @ weights.unsqueeze(-1)).squeeze(1)[..., None])


def test_context_blocks_in_a_row_are_no_attention(family):
    captured = run(nn.Sequential(nn.Conv2d(3, 8, 4, 4), *(Context() for _ in range(3))), family.images(32))
    assert captured.maps == ()
    assert {site.kind for site in captured.coverage} == {"gating"}


def gated_before(q, k, v):
    tokens = q * q.mean(-1, keepdim=True).softmax(2)  # what has been through a softmax can be a query still
    weights = (tokens @ k.mT * 16 * WIDTH**-0.5).softmax(-1)
    return weights @ v, weights


def scored_twice(q, k, v):
    """The output of one attention is the query of the next, in one module."""
    first = (q @ k.mT * WIDTH**-0.5).softmax(-1) @ v
    weights = (first @ k.mT).softmax(-1)
    return weights @ v, weights


@pytest.mark.parametrize(("attend", "maps"), [(gated_before, 1), (scored_twice, 2)])
def test_queries_may_come_from_a_softmax(family, attend, maps):
    model = Projected(attend)
    captured = run(model, family.images(32))
    assert len(captured.maps) == maps
    torch.testing.assert_close(captured.maps[-1].weights, model.used, rtol=0, atol=1e-6)


class Classifier(nn.Module):
    """A softmax at the end, and a mixture of class prototypes after it: a head, no attention."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 8, 8, stride=8)
        self.head = nn.Linear(8, 4)
        self.prototypes = nn.Parameter(torch.randn(4, 8))

    def forward(self, images):
        tokens = self.features(images).flatten(2).transpose(1, 2)
        return self.head(tokens).softmax(-1) @ self.prototypes


def test_class_probabilities_are_no_attention(family):
    captured = run(Classifier(), family.images(32))
    assert captured.maps == ()


class PooledByAQuery(nn.Module):
    """One learnt query per image reads the patches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.query = nn.Parameter(torch.randn(1, 1, 16))
        self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        query = self.query.expand(len(tokens), -1, -1)
        self.used = (query @ self.key(tokens).mT).softmax(-1)
        return self.used @ self.value(tokens)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_learnt_query_makes_a_class_map(family, batch):
    model = PooledByAQuery()
    (attention,) = run(model, family.images(32, batch=batch)).maps
    assert (attention.kind, attention.prefix_tokens, attention.key_prefix_tokens) == ("class", 1, 0)
    assert (attention.grid, attention.shape) == ((4, 4), (batch, 1, 1, 16))
    torch.testing.assert_close(attention.weights[:, 0], model.used, rtol=0, atol=1e-6)


class Windowed(nn.Module):
    """Attention in windows of any size, rolled by any shift, over any grid that they tile."""

    def __init__(self, window, shift):
        super().__init__()
        torch.manual_seed(0)
        self.window, self.shift = window, shift
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.qkv = nn.Linear(8, 24)

    def forward(self, images):
        x = self.patches(images).permute(0, 2, 3, 1)
        x = torch.roll(x, (-self.shift[0], -self.shift[1]), (1, 2))
        batch, rows, columns, channels = x.shape
        height, width = self.window
        x = x.view(batch, rows // height, height, columns // width, width, channels)
        x = x.transpose(2, 3).reshape(-1, height * width, channels)
        q, k, v = self.qkv(x).reshape(len(x), -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)).filter(lambda size: size != (1, 1)),
    count=st.tuples(st.integers(1, 3), st.integers(1, 3)).filter(lambda count: count != (1, 1)),
    shift=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_windows_of_any_size_and_shift(batch, window, count, shift):
    grid = (window[0] * count[0], window[1] * count[1])
    model = Windowed(window, shift)
    images = torch.randn(batch, 3, 4 * grid[0], 4 * grid[1], generator=torch.Generator().manual_seed(0))
    (attention,) = run(model, images).maps
    numbers = torch.roll(torch.arange(grid[0] * grid[1]).reshape(grid), (-shift[0], -shift[1]), (0, 1))
    windows = numbers.unflatten(0, (-1, window[0])).unflatten(2, (-1, window[1])).transpose(1, 2).reshape(count[0] * count[1], -1)
    assert (attention.kind, attention.image_grid, attention.windows) == ("window", grid, count[0] * count[1])
    assert torch.equal(attention.partition.sort(1).values, windows.sort(1).values)
    assert attention.batch == batch
    # every weight where it belongs: between two places of the image, against queries and keys of the image as a whole
    with torch.no_grad():
        q, k, _ = model.qkv(model.patches(images).flatten(2).mT).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    together = (windows[:, :, None] == torch.arange(grid[0] * grid[1])).any(1).float()
    scores = (q @ k.mT / 2).masked_fill((together.T @ together) == 0, -torch.inf)
    whole = torch.zeros_like(scores)
    for window, places in enumerate(attention.partition):
        whole[:, :, places[:, None], places] = attention.weights.unflatten(0, (batch, -1))[:, window]
    torch.testing.assert_close(whole, scores.softmax(-1), rtol=0, atol=1e-6)
