"""Turns what passes by in a forward into labelled attention maps."""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from overfocus.attention import AttentionMap
from overfocus.capturing.coverage import Site, SiteLog
from overfocus.capturing.layout import Layout, channel_axis, guess_layout, infer_layout, token_positions
from overfocus.capturing.mode import CaptureMode
from overfocus.capturing.modules import ModuleStack, in_backward
from overfocus.capturing.multihead import MultiheadCall, function_call, layer_call, module_call, stands_aside
from overfocus.capturing.positions import Positions, PositionTracker, function_name, representative, tensors_in
from overfocus.capturing.products import Permuted, ProductTracker, Use
from overfocus.capturing.sources import ArrangedWeights, Arrangement, MaterialisedWeights, QueryKeyWeights, WeightSource

Signature = tuple[Any, ...]
Layouts = dict[tuple[str, int], Layout]
_LAYOUTS: weakref.WeakKeyDictionary[nn.Module, dict[Signature, Layouts]] = weakref.WeakKeyDictionary()

# Token attention whose weights a projection gives, without a product of queries and keys (VOLO).
LOCAL_ATTENTION = frozenset({"OutlookAttention"})
_SHARPER_ROWS = 1e-3


class Recorder:
    """Follows one model through its forwards and hands every attention map it finds to `found`."""

    def __init__(
        self, model: nn.Module, found: Callable[[AttentionMap], None], *, gradients: bool = False, verify: bool = False
    ) -> None:
        self.stack = ModuleStack(model)
        self.mode = CaptureMode(self.observe)
        self.sites = SiteLog(model)
        self._found = found
        self._gradients = gradients
        self._verify = verify
        self._positions = PositionTracker()
        self._products = ProductTracker()
        self._known = _LAYOUTS.setdefault(model, {})
        self._entry: str | None = None
        self._started = False
        self._tracing = False
        self._signature: Signature = ()
        self._occurrences: Counter[str] = Counter()
        self._images = 1
        self._image_size: tuple[int, int] | None = None
        self._gated: dict[int, tuple[str, tuple[int, ...]]] = {}
        """Softmaxes not (yet) used as attention: module and shape."""

    # --- modules -------------------------------------------------------------------------------------------------

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module is about to run."""
        name = self.stack.names[id(module)]
        if not self.stack.running and (self._entry is None or name in ("", self._entry)):
            self._entry = self._entry or name
            self._begin()
        if not self._started:
            packed = next((item for item in args if isinstance(item, dict) and "patch_coord" in item), None)
            if packed is None:
                self._start(name, [tensor for tensor in tensors_in(args) if tensor.ndim >= 2])
            else:
                self._start_packed(packed)
        if stands_aside(module):
            self.mode.active(False)
        elif self.stack.running and stands_aside(self.stack.running[-1]):
            self.mode.active(True)

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A module has run."""
        name = self.stack.names[id(module)]
        if stands_aside(module):
            self._left_aside(module, name, args, kwargs, output)
        self._products.left(name)
        running = self.stack.running
        self.mode.active(not (running and stands_aside(running[-1])))
        if not running:
            self._finish_gatings()

    def _begin(self) -> None:
        self._positions.clear()
        self._products.clear()
        self._occurrences.clear()
        self._started = False

    def _start(self, name: str, tensors: list[Tensor]) -> None:
        if not tensors:
            return
        self._started = True
        first = tensors[0]
        images = [tensor for tensor in tensors if tensor.ndim == 4]
        self._image_size = (int(images[0].shape[2]), int(images[0].shape[3])) if images else None
        self._images = int(first.shape[0])
        self._signature = (name, self._images == 1, *(tuple(tensor.shape[1:]) for tensor in tensors))
        self._tracing = self._signature not in self._known
        if self._tracing:
            self._known[self._signature] = {}
            for tensor in tensors:
                self._positions.start(tensor)

    def _start_packed(self, packed: dict[str, Tensor]) -> None:
        """Patches packed with their places: every batch has sizes and padding of its own, so no layout is kept."""
        self._started = self._tracing = True
        self._images, self._image_size = packed["patches"].shape[0], None
        self._signature = ("packed",)
        self._known[self._signature] = {}
        self._positions.start_patches(packed["patches"], packed["patch_coord"], packed.get("patch_valid"))

    def _left_aside(self, module: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A module during whose call the mode stood aside."""
        result = output[0] if isinstance(output, tuple) else output
        if isinstance(module, nn.MultiheadAttention):
            call = module_call(module, args, kwargs)
            expected = call.attended() if self._verify else None
            if expected is not None and not module.batch_first and result.ndim == 3:
                expected = expected.transpose(0, 1)
            self._multihead(name, call, expected, result, args)
        elif isinstance(module, nn.TransformerEncoderLayer) and name + ".self_attn" not in self.stack.called:
            call, expected = layer_call(module, args, kwargs)
            self._multihead(f"{name}.self_attn".lstrip("."), call, expected if self._verify else None, result, args)
        if self._tracing and args:
            self._positions.copy(args[0], result)

    def _multihead(self, name: str, call: MultiheadCall, expected: Tensor | None, result: Tensor, args: tuple[Any, ...]) -> None:
        deviation = None
        if expected is not None:
            padded = result.to_padded_tensor(0.0) if result.is_nested else result
            difference = (expected.reshape(padded.shape) - padded).masked_fill(padded == 0, 0)
            deviation = float(difference.abs().max()), float(padded.abs().max())
        positions = [self._positions.get(tensor) for tensor in args[:3]] if self._tracing else []
        queries, keys = (positions[0], positions[1]) if len(positions) == 3 else (None, None)
        layout = None
        if self._tracing and keys is not None and keys.ids.ndim == 3 and call.weights.shape[0] == keys.ids.shape[0]:
            layout = infer_layout(
                call.weights.shape,
                None if queries is None else token_positions(queries, -1)[:, None],  # type: ignore[index]
                token_positions(keys, -1)[:, None],  # type: ignore[index]
                (queries.grid if queries is not None else None, keys.grid),
            )
        self._record(
            name, call.weights, layout, deviation=deviation, hidden=call.weights.mask is not None, images=call.weights.shape[0]
        )

    # --- functions -----------------------------------------------------------------------------------------------

    def observe(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """A torch function has run."""
        if not self.stack.running and not (len(self._positions.notes) or len(self._products.notes)):
            return
        if in_backward():
            return
        with torch._C.DisableTorchFunction():
            name = function_name(func)
            if name == "scaled_dot_product_attention" and self.stack.running:
                self._scaled_dot_product(args, kwargs, result)
                return
            if name == "multi_head_attention_forward" and self.stack.running:
                call = function_call(args, kwargs)
                expected = call.attended().transpose(0, 1) if self._verify else None
                self._multihead(self._site(), call, expected, result[0], args)
                return
            if name == "softmax" and self.stack.running:
                number = self._products.softmax(args[0] if args else kwargs["input"], result, self._site())
                self._gated[number] = (self._site(), tuple(result.shape))
            else:
                use = self._products.follow(func, args, kwargs, result, self._site())
                if use is not None and self.stack.running and self._used(use):
                    return
            if self._tracing:
                self._positions.follow(func, args, kwargs, result)

    def _scaled_dot_product(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale"), args, strict=False)) | kwargs
        query, key, value = given["query"], given["key"], given["value"]
        weights = QueryKeyWeights(query, key, given.get("attn_mask"), given.get("scale"), bool(given.get("is_causal", False)))
        positions = None
        if self._tracing:
            positions = [self._positions.get(tensor) for tensor in (query, key, value)]
        deviation = self._deviation(weights, value, result) if self._verify else None
        self._attention(weights, positions, deviation, hidden=weights.mask is not None)
        if positions is not None and positions[0] is not None:
            output = Permuted(result, tuple(range(result.ndim)))
            self._attended(positions[0], output, channels=positions[2] is not None and channel_axis(positions[2]))

    def _used(self, use: Use) -> bool:
        """A product of weights and values; False where the weights are none of attention."""
        local = type(self.stack.running[-1]).__name__ in LOCAL_ATTENTION
        if not local and not use.weighting.from_product:
            return False
        for number in use.weighting.softmaxes:
            self._gated.pop(number, None)
        positions = None
        if self._tracing:
            values = self._permuted(use.values)
            product = use.weighting.product
            queries = values if local else None
            if product is not None:
                queries = self._positions.operand(product, 0)
            positions = [queries, None, values]
        weights = MaterialisedWeights(use.weights.tensor)
        deviation = self._deviation(weights, use.values.tensor, use.output.tensor) if self._verify else None
        normalised = not use.weighting.changed or _rows_sum_to_one(weights.weights)
        self._attention(weights, positions, deviation, normalised=normalised)
        if positions is not None and positions[0] is not None and not local:
            self._attended(positions[0], use.output, channels=positions[2] is not None and channel_axis(positions[2]))
        return True

    def _permuted(self, tensor: Permuted) -> Positions | None:
        known = self._positions.get(tensor.original)
        return None if known is None else Positions(known.ids.permute(tensor.axes), known.grid)

    def _attended(self, queries: Positions, output: Permuted, *, channels: bool) -> None:
        """Tokens stay where their query was; channels that attend channels leave every token where it was."""
        ids = queries.ids
        shape = tuple(output.original.shape[axis] for axis in output.axes)
        if not channels:
            ids = representative(ids, -1)
        if shape[:-1] == ids.shape[:-1] and ids.shape[-1] in (1, shape[-1]):
            restored = [output.axes.index(axis) for axis in range(len(shape))]
            self._positions.notes[output.original] = Positions(ids.expand(shape).permute(restored), queries.grid)

    def _deviation(self, weights: WeightSource, values: Tensor, output: Tensor) -> tuple[float, float]:
        whole = weights.rows(0, weights.shape[-2])
        if values.shape[-3] != whole.shape[-3] and values.ndim == whole.ndim and values.shape[-3] > 1:
            values = values.repeat_interleave(whole.shape[-3] // values.shape[-3], dim=-3)
        output = output.float()
        return float((whole @ values.float() - output).abs().max()), float(output.abs().max())

    # --- maps ----------------------------------------------------------------------------------------------------

    def _site(self) -> str:
        """Name of the module that attends: the running one, or the one that holds it where it has no parameters."""
        running = self.stack.running
        holder = next((module for module in reversed(running) if next(module.parameters(), None) is not None), None)
        return self.stack.names[id(holder if holder is not None else running[0])] if running else ""

    def _attention(
        self,
        weights: WeightSource,
        positions: list[Positions | None] | None,
        deviation: tuple[float, float] | None,
        *,
        normalised: bool = True,
        hidden: bool = False,
    ) -> None:
        name = self._site()
        layout = None
        if positions is not None:
            layout = self._infer(weights.shape, *positions)
        self._record(name, weights, layout, deviation=deviation, normalised=normalised, hidden=hidden)

    def _infer(
        self, shape: tuple[int, ...], queries: Positions | None, keys: Positions | None, values: Positions | None
    ) -> Layout | None:
        if values is not None and channel_axis(values):
            return self._channel_layout(shape)
        seen = values if values is not None else keys
        if seen is None:
            return None
        query_ids = None
        if queries is not None:
            query_ids = token_positions(queries, -1)
        key_ids = token_positions(seen, -1)
        assert key_ids is not None
        if key_ids.ndim == len(shape) - 1 and len(shape) > 2 and key_ids.shape[-2] not in (1, shape[-3]):
            key_ids = key_ids.repeat_interleave(shape[-3] // key_ids.shape[-2], dim=-2)
        try:
            return infer_layout(shape, query_ids, key_ids, (queries.grid if queries is not None else seen.grid, seen.grid))
        except RuntimeError:
            return None

    def _channel_layout(self, shape: tuple[int, ...]) -> Layout:
        leading = shape[:-2]
        axes = (("image",), *((("head",),) * (len(leading) - 1)))
        return Layout("channel", Arrangement(axes, ((-1,), *((size,) for size in leading[1:]))))

    def _record(
        self,
        name: str,
        weights: WeightSource,
        layout: Layout | None,
        *,
        deviation: tuple[float, float] | None = None,
        normalised: bool = True,
        hidden: bool = False,
        images: int | None = None,
    ) -> None:
        occurrence = self._occurrences[name]
        self._occurrences[name] += 1
        layouts = self._known.get(self._signature, {})
        if layout is None and not self._tracing:
            layout = layouts.get((name, occurrence))
        if layout is None:
            layout = guess_layout(
                weights.shape,
                images or self._images,
                self._attribute("num_heads"),
                self._attribute("num_prefix_tokens"),
                self._image_size,
            )
        if layout is None:
            self.sites.add(Site(name, None, tuple(weights.shape), reason="its axes could not be told apart"))
            return
        if layout.reason is not None:
            self.sites.add(Site(name, None, tuple(weights.shape), reason=layout.reason))
            return
        layouts[name, occurrence] = layout
        if not self._gradients and isinstance(weights, QueryKeyWeights):
            weights = QueryKeyWeights(
                weights.query.detach(),
                weights.key.detach(),
                None if weights.mask is None else weights.mask.detach(),
                weights.scale,
                weights.is_causal,
            )
        elif not self._gradients and isinstance(weights, MaterialisedWeights):
            weights = MaterialisedWeights(weights.weights.detach())
        attention = AttentionMap(
            module=name or type(self.stack.model).__name__,
            kind=layout.kind,
            source=ArrangedWeights(weights, layout.arrangement),
            windows=layout.arrangement.windows,
            prefix_tokens=layout.prefix_tokens,
            key_prefix_tokens=layout.key_prefix_tokens,
            grid=layout.grid,
            key_grid=layout.key_grid,
            partition=layout.partition,
            image_grid=layout.image_grid,
            branch=layout.branch,
            normalised=normalised,
            hidden_rows=hidden,
            deviation=deviation,
        )
        self.sites.add(Site.of(attention))
        with torch.set_grad_enabled(self._gradients and torch.is_grad_enabled()):
            self._found(attention)

    def _attribute(self, name: str) -> int | None:
        for module in reversed(self.stack.running):
            value = getattr(module, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        value = getattr(self.stack.model, name, None)
        return value if isinstance(value, int) else None

    def _finish_gatings(self) -> None:
        for name, shape in self._gated.values():
            self.sites.add(Site(name, "gating", shape, reason="a softmax over something else than products of queries and keys"))
        self._gated.clear()


def _rows_sum_to_one(weights: Tensor) -> bool:
    sums = weights.detach().float().sum(-1)
    return bool(((sums - 1).abs() <= _SHARPER_ROWS).all()) and bool((weights >= 0).all())
