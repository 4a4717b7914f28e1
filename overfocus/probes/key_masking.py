"""Keys taken out of the attention of a model while it runs, without changing the model.

A function mode gives the functions that attention is made of a mask: the weights of the hidden keys become 0 and the others
are normalised again, exactly as in a model that never had these keys.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from overfocus.attention import TOKEN_KINDS, AttentionMap
from overfocus.capturing import capture
from overfocus.capturing.sources import FUNCTION_ARGUMENTS, Arrangement
from overfocus.capturing.watching import SDPA_ARGUMENTS, ModuleStack, function_name
from overfocus.errors import CaptureError
from overfocus.forward import output_tensor
from overfocus.metrics.sums import tied

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
    image_received: Float[Tensor, "images rows columns"] | None = None
    """The share of it on each cell of the image's patch grid, windows weighing the same; None where the grid is unknown."""

    @property
    def tokens(self) -> int:
        """Patch tokens among the keys of one window."""
        return self.received.shape[1]


def find_key_sites(model: nn.Module, inputs: Tensor) -> tuple[Tensor, list[KeySite]]:
    """Run the model as it is; what it returns, and its maps over tokens in call order.

    Raises:
        CaptureError: it has none.
    """
    with capture(model, reduce=_site_of) as captured:
        output = output_tensor(model(inputs))
    sites = [site for site in captured.reduced if site is not None]
    if not sites:
        raise CaptureError(f"no attention over tokens was found in {type(model).__name__}: nothing to take out")
    return output, sites


def ranks(received: Float[Tensor, "items tokens"], *, descending: bool) -> Tensor:
    """Place of each token when sorted by what it receives, from 0; equal ones in their own order."""
    order = torch.sort(tied(shares(received)), dim=-1, descending=descending, stable=True).indices
    return order.argsort(-1)


def _site_of(attention: AttentionMap) -> KeySite | None:
    if attention.kind not in TOKEN_KINDS:
        return None
    source = attention.source
    queries, keys = source.source.shape[-2:]
    received = _received(attention)
    return KeySite(
        module=attention.module,
        arrangement=source.arrangement,
        shape=(queries, keys),
        windows=attention.windows,
        key_prefix_tokens=attention.key_prefix_tokens,
        received=received,
        image_received=_on_image_grid(attention, received),
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


def _on_image_grid(
    attention: AttentionMap, received: Float[Tensor, "items tokens"]
) -> Float[Tensor, "images rows columns"] | None:
    windows, tokens = attention.windows, received.shape[1]
    places, grid = attention.partition, attention.image_grid
    if grid is None:
        return None
    if places is None and tokens == math.prod(grid):
        places = torch.arange(tokens).unsqueeze(0)
    if places is None or places.shape != (windows, tokens):
        return None
    places = places.to(received.device)
    inside = received.view(-1, windows, tokens) * (places >= 0)
    by_window = shares(inside).flatten(1)
    total = by_window.new_zeros(len(by_window), math.prod(grid)).index_add_(1, places.clamp_min(0).flatten(), by_window)
    return shares(total).view(-1, *grid)


def shares(received: Float[Tensor, "*items tokens"]) -> Float[Tensor, "*items tokens"]:
    """Of their sum; 0 where nothing is received."""
    return received / received.sum(-1, keepdim=True).clamp_min(torch.finfo(received.dtype).tiny)


@contextmanager
def hide_keys(model: nn.Module, sites: Sequence[KeySite], hidden: Sequence[Bool[Tensor, "items tokens"]]) -> Iterator[None]:
    """Take keys out of the attention of the forwards of `model` inside the block.

    `sites` are the maps of a forward of this model, as `find_key_sites` gives them; `hidden` says for each which patch tokens
    are taken out, one row per image and window of the batch that will run.

    Raises:
        CaptureError: the attention of a site did not pass by, so that its keys are still there.
    """
    mode = _HidingMode(model, sites, hidden)
    mode.stack.watch(lambda _module, _args: mode.begin(), lambda *_: None)
    try:
        with mode:
            yield
    finally:
        mode.stack.unwatch()
    mode.check()


class _HidingMode(TorchFunctionMode):
    def __init__(self, model: nn.Module, sites: Sequence[KeySite], hidden: Sequence[Bool[Tensor, "items tokens"]]) -> None:
        super().__init__()
        self.stack = ModuleStack(model)
        self._sites = list(sites)
        self._hidden = list(hidden)
        self._calls: Counter[tuple[str, tuple[int, int]]] = Counter()

    def begin(self) -> None:
        """A module is about to run; if it is the outermost, a new forward begins."""
        if not self.stack.running:
            self._calls.clear()

    def check(self) -> None:
        """Raise unless every site of the last forward was met."""
        expected = Counter((site.module, site.shape) for site in self._sites)
        missed = [module for (module, shape), number in expected.items() if self._calls[module, shape] < number]
        if missed:
            raise CaptureError(
                f"{missed[0]}: its keys cannot be taken out: no softmax or attention function of torch made its weights"
            )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if self.stack.running:
            if name == "scaled_dot_product_attention":
                args, kwargs = self._scaled_dot_product(args, kwargs)
            elif name == "softmax":
                args, kwargs = self._softmax(args, kwargs)
            elif name == "multi_head_attention_forward":
                args, kwargs = self._multihead(args, kwargs)
        return func(*args, **kwargs)

    def _kept(self, shape: tuple[int, ...]) -> tuple[KeySite, Bool[Tensor, "items keys"]] | None:
        """The site whose map (…, queries, keys) is being made, and which of its keys stay, prefix tokens first."""
        module, tokens = self.stack.site or type(self.stack.model).__name__, (shape[-2], shape[-1])
        places = [place for place, site in enumerate(self._sites) if site.module == module and site.shape == tokens]
        if not places:
            return None
        place = places[min(self._calls[module, tokens], len(places) - 1)]
        self._calls[module, tokens] += 1
        site, hidden = self._sites[place], self._hidden[place]
        prefix = hidden.new_zeros(len(hidden), site.key_prefix_tokens)
        return site, ~torch.cat([prefix, hidden], 1)

    def _scaled_dot_product(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = dict(zip(SDPA_ARGUMENTS, args, strict=False)) | kwargs
        query, key = given.pop("query"), given.pop("key")
        found = self._kept((*query.shape[:-1], key.shape[-2]))
        if found is None:
            return args, kwargs
        site, kept = found
        keep = _unfold(site, kept, key.shape[-2])
        if given.get("is_causal"):
            ones = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
            keep, given["is_causal"] = keep & ones.tril(), False
        mask = given.get("attn_mask")
        if mask is None:
            given["attn_mask"] = keep
        else:
            given["attn_mask"] = mask & keep if mask.dtype == torch.bool else torch.where(keep, mask, -torch.inf)
        return (query, key, given.pop("value")), given

    def _softmax(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        scores = args[0] if args else kwargs["input"]
        found = self._kept(tuple(scores.shape)) if scores.ndim >= 3 else None
        if found is None:
            return args, kwargs
        site, kept = found
        keep = _unfold(site, kept, scores.shape[-1])
        if keep.ndim != scores.ndim:  # heads folded into the batch, or not yet
            keep = keep.reshape(*scores.shape[:-2], 1, scores.shape[-1])
        masked = scores.masked_fill(~keep, -torch.inf)
        return ((masked, *args[1:]), kwargs) if args else (args, kwargs | {"input": masked})

    def _multihead(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = dict(zip(FUNCTION_ARGUMENTS, args, strict=False)) | kwargs
        own = len(given["key"])
        width = own + (given.get("bias_k") is not None) + bool(given.get("add_zero_attn"))
        found = self._kept((len(given["query"]), width))
        if found is None:
            return args, kwargs
        site, kept = found
        keep = _unfold(site, kept, width)[:, 0, 0, :own]  # one head for all, and not the keys that torch adds
        mask, padding = given.get("attn_mask"), given.get("key_padding_mask")
        hidden = ~keep
        if padding is not None and padding.dtype == torch.bool:
            hidden = hidden | padding
        elif padding is not None or (mask is not None and mask.dtype != torch.bool):  # torch wants both masks of one type
            zeros = torch.zeros(keep.shape, dtype=given["query"].dtype, device=keep.device) if padding is None else padding
            hidden = zeros.masked_fill(hidden, -torch.inf)
        return (), given | {"key_padding_mask": hidden}


def _unfold(site: KeySite, kept: Bool[Tensor, "items keys"], width: int) -> Tensor:
    with torch._C.DisableTorchFunction():  # how a mask is laid out is none of what the model does with its tokens
        return site.arrangement.unfold(kept, width)
