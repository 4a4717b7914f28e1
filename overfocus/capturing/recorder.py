"""Turns what passes by in a forward into labelled attention maps."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from overfocus.attention import AttentionMap, row_tolerance
from overfocus.capturing.coverage import Site, SiteLog
from overfocus.capturing.functions import PRODUCTS, Permuted, function_name
from overfocus.capturing.layout import is_channel_map
from overfocus.capturing.layout_book import LayoutBook
from overfocus.capturing.mode import CaptureMode
from overfocus.capturing.modules import ModuleStack, in_backward
from overfocus.capturing.multihead import MultiheadCall, function_call, layer_call, module_call, stands_aside
from overfocus.capturing.norms import BlockTokens, TokenNorms
from overfocus.capturing.positions import Positions, representative
from overfocus.capturing.products import ProductTracker, Use
from overfocus.capturing.sources import ArrangedWeights, MaterialisedWeights, QueryKeyWeights, WeightSource

# Token attention whose weights a projection gives, without a product of queries and keys (VOLO).
LOCAL_ATTENTION = frozenset({"OutlookAttention"})
SDPA_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")

# The functions that attention begins with; all others matter only while something is being followed.
_BEGINNINGS = {"scaled_dot_product_attention", "multi_head_attention_forward", "softmax", *PRODUCTS}

TokenPositions = tuple[Positions | None, Positions | None]


class Recorder:
    """Follows one model through its forwards and hands every attention map it finds to `found`."""

    def __init__(
        self,
        model: nn.Module,
        found: Callable[[AttentionMap], None],
        *,
        gradients: bool = False,
        verify: bool = False,
        norms: bool = False,
    ) -> None:
        self.stack = ModuleStack(model)
        self.mode = CaptureMode(self.observe)
        self.sites = SiteLog(model)
        self._found = found
        self._gradients = gradients
        self._verify = verify
        self._norms = norms
        self._book = LayoutBook(model)
        self._products = ProductTracker()
        self._entry: str | None = None
        self._aside = {id(module) for module in model.modules() if stands_aside(module)}
        self._ran: set[str] = set()
        """Multi-head modules that have run themselves since the layer around them began."""
        self._blocks: dict[str, BlockTokens] = {}
        """Modules around an attention site whose output is awaited for its norms."""
        self.norms: list[TokenNorms] = []
        self._gated: dict[int, tuple[str, tuple[int, ...]]] = {}
        """Softmaxes not (yet) used as attention: module and shape."""

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module is about to run."""
        name = self.stack.names[id(module)]
        running = self.stack.running
        if not running and (self._entry is None or name in ("", self._entry)):
            self._entry = self._entry or name
            self._book.begin()
            self._products.clear()
        if not self._book.started:
            self._book.start(name, args)
        if self._aside:
            self._ran.discard(_attention_of(name))
            self.mode.active(id(module) not in self._aside)

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A module has run."""
        name = self.stack.names[id(module)]
        running = self.stack.running
        if id(module) in self._aside:
            self._stood_aside(module, name, args, kwargs, output[0] if isinstance(output, tuple) else output)
        self._products.left(name)
        block = self._blocks.pop(name, None)
        norms = None if block is None else block.norms(output[0] if isinstance(output, (tuple, list)) else output)
        if norms is not None:
            self.norms.append(norms)
        if self._aside:
            self.mode.active(not (running and id(running[-1]) in self._aside))
        if not running:
            for site, shape in self._gated.values():
                self.sites.add(Site(site, "gating", shape, reason="a softmax over something else than query-key products"))
            self._gated.clear()

    def observe(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """A torch function has run."""
        positions = self._book.positions
        running = bool(self.stack.running)
        if not running and not len(positions.notes) and not len(self._products.notes):
            return
        name = function_name(func)
        idle = not self._book.tracing and not len(self._products.notes)
        if (idle and name not in _BEGINNINGS) or in_backward():
            return
        with torch._C.DisableTorchFunction():
            if running and name == "scaled_dot_product_attention":
                self._scaled_dot_product(args, kwargs, result)
            elif running and name == "multi_head_attention_forward":
                self._multihead(self.stack.site, function_call(args, kwargs), result[0], args)
            elif running and name == "softmax":
                site = self.stack.site
                number = self._products.softmax(args[0] if args else kwargs["input"], result, site)
                self._gated[number] = site, tuple(result.shape)
                if self._book.tracing:
                    positions.follow(func, args, kwargs, result)
            else:
                use = self._products.follow(func, args, kwargs, result, self.stack.site)
                used = use is not None and running and self._used(use)
                if self._book.tracing and not used:
                    positions.follow(func, args, kwargs, result)

    def _scaled_dot_product(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        given = dict(zip(SDPA_ARGUMENTS, args, strict=False)) | kwargs
        query, key, value = given["query"], given["key"], given["value"]
        weights = QueryKeyWeights(query, key, given.get("attn_mask"), given.get("scale"), bool(given.get("is_causal")))
        positions = None
        if self._book.tracing:
            queries, keys, values = (self._book.positions.get(tensor) for tensor in (query, key, value))
            positions = queries, values if values is not None else keys
        self._record(self.stack.site, weights, positions, deviation=self._deviation(weights, value, result))
        if positions is not None:
            self._attended(positions, Permuted(result, tuple(range(result.ndim))))

    def _used(self, use: Use) -> bool:
        """A product of weights and values; False where the weights are none of attention."""
        local = type(self.stack.running[-1]).__name__ in LOCAL_ATTENTION
        if not local and not use.weighting.from_product:
            return False
        for number in use.weighting.softmaxes:
            self._gated.pop(number, None)
        weights = MaterialisedWeights(use.weights.tensor)
        positions = None
        if self._book.tracing:
            known = self._book.positions.get(use.values.original)
            values = None if known is None else Positions(known.ids.permute(use.values.axes), known.grid)
            product = use.weighting.product
            positions = (values if product is None else self._book.positions.operand(product, 0)), values
        self._record(
            self.stack.site,
            weights,
            positions,
            deviation=self._deviation(weights, use.values.tensor, use.output.tensor),
            normalised=not use.weighting.changed or _rows_sum_to_one(weights),
        )
        if positions is not None and not local:
            self._attended(positions, use.output)
        return True

    def _attended(self, positions: TokenPositions, output: Permuted) -> None:
        """Tokens stay where their query was; channels that attend channels leave every token where it was."""
        queries, values = positions
        if queries is None:
            return
        shape = tuple(output.original.shape[axis] for axis in output.axes)
        ids = queries.ids if values is not None and is_channel_map(values) else representative(queries.ids, -1)
        if shape[:-1] == ids.shape[:-1] and ids.shape[-1] in (1, shape[-1]):
            restored = [output.axes.index(axis) for axis in range(len(shape))]
            self._book.positions.notes[output.original] = Positions(ids.expand(shape).permute(restored), queries.grid)

    def _stood_aside(self, module: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """A module has run that hides its attention."""
        if isinstance(module, nn.MultiheadAttention):
            self._ran.add(name)
            call = module_call(module, args, kwargs)
            swapped = not module.batch_first and result.ndim == 3
            self._multihead(name, call, result.transpose(0, 1) if swapped else result, args)
        elif isinstance(module, nn.TransformerEncoderLayer) and _attention_of(name) not in self._ran:
            call, expected = layer_call(module, args, kwargs)
            self._multihead(_attention_of(name), call, result, args, expected)
        if self._book.tracing and args:
            self._book.positions.copy(args[0], result)

    def _multihead(
        self, name: str, call: MultiheadCall, result: Tensor, args: tuple[Any, ...], expected: Tensor | None = None
    ) -> None:
        """Attention of multi-head modules; `expected` is what the module returns for it where that is more than attention."""
        deviation = None
        if self._verify:
            found = result.to_padded_tensor(0.0) if result.is_nested else result
            expected = call.attended() if expected is None else expected
            difference = (expected.reshape(found.shape) - found).masked_fill(found == 0, 0)
            deviation = float(difference.abs().max()), float(found.abs().max())
        positions = None
        if self._book.tracing:
            queries, keys = (self._per_head(self._book.positions.get(tensor), call) for tensor in (*args, None, None)[:2])
            positions = queries, keys
        self._record(name, call.weights, positions, deviation=deviation, images=call.weights.shape[0])

    @staticmethod
    def _per_head(known: Positions | None, call: MultiheadCall) -> Positions | None:
        fits = known is not None and known.ids.ndim == 3 and known.ids.shape[0] == call.weights.shape[0]
        return Positions(known.ids[:, None], known.grid) if known is not None and fits else None

    @torch.no_grad()
    def _deviation(self, weights: WeightSource, values: Tensor, output: Tensor) -> tuple[float, float] | None:
        if not self._verify:
            return None
        whole = weights.rows(0, weights.shape[-2])
        if values.ndim == whole.ndim and values.shape[-3] not in (1, whole.shape[-3]):
            values = values.repeat_interleave(whole.shape[-3] // values.shape[-3], dim=-3)
        output = output.float()
        return float((whole @ values.float() - output).abs().max()), float(output.abs().max())

    def _record(
        self,
        name: str,
        weights: WeightSource,
        positions: TokenPositions | None,
        *,
        deviation: tuple[float, float] | None,
        normalised: bool = True,
        images: int | None = None,
    ) -> None:
        layout = self._book.find(name, weights, positions, running=self.stack.running, images=images)
        if layout is None or layout.reason is not None:
            reason = "its axes could not be told apart" if layout is None else layout.reason
            self.sites.add(Site(name, None, weights.shape, reason=reason))
            return
        attention = AttentionMap(
            module=name or type(self.stack.model).__name__,
            kind=layout.kind,
            source=ArrangedWeights(weights if self._gradients else _detached(weights), layout.arrangement),
            windows=layout.arrangement.windows,
            prefix_tokens=layout.prefix_tokens,
            key_prefix_tokens=layout.key_prefix_tokens,
            grid=layout.grid,
            key_grid=layout.key_grid,
            partition=layout.partition,
            image_grid=layout.image_grid,
            branch=layout.branch,
            normalised=normalised,
            precision=_precision(weights),
            hidden_rows=isinstance(weights, QueryKeyWeights) and weights.mask is not None,
            deviation=deviation,
        )
        self.sites.add(Site.of(attention))
        block = BlockTokens.around(attention) if self._norms else None
        if block is not None:
            self._blocks[name.rpartition(".")[0]] = block
        # What `reduce` saves for its backward pass is none of what an activation checkpoint around the layer saved and counts.
        with (
            torch.set_grad_enabled(self._gradients and torch.is_grad_enabled()),
            torch.autograd.graph.saved_tensors_hooks(Tensor.detach, _as_it_is),
        ):
            self._found(attention)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _detached(weights: WeightSource) -> WeightSource:
    if isinstance(weights, QueryKeyWeights):
        mask = None if weights.mask is None else weights.mask.detach()
        return replace(weights, query=weights.query.detach(), key=weights.key.detach(), mask=mask)
    assert isinstance(weights, MaterialisedWeights)
    return MaterialisedWeights(weights.weights.detach())


def _precision(weights: WeightSource) -> torch.dtype:
    return weights.weights.dtype if isinstance(weights, MaterialisedWeights) else torch.float32


def _rows_sum_to_one(weights: MaterialisedWeights) -> bool:
    sums = weights.weights.detach().float().sum(-1)
    return bool(((sums - 1).abs() <= row_tolerance(_precision(weights))).all()) and bool((weights.weights >= 0).all())


def _attention_of(layer: str) -> str:
    """Name of the attention of a `nn.TransformerEncoderLayer`."""
    return f"{layer}.self_attn".lstrip(".")
