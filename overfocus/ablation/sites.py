"""Which patch tokens receive the attention of each map of a forward, and how the model itself lays out their keys."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overfocus.attention import TOKEN_KINDS, AttentionMap
from overfocus.capturing import capture
from overfocus.capturing.sources import Arrangement
from overfocus.errors import CaptureError
from overfocus.metrics.received import tied

_ENTRIES_PER_BLOCK = 2**22
"""Weights that are looked at together: a map is summed in blocks of queries."""


@dataclass(frozen=True, eq=False)
class KeySite:
    """One map over tokens of a forward."""

    module: str
    arrangement: Arrangement
    """How the axes of the model's own weights split into images, windows and heads."""
    shape: tuple[int, int]
    """(queries, keys) of the model's own weights."""
    windows: int
    key_prefix_tokens: int
    received: Float[Tensor, "items tokens"]
    """Sum of the attention that each patch key receives from the patches, one row per image and window."""

    @property
    def tokens(self) -> int:
        """Patch tokens among the keys of one window."""
        return self.received.shape[1]


def find_key_sites(model: nn.Module, inputs: Tensor) -> tuple[Tensor, list[KeySite]]:
    """Run the model as it is; what it returns, and its maps over tokens in call order.

    Raises:
        CaptureError: it has none.
    """
    from overfocus.forward import output_tensor

    with capture(model, reduce=_site_of) as captured:
        output = output_tensor(model(inputs))
    sites = [site for site in captured.reduced if site is not None]
    if not sites:
        raise CaptureError(f"no attention over tokens was found in {type(model).__name__}: nothing to take out")
    return output, sites


def ranks(received: Float[Tensor, "items tokens"], *, descending: bool) -> Tensor:
    """Place of each token when sorted by what it receives, from 0; equal ones in their own order."""
    scale = received.sum(-1, keepdim=True).clamp_min(torch.finfo(received.dtype).tiny)
    order = torch.sort(tied(received / scale), dim=-1, descending=descending, stable=True).indices
    return order.argsort(-1)


def _site_of(attention: AttentionMap) -> KeySite | None:
    if attention.kind not in TOKEN_KINDS:
        return None
    source = attention.source
    queries, keys = source.source.shape[-2:]
    return KeySite(
        module=attention.module,
        arrangement=source.arrangement,
        shape=(queries, keys),
        windows=attention.windows,
        key_prefix_tokens=attention.key_prefix_tokens,
        received=_received(attention),
    )


def _received(attention: AttentionMap) -> Float[Tensor, "items tokens"]:
    items, heads, queries, keys = attention.shape
    first = 0 if attention.kind == "class" else attention.prefix_tokens
    step = max(1, _ENTRIES_PER_BLOCK // (items * heads * keys))
    total = torch.zeros(0)
    for start in range(first, queries, step):
        rows = attention.rows(start, min(start + step, queries)).mean(1)
        if not attention.normalised:  # mixed heads: as the metrics do, each entry's share of its row's magnitude
            rows = rows.abs() / rows.abs().sum(-1, keepdim=True)
        part = rows[..., attention.key_prefix_tokens :].sum(
            1, dtype=torch.float64 if rows.device.type != "mps" else torch.float32
        )
        total = total.to(part) + part if len(total) else part
    return total
