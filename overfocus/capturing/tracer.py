"""Turns what passes by in a forward into labelled attention maps."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from overfocus.attention import AttentionMap, BlockTokens, TokenNorms, row_tolerance
from overfocus.capturing.coverage import Site, SiteLog
from overfocus.capturing.layout import Layout, is_channel_map, token_positions, unlabelled
from overfocus.capturing.layout_memory import COUNTED_MOVES, LayoutMemory, TokenPositions
from overfocus.capturing.places import NOWHERE, SEVERAL, UNKNOWN, constant, representative, without_image
from overfocus.capturing.positions import Positions
from overfocus.capturing.products import NEIGHBOURHOOD, STRETCHED, ProductTracker, Use
from overfocus.capturing.sources import (
    ArrangedWeights,
    AttendingWeights,
    FlexWeights,
    MaterialisedWeights,
    MultiheadCall,
    QueryKeyWeights,
    WeightSource,
    attending,
    for_heads,
    function_call,
    hidden_keys,
    layer_call,
    module_call,
    nested_call,
    uses_fused_path,
)
from overfocus.capturing.watching import (
    KERNEL_ARGUMENTS,
    PRODUCTS,
    SDPA_ARGUMENTS,
    CaptureMode,
    ModuleStack,
    Permuted,
    first_argument,
    in_backward,
    tensors_in,
)

# Token attention whose weights a projection gives, without a product of queries and keys (VOLO).
LOCAL_ATTENTION = frozenset({"OutlookAttention"})

_ATTENTION = frozenset({"scaled_dot_product_attention", "flex_attention", "multi_head_attention_forward", *KERNEL_ARGUMENTS})
# The functions that attention begins with; all others matter only while something is being followed.
_BEGINNINGS = frozenset({"softmax", "softmin", "gumbel_softmax", *STRETCHED, *_ATTENTION, *PRODUCTS})
_OBSERVED = _BEGINNINGS | COUNTED_MOVES
_TRANSFORMED = "not captured: it ran inside a transform of torch.func (vmap, grad), where weights cannot be read"
_GATING = "a softmax over something other than query-key products"
_UNUSED = "a softmax over query-key products, whose weights were in no product with values that capture knows"
_SOFTMAXES = frozenset({"softmax", "softmin", "gumbel_softmax"})


class Tracer:
    """Follows one model through its forwards and hands every attention map it finds to `found`."""

    def __init__(
        self,
        model: nn.Module,
        found: Callable[[AttentionMap], None],
        *,
        gradients: bool = False,
        verify: bool = False,
        norms: bool = False,
        exact: bool = True,
    ) -> None:
        self.stack = ModuleStack(model)
        self.norms: list[TokenNorms] = []
        self.without_gradient: set[str] = set()
        """Modules whose maps have no gradient though their parameters want one, since `Captured.clear`: a checkpoint hid them."""
        self._hiding: set[int] = set()
        """Running modules (by identity) in which activations that want a gradient met a forward without."""
        self._sites = SiteLog(model)
        self._found = found
        self._gradients = gradients
        self._verify = verify
        self._norms = norms
        modules = [module for _, module in self.stack.modules]
        self._held = [
            tensor
            for module in modules
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        ]
        """Parameters and buffers, kept alive: where a forward replaces one, no other tensor may take over its identity."""
        constants = frozenset(map(id, self._held))
        self._memory = LayoutMemory(model, modules, constants)
        self._products = ProductTracker(constants, self._squeezed, self.stack.awaited)
        attend = None if exact or verify else self.attend
        self.mode = CaptureMode(self.observe, attend, _OBSERVED, self._products.notes, constants)
        self._entry: str | None = None
        self._aside = {id(module) for module in modules if uses_fused_path(module)}
        self._ran: set[str] = set()
        """Multi-head modules that have run themselves since the layer around them began."""
        self._blocks: dict[str, BlockTokens] = {}
        """Modules around an attention site whose output is awaited for its norms."""
        self._gated: dict[int, tuple[str, tuple[int, ...]]] = {}
        """Softmaxes not (yet) used as attention: module and shape."""
        self._recorded: set[tuple[Any, ...]] = set()
        """Modules that gave a map in this forward, with its numbers of tokens."""
        self._layout: Layout | None = None
        """That of the last map."""
        self._pieces: dict[str, list[tuple[Tensor, TokenPositions, tuple[float, float] | None]]] = {}
        """Maps (queries, keys) of one image and head each, by module."""
        self._outputs: dict[tuple[Any, ...], tuple[Positions | None, Tensor, Tensor | None]] = {}
        """Positions of what attention returned, by those of its queries and values, which are held."""
        self._strangers = False
        self._users_error: BaseException | None = None
        self._attending: QueryKeyWeights | MaterialisedWeights | None = None
        """The weights of the call that `attend` stands in for."""

    def coverage(self) -> tuple[Site, ...]:
        """One row per attention-like module."""
        return self._sites.rows(self.stack.called, self.stack.elsewhere, self._products.other, strangers=self._strangers)

    def finish(self) -> None:
        """The block is left."""
        self._memory.finish()

    def enter(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A module is about to run; `named` are the keyword arguments of one that is called from outside."""
        try:
            with torch._C.DisableTorchFunction():
                self._enter(module, args, named)
        except Exception as error:
            self._failed(error)

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A module has run."""
        try:
            with torch._C.DisableTorchFunction():
                self._leave(module, args, kwargs, output)
        except Exception as error:
            self._failed(error)

    def observe(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """A torch function has run."""
        try:
            self._observe(func, name, args, kwargs, result)
        except Exception as error:
            self._failed(error)

    def attend(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """What `scaled_dot_product_attention` returns, from the weights that are captured; None where it is to run itself."""
        if not self.stack.running or in_backward() or torch._C._functorch.peek_interpreter_stack() is not None:
            return None
        fused = torch.nn.functional.scaled_dot_product_attention
        try:
            with torch._C.DisableTorchFunction():
                found = attending(*args, **kwargs, gradients=self._gradients)
        except Exception as error:
            self._failed(error)
            return None
        if found is None:
            return None
        self._attending, output = found
        try:
            self.observe(fused, "scaled_dot_product_attention", args, kwargs, output)
        finally:
            weights, self._attending = self._attending, None
        if not isinstance(weights, AttendingWeights):
            return output
        with torch._C.DisableTorchFunction():
            return weights.finish(lambda: fused(*args, **kwargs))

    def _failed(self, error: Exception) -> None:
        """Nothing of ours reaches the model's forward; out of memory and errors of the user's own function do."""
        if error is self._users_error or isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _out_of_memory(error):
            raise error
        text = str(error).partition("\n")[0][:200]
        reason = _TRANSFORMED if "functorch" in str(error) else f"not captured: {type(error).__name__}: {text}"
        self._sites.add(Site(self.stack.site, None, None, reason=reason))

    def _enter(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        name = self.stack.names[id(module)]
        running = self.stack.running
        if not running:
            if self._entry is None or name in ("", self._entry):
                self._entry = self._entry or name
                self._memory.begin()
                self._products.clear()
                self._pieces.clear()
                self._outputs.clear()
                self._hiding.clear()
                self._recorded.clear()
            self._memory.enter()
        if not self._memory.started:
            self._memory.start(name, args, named)
        elif self._memory.tracing and running:
            self._memory.start_later(args)
        if self._gradients and not torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_in(args)):
            self._hiding.add(id(running[-1] if running else module))
        self.mode.everything = self._memory.tracing
        self.stack.leaves = bool(self._aside)
        self.stack.enters = bool(self._aside) or self._memory.tracing or not self._memory.started or self._gradients
        if self._aside:
            self._ran.discard(_attention_of(name))
            self.mode.active(id(module) not in self._aside)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        name = self.stack.names[id(module)]
        running = self.stack.running
        try:
            if id(module) in self._aside:
                self._stood_aside(module, name, args, kwargs, output[0] if isinstance(output, tuple) else output)
            if name in self._pieces:
                self._put_together(name)
            self._products.left(name, self.stack.site, output)
            block = self._blocks.pop(name, None)
            norms = None if block is None else block.norms(output[0] if isinstance(output, (tuple, list)) else output)
            if norms is not None:
                self.norms.append(norms)
        finally:
            if self._aside:
                self.mode.active(not (running and id(running[-1]) in self._aside))
            if not running:
                self._memory.leave(output)
                self._strangers |= self._memory.strangers
                for number, (site, shape) in self._gated.items():
                    own = number in self._products.neighbourhoods
                    reason = NEIGHBOURHOOD if own else _UNUSED if number in self._products.of_products else _GATING
                    if reason == _UNUSED and (site, *sorted(shape[-2:])) in self._recorded:
                        continue  # beside the map that was used, as a return value (GroupViT)
                    self._sites.add(Site(site, "gating" if reason == _GATING else "unsupported", shape, reason=reason))
                self._gated.clear()

    def _observe(self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        memory, products = self._memory, self._products
        if name == "__iter__":  # a copy of the iterator gives the tensors that the model is going to get
            func, name, result = Tensor.unbind, "unbind", tuple(copy(result))
        running = bool(self.stack.running)
        scores = products.notes.entries
        if not running and not memory.positions.notes.entries and not scores:
            return
        if running and name in COUNTED_MOVES:
            memory.moved(name, args, kwargs, result)
        idle = not memory.tracing and not scores
        if (idle and name not in _BEGINNINGS) or torch._C._current_graph_task_id() != -1:  # as in_backward
            return
        if torch._C._functorch.peek_interpreter_stack() is not None:
            if running and (name in _ATTENTION or name in _SOFTMAXES):
                self._sites.add(Site(self.stack.site, None, None, reason=_TRANSFORMED))
            return
        with torch._C.DisableTorchFunction():
            if running and name in _ATTENTION:
                memory.positions.made(result)
                if name in KERNEL_ARGUMENTS:
                    given = dict(zip(KERNEL_ARGUMENTS[name].split(), args, strict=False)) | kwargs
                    given["attn_mask"] = given.get("attn_mask", given.get("attn_bias"))
                    self._scaled_dot_product((), given, result[0])
                elif name == "scaled_dot_product_attention":
                    self._scaled_dot_product(args, kwargs, result)
                elif name == "flex_attention":
                    self._flex(args, kwargs, result)
                else:
                    self._multihead_function(args, kwargs, result)
            elif running and name in _SOFTMAXES:
                site = self.stack.site
                number = products.softmax(first_argument(args, kwargs), result, site)
                self._gated[number] = site, tuple(result.shape)
                if memory.tracing:
                    memory.positions.follow(func, name, args, kwargs, result)
            else:
                use = products.follow(name, args, kwargs, result, self.stack.site)
                used = use is not None and running and self._used(use)
                if memory.tracing and not used:
                    memory.positions.follow(func, name, args, kwargs, result)
                elif used:
                    memory.positions.made(result)

    def _squeezed(self, tensor: Tensor, axes: Sequence[int]) -> Tensor:
        """A view without some axes along which a tensor is the same, with everything that is known of it."""
        view = tensor
        for axis in sorted(axes, reverse=True):
            view = view.select(axis, 0)
        for notes in (self._products.notes, self._memory.positions.notes):
            note = notes.get(tensor)
            if isinstance(note, Positions):
                ids = note.ids
                for axis in sorted(axes, reverse=True):
                    ids = ids.select(axis, 0)
                self._memory.positions.notes[view] = Positions(ids, note.raw)
            elif note is not None:
                self._products.notes[view] = note
        return view

    def _scaled_dot_product(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        given = dict(zip(SDPA_ARGUMENTS, args, strict=False)) | kwargs
        query, key, value = given["query"], given["key"], given["value"]
        if query.is_nested:
            nested = nested_call(query, key, given.get("scale"), bool(given.get("is_causal")))
            self._record(self.stack.site, nested, None, images=nested.shape[0])
            return
        weights = self._attending or QueryKeyWeights(
            query, key, given.get("attn_mask"), given.get("scale"), bool(given.get("is_causal"))
        )
        positions = self._three_positions(query, key, value)
        deviation = self._deviation(weights, value, result)
        if query.ndim == 2:
            self._piece(weights.rows(0, len(query)), positions or (None, None), deviation)
            return
        self._record(
            self.stack.site,
            weights,
            positions,
            deviation=deviation,
            computed_in=query.dtype,
            hidden_rows=given.get("attn_mask") is not None,
        )
        if positions is not None:
            self._attended(positions, Permuted(result, tuple((axis,) for axis in range(result.ndim))))

    def _flex(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        names = "query key value score_mod block_mask scale kernel_options score_mod_other_buffers mask_mod_other_buffers".split()
        given = dict(zip(names, args, strict=False)) | kwargs
        query, key, value, block_mask = given["query"], given["key"], given["value"], given["block_mask"]
        weights = FlexWeights(
            query,
            key,
            given["scale"],
            given["score_mod"],
            block_mask[-1],
            given.get("score_mod_other_buffers") or (),
            given.get("mask_mod_other_buffers") or (),
        )
        output = result[0] if isinstance(result, tuple) else result
        positions = self._three_positions(query, key, value)
        self._record(self.stack.site, weights, positions, deviation=self._deviation(weights, value, output), hidden_rows=True)
        if positions is not None:
            self._attended(positions, Permuted(output, tuple((axis,) for axis in range(output.ndim))))

    def _three_positions(self, query: Tensor, key: Tensor, value: Tensor) -> TokenPositions | None:
        """Positions of the queries, and of the values or keys, in a forward that is traced."""
        if not self._memory.tracing:
            return None
        queries, keys, values = (self._ids(tensor) for tensor in (query, key, value))
        return queries, _of_keys(keys, values)

    def _piece(self, weights: Tensor, positions: TokenPositions, deviation: tuple[float, float] | None) -> None:
        """A map of one image and head, until its module has run and the others are there."""
        self._pieces.setdefault(self.stack.site, []).append((weights, positions, deviation))
        self.stack.awaited.add(self.stack.site)

    def _ids(self, tensor: Any) -> Tensor | None:
        known = self._memory.positions.get(tensor)
        return None if known is None else known.ids

    def _used(self, use: Use) -> bool:
        """A product of weights and values; False where the weights are not attention weights."""
        local = type(self.stack.running[-1]).__name__ in LOCAL_ATTENTION
        if not local and not use.weighting.from_product:
            return False
        for number in use.weighting.softmaxes:
            self._gated.pop(number, None)
        weights = MaterialisedWeights(use.weights.tensor)
        positions: TokenPositions = None, None
        if self._memory.tracing:
            known = self._ids(use.values.original)
            values = None if known is None else use.values.like(known)
            if values is not None and values.ndim == len(weights.shape) - 1:
                values = values.unsqueeze(-1)
            queries, keys = (values, values) if local and use.weighting.product is None else self._places_of(use, weights.shape)
            keys = _of_keys(keys, values)
            positions = queries, torch.full_like(keys, UNKNOWN) if use.weighting.keys_moved and keys is not None else keys
        deviation = self._deviation(weights, use.values.tensor, use.output.tensor)
        if weights.weights.ndim == 2:
            self._piece(weights.weights, positions, deviation)
            return True
        normalised, hidden_rows = self._memory.judge(self.stack.site, weights, _row_sums, changed=use.weighting.changed)
        self._record(
            self.stack.site,
            weights,
            positions,
            deviation=deviation,
            computed_in=use.output.original.dtype,
            normalised=normalised,
            undivided=use.weighting.stage == "exponentials" and not normalised,
            hidden_rows=hidden_rows or use.weighting.masked,
            masked=use.weighting.masked,
        )
        if self._memory.tracing and not local:
            self._attended(positions, use.output)
        return True

    def _places_of(self, use: Use, shape: tuple[int, ...]) -> TokenPositions:
        """Positions of the queries and keys of a map: of the two sides of the product that gave the scores.

        Where several products did, those of the queries are the weights' own, as a product leaves them to its left side's rows.
        """
        known = self._ids(use.weights.original)
        own = None if known is None else use.weights.like(known)
        rows = own is not None and constant(own, -1)
        columns = own is not None and constant(own, -2)
        product = use.weighting.product
        if product is None:
            return (own if rows else _unknown(shape, use.weights.original)), None
        left, right = (self._memory.positions.operand(product, side) for side in (0, 1))
        swapped = False  # queries on the right
        if own is None:
            swapped = left is not None and left.shape[-2] == shape[-1] != shape[-2]
        elif left is not None and constant(left, -1):
            swapped = columns and not rows
        elif right is not None and constant(right, -1):
            swapped = rows and not columns
        queries, keys = (
            None if ids is None else _with_tokens(ids, shape, place)
            for place, ids in zip((-2, -1), (right, left) if swapped else (left, right), strict=True)
        )
        if queries is None and rows and own is not None:  # other axes in front than the scores had
            queries = own
        elif queries is None and (left if not swapped else right) is not None:
            queries = _unknown(shape, use.weights.original)
        return queries, keys

    def _put_together(self, name: str) -> None:
        """Maps of one image and head each, computed one after the other, are one map."""
        pieces = self._pieces.pop(name)
        shapes = {tuple(weights.shape) for weights, _, _ in pieces}
        if len(shapes) > 1:
            raise ValueError("maps of single images or heads differ in size")
        weights = MaterialisedWeights(torch.stack([weights for weights, _, _ in pieces]))
        sides = []
        for side in (0, 1):
            ids = [positions[side] for _, positions, _ in pieces]
            known = [item for item in ids if item is not None]
            sides.append(torch.stack([item[..., :1] for item in known]) if len(known) == len(ids) else None)
        deviations = [deviation for _, _, deviation in pieces if deviation is not None]
        deviation = tuple(map(max, zip(*deviations, strict=True))) if deviations else None
        normalised, hidden_rows = _row_sums(weights)
        self._record(name, weights, (sides[0], sides[1]), deviation=deviation, normalised=normalised, hidden_rows=hidden_rows)

    def _attended(self, positions: TokenPositions, output: Permuted) -> None:
        """Tokens stay where their query was; channels that attend channels leave every token where it was."""
        queries, values = positions
        if queries is None or not output.simple:
            return
        anew = self._layout is not None and self._layout.kind == "pooled" and self._layout.grid is not None
        key = id(queries), id(values), output.original.shape, output.axes, anew
        if key not in self._outputs:  # blocks repeat each other's
            shape = tuple(output.original.shape[axis] for axis in output.order)
            # every second row, say, is a grid of its own from here
            placed = self._memory.positions.numbered_anew(queries) if anew else queries
            ids = placed if values is not None and is_channel_map(values) else representative(placed, -1)
            known = None
            if shape[:-1] == ids.shape[:-1] and ids.shape[-1] in (1, shape[-1]):
                restored = [output.order.index(axis) for axis in range(len(shape))]
                known = Positions(ids.expand(shape).permute(restored))
            self._outputs[key] = known, queries, values
        known = self._outputs[key][0]
        if known is not None:
            self._memory.positions.notes[output.original] = known

    def _stood_aside(self, module: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """A module has run that hides its attention."""
        source = args[0] if args else kwargs.get("query", kwargs.get("src"))
        try:
            if isinstance(module, nn.MultiheadAttention):
                self._ran.add(name)
                call = module_call(module, args, kwargs)
                swapped = not module.batch_first and result.ndim == 3
                key = args[1] if len(args) > 1 else kwargs.get("key")
                self._multihead(name, call, result.transpose(0, 1) if swapped else result, (source, key), swapped=swapped)
            elif isinstance(module, nn.TransformerEncoderLayer) and _attention_of(name) not in self._ran:
                call, expected = layer_call(module, args, kwargs)
                swapped = not module.self_attn.batch_first and result.ndim == 3
                shown = expected.transpose(0, 1) if swapped else expected
                self._multihead(
                    _attention_of(name),
                    call,
                    result.transpose(0, 1) if swapped else result,
                    (source, source),
                    shown,
                    swapped=swapped,
                )
        finally:
            if self._memory.tracing and isinstance(source, Tensor):
                self._memory.positions.copy(source, result)
                self._memory.positions.made(result)

    def _multihead_function(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        call, query, key = function_call(args, kwargs)
        output = result[0]
        swapped = output.ndim == 3  # (tokens, batch, channels)
        self._multihead(self.stack.site, call, output.transpose(0, 1) if swapped else output, (query, key), swapped=swapped)
        if self._memory.tracing:
            self._memory.positions.copy(query, output)

    def _multihead(
        self,
        name: str,
        call: MultiheadCall,
        result: Tensor,
        inputs: tuple[Any, Any],
        expected: Tensor | None = None,
        *,
        swapped: bool = False,
    ) -> None:
        """Attention of multi-head modules; `expected` is what the module returns for it where that is more than attention."""
        deviation = None
        if self._verify:
            found = result.to_padded_tensor(0.0) if result.is_nested else result
            expected = call.attended() if expected is None else expected
            difference = (expected.reshape(found.shape) - found).masked_fill(found == 0, 0)
            deviation = float(difference.abs().max()), float(found.abs().max())
        positions = None
        if self._memory.tracing:
            queries, keys = (self._per_head(self._ids(tensor), call, swapped=swapped) for tensor in inputs)
            if keys is not None:  # torch adds keys of its own behind the model's
                keys = nn.functional.pad(keys, (0, 0, 0, call.weights.shape[-1] - keys.shape[-2]), value=NOWHERE)
            positions = queries, keys
        self._record(
            name,
            call.weights,
            positions,
            deviation=deviation,
            images=call.weights.shape[0],
            crossed=inputs[0] is not inputs[1],
            note="padding of nested tensors counts in the metrics" if result.is_nested else None,
        )

    @staticmethod
    def _per_head(ids: Tensor | None, call: MultiheadCall, *, swapped: bool) -> Tensor | None:
        if ids is None or ids.ndim != 3:
            return None
        ids = ids.transpose(0, 1) if swapped else ids
        return ids[:, None] if ids.shape[0] == call.weights.shape[0] else None

    @torch.no_grad()
    def _deviation(self, weights: WeightSource, values: Tensor, output: Tensor) -> tuple[float, float] | None:
        if not self._verify or not all(weights.shape):
            return None
        whole = weights.rows(0, weights.shape[-2])
        if values.ndim == whole.ndim:
            values = for_heads(values, whole)
        output = output.float()
        return float((whole @ values.float() - output).abs().max()), float(output.abs().max())

    def _record(
        self,
        name: str,
        weights: WeightSource,
        positions: TokenPositions | None,
        *,
        deviation: tuple[float, float] | None = None,
        normalised: bool = True,
        hidden_rows: bool = False,
        masked: bool = False,
        images: int | None = None,
        crossed: bool = False,
        computed_in: torch.dtype | None = None,
        undivided: bool = False,
        note: str | None = None,
    ) -> None:
        if not all(weights.shape):
            self._sites.add(Site(name, None, weights.shape, reason="not captured: there was nothing to attend to"))
            return
        layout = self._memory.find(name, weights, positions, running=self.stack.running, images=images, crossed=crossed)
        if undivided and layout.kind == "pooled":
            layout = unlabelled(
                weights.shape, "exponentials that were not divided by their sum, perhaps over only part of the keys"
            )
        self._layout = layout
        self._recorded.add((name, *sorted(weights.shape[-2:])))
        layout, padding = _without_padding(layout, weights, masked=masked)
        attention = AttentionMap(
            module=name or type(self.stack.model).__name__,
            kind=layout.kind,
            source=ArrangedWeights(weights if self._gradients else weights.detached(), layout.arrangement),
            windows=layout.arrangement.windows,
            prefix_tokens=layout.prefix_tokens,
            key_prefix_tokens=layout.key_prefix_tokens,
            grid=layout.grid,
            key_grid=layout.key_grid,
            partition=layout.partition,
            image_grid=layout.image_grid,
            branch=layout.branch,
            frames=layout.frames,
            normalised=normalised,
            precision=weights.weights.dtype if isinstance(weights, MaterialisedWeights) else torch.float32,
            computed_in=computed_in or weights.tensors[0].dtype,
            hidden_rows=hidden_rows or (isinstance(weights, QueryKeyWeights) and weights.mask is not None),
            deviation=deviation,
        )
        notes = [text for text in (layout.note, padding or note) if text]
        self._sites.add(Site.of(attention, "; ".join(notes) or None))
        if self._gradients and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in weights.tensors)):
            self._note_missing_gradient(name)
        block = BlockTokens.around(attention) if self._norms else None
        if block is not None:
            around = name.rpartition(".")[0]
            self._blocks[around] = block
            self.stack.awaited.add(around)
        # What `reduce` saves for its backward pass is not among what an activation checkpoint around the layer saved and counts.
        with (
            torch.set_grad_enabled(self._gradients and torch.is_grad_enabled()),
            torch.autograd.graph.saved_tensors_hooks(Tensor.detach, _as_it_is),
        ):
            try:
                self._found(attention)
            except BaseException as error:
                self._users_error = error
                raise

    def _note_missing_gradient(self, name: str) -> None:
        """Note a map without gradient where one is wanted: by its own parameters, or by what a checkpoint was given."""
        module = self.stack.model.get_submodule(name)
        hidden = not torch.is_grad_enabled() and any(id(running) in self._hiding for running in self.stack.running)
        if hidden or any(parameter.requires_grad for parameter in module.parameters()):
            self.without_gradient.add(name or type(self.stack.model).__name__)


def _of_keys(keys: Tensor | None, values: Tensor | None) -> Tensor | None:
    """Positions of the keys of a map, which its values have too; unknown where the values stand in another order."""
    if values is None or keys is None:
        return values if keys is None else keys
    if keys.data_ptr() == values.data_ptr() and keys.shape == values.shape and keys.stride() == values.stride():
        return values
    if is_channel_map(values):
        return values
    try:
        places, others = (without_image(token_positions(ids)) for ids in (keys, values))
        differ = (places != others) & (places > 0) & (others > 0)
        sums = (places == SEVERAL) & (others > 0)
    except RuntimeError:  # other axes in front
        return values
    if bool(sums.any()):
        return torch.full_like(values, SEVERAL)
    return torch.full_like(values, UNKNOWN) if bool(differ.any()) else values


def _with_tokens(ids: Tensor, shape: tuple[int, ...], axis: int) -> Tensor | None:
    """Positions (…, tokens, width) of one side of a map, two axes of tokens as one; None where they are of other tokens."""
    if ids.ndim > len(shape):
        ids = ids.flatten(len(shape) - 2, -2)
    return ids if ids.shape[-2] == shape[axis] else None


def _unknown(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.full((1,) * len(shape), UNKNOWN, device=like.device).expand(*shape[:-1], 1)


def _without_padding(layout: Layout, weights: WeightSource, *, masked: bool) -> tuple[Layout, str | None]:
    """The layout without the keys that a mask hides in every image, and what to say where images differ in them."""
    if layout.kind in ("window", "channel", "unlabelled"):
        return layout, None
    hidden = hidden_keys(weights, masked=masked)
    if hidden is None:
        return layout, None
    arrangement = layout.arrangement
    rows = replace(arrangement, key_order=None).fold(hidden.unsqueeze(-2))[:, :, 0].all(1)
    queries, keys = weights.shape[-2:]
    order = torch.arange(keys) if arrangement.key_order is None else arrangement.key_order.cpu()
    rows = rows.cpu()[:, order]
    if not bool(rows.any()) or bool(rows.all()):
        return layout, None
    if bool((rows != rows[:1]).any()):
        return layout, "padding counts in the metrics: it differs between the images of the batch"
    kept = ~rows[0]
    same = layout.kind == "global" and queries == keys
    dropped = replace(arrangement, key_order=order[kept], query_order=order[kept] if same else arrangement.query_order)
    key_prefix = int(kept[: layout.key_prefix_tokens].sum())
    return replace(
        layout,
        arrangement=dropped,
        prefix_tokens=key_prefix if same else layout.prefix_tokens,
        key_prefix_tokens=key_prefix,
        grid=None if same or layout.kind == "class" else layout.grid,
        key_grid=None,
        image_grid=None,
        frames=1,
    ), "padding is left out"


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _row_sums(weights: MaterialisedWeights) -> tuple[bool, bool]:
    """Whether rows sum to 1, and whether some are empty instead."""
    if not weights.weights.numel():
        return True, False
    values = weights.weights.detach()
    sums = values.sum(-1, dtype=torch.float32)
    if values.device.type == "cpu":  # most are as a softmax leaves them
        lowest, highest = sums.aminmax()
        if max(1 - float(lowest), float(highest) - 1) <= row_tolerance(values.dtype) and float(values.amin()) >= 0:
            return True, False
    if not bool(torch.isfinite(sums).all()):
        return True, False  # said when the map is read
    empty = sums == 0
    right = ((sums - 1).abs() <= row_tolerance(values.dtype)) | empty
    return bool(right.all()) and bool((values >= 0).all()) and not bool(empty.all()), bool(empty.any())


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "alloc" in str(error) and "memory" in str(error)


def _attention_of(layer: str) -> str:
    """Name of the attention of a `nn.TransformerEncoderLayer`."""
    return f"{layer}.self_attn".lstrip(".")
