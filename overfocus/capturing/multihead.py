"""Attention of `torch.nn.MultiheadAttention`, whose kernels hide it: the weights are computed beside it from its arguments.

In evaluation torch takes fused kernels that no function mode sees, and leaves them as soon as one is active; so the mode steps
aside while these modules run, and their maps come from here. Shapes follow `torch.nn.functional.multi_head_attention_forward`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overfocus.capturing.sources import QueryKeyWeights

_FORWARD_ARGUMENTS = (
    "query",
    "key",
    "value",
    "key_padding_mask",
    "need_weights",
    "attn_mask",
    "average_attn_weights",
    "is_causal",
)
FUNCTION_ARGUMENTS = (
    "query key value embed_dim_to_check num_heads in_proj_weight in_proj_bias bias_k bias_v add_zero_attn dropout_p "
    "out_proj_weight out_proj_bias training key_padding_mask need_weights attn_mask use_separate_proj_weight q_proj_weight "
    "k_proj_weight v_proj_weight static_k static_v average_attn_weights is_causal"
).split()
_LAYER_ARGUMENTS = ("src", "src_mask", "src_key_padding_mask", "is_causal")


@dataclass(eq=False)
class MultiheadCall:
    """One call of multi-head attention: its weights, and the values they were multiplied with."""

    weights: QueryKeyWeights
    """(batch, heads, queries, keys)"""
    values: Tensor
    """(batch, heads, keys, width)"""
    out_weight: Tensor
    out_bias: Tensor | None

    def attended(self) -> Tensor:
        """What the module returns, (batch, queries, channels), computed from weights × values."""
        weights = self.weights.rows(0, self.weights.shape[-2])
        mixed = (weights.to(self.values.dtype) @ self.values).transpose(1, 2).flatten(2)
        return F.linear(mixed, self.out_weight, self.out_bias)


def stands_aside(module: nn.Module) -> bool:
    """Whether the function mode steps aside for this module: those that would leave their fast path."""
    return any(
        isinstance(module, kind) and type(module).forward is kind.forward
        for kind in (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    )


def module_call(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> MultiheadCall:
    """The attention of one call of `nn.MultiheadAttention`."""
    given = dict(zip(_FORWARD_ARGUMENTS, args, strict=False)) | dict(kwargs)
    tensors = [given[name] for name in ("query", "key", "value")]
    if tensors[0].is_nested:
        padded = tensors[0].to_padded_tensor(0.0)
        given["key_padding_mask"] = _padding(tensors[0], padded)
        tensors = [padded] * 3
    if module.batch_first and tensors[0].ndim == 3:
        tensors = [tensor.transpose(0, 1) for tensor in tensors]
    separate = not module._qkv_same_embed_dim
    projections = (
        (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight) if separate else module.in_proj_weight.chunk(3)
    )
    return _call(
        tensors,
        heads=module.num_heads,
        projections=tuple(projections),
        biases=(None, None, None) if module.in_proj_bias is None else tuple(module.in_proj_bias.chunk(3)),
        extra=(module.bias_k, module.bias_v),
        zero=module.add_zero_attn,
        out=(module.out_proj.weight, module.out_proj.bias),
        padding=given.get("key_padding_mask"),
        mask=given.get("attn_mask"),
        is_causal=bool(given.get("is_causal", False)),
    )


def function_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[MultiheadCall, Tensor, Tensor]:
    """The attention of one call of `torch.nn.functional.multi_head_attention_forward`, its queries and its keys."""
    given = dict(zip(FUNCTION_ARGUMENTS, args, strict=False)) | dict(kwargs)
    if given.get("use_separate_proj_weight"):
        projections = tuple(given[f"{name}_proj_weight"] for name in "qkv")
    else:
        projections = tuple(given["in_proj_weight"].chunk(3))
    call = _call(
        [given[name] for name in ("query", "key", "value")],
        heads=given["num_heads"],
        projections=projections,
        biases=(None, None, None) if given.get("in_proj_bias") is None else tuple(given["in_proj_bias"].chunk(3)),
        extra=(given.get("bias_k"), given.get("bias_v")),
        zero=bool(given.get("add_zero_attn")),
        out=(given["out_proj_weight"], given["out_proj_bias"]),
        padding=given.get("key_padding_mask"),
        mask=given.get("attn_mask"),
        is_causal=bool(given.get("is_causal", False)),
    )
    return call, given["query"], given["key"]


def nested_call(query: Tensor, key: Tensor, scale: float | None, is_causal: bool) -> QueryKeyWeights:
    """The weights of nested queries and keys (batch, heads, *, width), padded; the rows and columns of padding are zero."""
    padded, padding = _padded(query)
    keys, hidden = _padded(key)
    mask = ~(padding[:, None, :, None] | hidden[:, None, None, :])
    if is_causal:
        mask = mask & torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).tril()
    return QueryKeyWeights(padded, keys, mask, scale)


def _padded(nested: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, heads, tokens, width) of nested tensors (batch, heads, *, width), and which tokens are padding."""
    items = nested.unbind()
    lengths = torch.tensor([item.shape[-2] for item in items], device=nested.device)
    longest = int(lengths.max())
    padded = torch.stack([F.pad(item, (0, 0, 0, longest - item.shape[-2])) for item in items])
    return padded, torch.arange(longest, device=nested.device) >= lengths[:, None]


def layer_call(
    layer: nn.TransformerEncoderLayer, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[MultiheadCall, Tensor]:
    """The attention of an encoder layer that took its fast path, and what the layer returns for it, for verification."""
    given = dict(zip(_LAYER_ARGUMENTS, args, strict=False)) | dict(kwargs)
    source = given["src"]
    padding = given.get("src_key_padding_mask")
    if source.is_nested:
        padded = source.to_padded_tensor(0.0)
        padding, source = _padding(source, padded), padded
    normed = layer.norm1(source) if layer.norm_first else source
    call = module_call(
        layer.self_attn, (normed, normed, normed), {"key_padding_mask": padding, "attn_mask": given.get("src_mask")}
    )
    after = source + call.attended()
    if layer.norm_first:
        return call, after + layer._ff_block(layer.norm2(after))
    after = layer.norm1(after)
    return call, layer.norm2(after + layer._ff_block(after))


def _padding(nested: Tensor, padded: Tensor) -> Tensor:
    lengths = torch.tensor([item.shape[0] for item in nested.unbind()], device=padded.device)
    return torch.arange(padded.shape[1], device=padded.device) >= lengths[:, None]


def _call(
    tensors: list[Tensor],
    *,
    heads: int,
    projections: tuple[Tensor, ...],
    biases: tuple[Tensor | None, ...],
    extra: tuple[Tensor | None, Tensor | None],
    zero: bool,
    out: tuple[Tensor, Tensor | None],
    padding: Tensor | None,
    mask: Tensor | None,
    is_causal: bool,
) -> MultiheadCall:
    """Project (tokens, batch, channels) to heads and gather the masks; True in torch's module masks means hidden."""
    if tensors[0].ndim == 2:
        tensors = [tensor.unsqueeze(1) for tensor in tensors]
        padding = None if padding is None else padding.unsqueeze(0)
    query, key, value = (F.linear(t, w, b) for t, w, b in zip(tensors, projections, biases, strict=True))
    batch = query.shape[1]
    if extra[0] is not None and extra[1] is not None:
        key = torch.cat([key, extra[0].expand(1, batch, -1)])
        value = torch.cat([value, extra[1].expand(1, batch, -1)])
    if zero:
        key, value = (torch.cat([t, t.new_zeros(1, *t.shape[1:])]) for t in (key, value))
    added = key.shape[0] - tensors[1].shape[0]
    query, key, value = (t.reshape(t.shape[0], batch, heads, -1).permute(1, 2, 0, 3) for t in (query, key, value))
    bias = _additive(mask, query)
    if bias is not None:
        bias = F.pad(bias if bias.ndim == 2 else bias.reshape(batch, -1, *bias.shape[-2:]), (0, added))
    hidden = _additive(padding, query)
    if hidden is not None:
        hidden = F.pad(hidden, (0, added))[:, None, None, :]
        bias = hidden if bias is None else bias + hidden
    causal = is_causal and mask is None and padding is None
    return MultiheadCall(QueryKeyWeights(query, key, bias, is_causal=causal), value, *out)


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -torch.inf)
