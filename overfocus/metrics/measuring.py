"""Every metric of captured maps from one set of sums: of one map, or of all maps of a forward together.

While a layer runs, only what has to pass over its map is done; all that follows from the sums runs once for all layers of one
size when the forward has ended. Checks are values on the device, read with the results: nothing waits for an accelerator before.
"""

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from overfocus.attention import TOKEN_KINDS, AttentionMap, TokenNorms
from overfocus.metrics.blocks import BlockSizes, Gathering, GroupSums, block_sizes, gather_sums, row_shares, sum_waiting
from overfocus.metrics.catalogue import KEYWORDS, TOP_FRACTION, Metric, select_metrics, top_count
from overfocus.metrics.formulas import METRICS, STABILITY, norm_metrics
from overfocus.metrics.received import image_profiles
from overfocus.metrics.sums import MapSums, PairSums
from overfocus.metrics.tokens import TokenGroup, faults, raise_faults, token_groups
from overfocus.settings import shown, typed

Array = np.ndarray[Any, Any]
Reference = Sequence[int] | Int[Tensor, "batch"]


@typed(ValueError)
@torch.no_grad()
def measure(
    attention: AttentionMap,
    *,
    metrics: Sequence[str | Callable[..., Any] | Metric] | None = None,
    top_fraction: float = TOP_FRACTION,
    per_head: bool = False,
    reference: Reference | None = None,
    chunk_size: int | None = None,
    profiles: bool = False,
    memory: int | None = None,
) -> dict[str, Tensor]:
    """Every metric that fits the kind of a map, by name, sharing the sums; equal to the functions of `METRICS` within 1e-5.

    Values are (batch,), or (batch, heads) with `per_head`; the mean over the windows of an image where it has several, those
    with an undefined value left out. Maps of channels give an empty dict.

    Args:
        attention: what `capture` hands to `reduce=`.
        metrics: names, functions or rows of the catalogue; None for all built-in ones.
        top_fraction: f of k = max(1, round(f·N)).
        per_head: measure each head instead of their mean.
        reference: index in the batch of each image's clean counterpart; adds the metrics of `STABILITY`, NaN where an image is
            its own counterpart.
        chunk_size: queries per block; None takes small maps whole and larger ones in blocks, so that peak memory grows with
            keys × block.
        profiles: add "received", the received attention of the mean over heads on the image's grid, (batch, tokens);
            absent where it is unknown from where the windows came.
        memory: bytes to work with on an accelerator; None for a quarter of what is free.

    Raises:
        CaptureError: NaN, negative weights, or rows that do not sum to 1; names the module.
        ValueError: `reference` does not point into the batch, or a metric is unknown.
    """
    measurement = ForwardMeasurement(
        metrics, top_fraction=top_fraction, per_head=per_head, profiles=profiles, chunk_size=chunk_size, memory=memory
    )
    measurement.begin(reference)
    if not measurement.add(attention):
        return {}
    (together,) = measurement.evaluate()
    together.check(together.faults.cpu())
    values = dict(zip(together.names, together.values[:, 0], strict=True)) | together.layers[0].custom
    if not per_head:
        values = {name: value[..., 0] for name, value in values.items()}
    if together.received is not None:
        values["received"] = together.received[0]
    return values


@dataclass(eq=False)
class LayerValues:
    """What was measured on one map, on the host."""

    module: str
    kind: str
    values: Float[np.ndarray, "batch heads metrics"]
    """The metrics asked for, in their order; one "head" unless measured per head; NaN where undefined or not of this kind."""
    received: Float[np.ndarray, "batch tokens"] | None
    """Received attention on the image's grid."""
    image_grid: tuple[int, int] | None


class ForwardMeasurement:
    """Measures the maps of one forward after the other.

        measurement = ForwardMeasurement(top_fraction=0.05)
        with capture(model, reduce=measurement.add, norms=True) as captured:
            measurement.begin(reference)
            model(images)
            layers = measurement.finish(captured.norms)

    `add` does what passes over a map; `finish` evaluates all metrics, reads the results from the device in one transfer (the
    only wait of a forward) and raises where a map is no attention.
    """

    def __init__(
        self,
        metrics: Sequence[str | Callable[..., Any] | Metric] | None = None,
        *,
        top_fraction: float = TOP_FRACTION,
        per_head: bool = False,
        profiles: bool = True,
        chunk_size: int | None = None,
        memory: int | None = None,
    ) -> None:
        """Arguments as those of `measure`."""
        self.metrics = select_metrics(metrics)
        self.per_head = per_head
        self.profiles = profiles
        self._top_fraction = top_fraction
        self._chunk_size = chunk_size
        self._memory = memory
        self._sizes: dict[torch.device, BlockSizes] = {}
        self._reference: tuple[int, ...] | None = None
        self._layers: list[_Layer] = []
        self._waiting: dict[Any, list[tuple[GroupSums, int]]] = {}
        self._waiting_bytes = 0
        top_count(1, top_fraction)
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}; leave it out to let it be chosen")

    @property
    def names(self) -> list[str]:
        """The metrics in the order of `LayerValues.values`."""
        return [metric.name for metric in self.metrics]

    def begin(self, reference: Reference | None = None) -> None:
        """A forward begins; `reference` is the index of each image's clean counterpart, on the host. Drops what was added."""
        try:
            listed = reference.tolist() if isinstance(reference, Tensor) else reference
            self._reference = None if listed is None else tuple(map(operator.index, listed))
        except (TypeError, RuntimeError):  # a tensor without values, of fractions, or with no axis
            raise ValueError(f"reference must be a list of whole numbers, got {shown(reference)}") from None
        self._layers.clear()
        self._waiting.clear()
        self._waiting_bytes = 0

    @torch.no_grad()
    def add(self, attention: AttentionMap) -> bool:
        """Gather the sums of one map; False for maps of channels, which have none.

        Raises:
            CaptureError: the map has no patch tokens.
            ValueError: the reference does not fit the batch, or a custom metric returned something else than a value each.
        """
        if attention.kind not in TOKEN_KINDS:
            return False
        reference = self._reference
        if reference is not None and (
            len(reference) != attention.batch or not all(0 <= image < attention.batch for image in reference)
        ):
            raise ValueError(
                f"expected reference to hold the index of the clean counterpart of each of {attention.batch} images, "
                f"got {list(reference)}"
            )
        device = attention.device
        if device not in self._sizes:
            self._sizes[device] = block_sizes(device, self._memory)
        fitting = [metric for metric in self.metrics if attention.kind in metric.kinds]
        asked = Gathering(
            self._top_fraction,
            self.per_head,
            reference,
            chunk_size=self._chunk_size,
            sizes=self._sizes[device],
        )
        custom = {
            metric.name: _custom_values(metric, attention, asked)
            for metric in fitting
            if metric.function is not None and (reference is not None or not metric.compares)
        }
        groups = gather_sums(attention, asked)
        self._layers.append(_Layer(attention, groups, custom))
        for group in groups:
            if group.waiting is not None:
                block = group.waiting.block
                grids = getattr(group.group.distances, "args", None)
                key = block.shape, block.device, group.group.windows, group.group.heads, group.group.summed_heads, grids
                self._waiting.setdefault((*key, asked), []).append((group, attention.batch))
                self._waiting_bytes += block.nbytes
        if self._waiting_bytes > self._sizes[device].held:
            self._sum_waiting()
        return True

    def _sum_waiting(self) -> None:
        """Sum what waits for layers of its size."""
        for (*_, asked), waiting in self._waiting.items():
            sum_waiting([group for group, _ in waiting], asked, waiting[0][1])
        self._waiting.clear()
        self._waiting_bytes = 0

    def finish(self, norms: Sequence[TokenNorms] = ()) -> list[LayerValues]:
        """The values of all maps since `begin`, in their order; `norms` as `capture(…, norms=True)` has noted them.

        Raises:
            CaptureError: NaN, negative weights, or rows that do not sum to 1; names the module.
        """
        return self.compute(norms).read()

    @torch.no_grad()
    def compute(self, norms: Sequence[TokenNorms] = ()) -> "DeviceValues":
        """What `finish` gives, still on the device."""
        together = self.evaluate()
        return DeviceValues(self.names, self._layers.copy(), together, self._norm_values(together, norms))

    def evaluate(self) -> "list[_Together]":
        """Metrics of the layers of one size each."""
        self._sum_waiting()
        buckets: dict[Any, list[_Layer]] = {}
        for layer in self._layers:
            buckets.setdefault(layer.size(self.profiles), []).append(layer)
        return [self._evaluate(layers) for layers in buckets.values()]

    def _evaluate(self, layers: "list[_Layer]") -> "_Together":
        first = layers[0]
        names: list[str] = []
        of_groups: list[Tensor] = []
        flags: list[Tensor] = []
        sums: list[MapSums] = []
        for place, of_first in enumerate(first.groups):
            maps = MapSums.stack([layer.groups[place].maps for layer in layers])
            names = [metric.name for metric in self.metrics if metric.name in METRICS and first.kind in metric.kinds]
            if maps.distance is None:
                names = [name for name in names if name != "attention_distance"]
            of_names = [METRICS[name].formula(maps) for name in names]
            if of_first.pairs is not None:
                compared = [metric.name for metric in self.metrics if metric.name in STABILITY and first.kind in metric.kinds]
                of_names += _pair_values(compared, [layer.groups[place].pairs for layer in layers], maps)
                names += compared
            group = of_first.group
            stacked = torch.stack(of_names).float() if of_names else maps.mass.new_empty(0, *maps.mass.shape[:-1])
            of_groups.append(stacked.view(len(names), len(layers), first.batch, group.windows, group.heads))
            flags.append(faults(maps, hidden_rows=first.hidden_rows))
            sums.append(maps)
        values = of_groups[0] if len(of_groups) == 1 else torch.cat(of_groups, 3)
        values = values[:, :, :, 0] if values.shape[3] == 1 else values.nanmean(3)
        received = None
        if self.profiles:
            received = image_profiles([group.group for group in first.groups], sums, first.image_grid)
        worst = flags[0] if len(flags) == 1 else torch.stack(flags).amax(0)
        return _Together(layers, names, values, worst, received)

    def _norm_values(self, together: "list[_Together]", norms: Sequence[TokenNorms]) -> "list[_Norms]":
        """Metrics of the tokens that left each block, which come after its attention; of blocks of one size together."""
        wanted = [metric.name for metric in self.metrics if metric.group == "norms"]
        waiting = list(self._layers)
        received = {id(layer): (one.received, place) for one in together for place, layer in enumerate(one.layers)}
        buckets: dict[Any, list[tuple[_Layer, TokenNorms, Tensor | None]]] = {}
        for token_norms in norms if wanted else ():
            layer = next((layer for layer in waiting if layer.module == token_norms.module), None)
            if layer is None:
                continue
            waiting.remove(layer)
            stacked, place = received[id(layer)]
            known = stacked is not None and layer.image_grid is not None and layer.image_grid == token_norms.grid
            of_layer = stacked[place] if stacked is not None and known else None
            key = tuple(token_norms.norms.shape), known, token_norms.norms.device
            buckets.setdefault(key, []).append((layer, token_norms, of_layer))
        found = []
        for members in buckets.values():
            lengths = torch.stack([token_norms.norms for _, token_norms, _ in members])
            with_received = [of_layer for _, _, of_layer in members if of_layer is not None]
            values = norm_metrics(lengths, torch.stack(with_received) if with_received else None)
            found.append(_Norms([layer for layer, _, _ in members], wanted, torch.stack([values[name] for name in wanted])))
        return found


@dataclass(eq=False)
class _Layer:
    """One map whose sums are gathered; the map itself is let go."""

    attention: "AttentionMap | None"
    groups: list[GroupSums]
    custom: dict[str, Float[Tensor, "batch heads"]]
    module: str = ""
    kind: str = ""
    batch: int = 0
    image_grid: tuple[int, int] | None = None
    precision: torch.dtype = torch.float32
    hidden_rows: bool = False

    def __post_init__(self) -> None:
        attention = self.attention
        assert attention is not None
        self.module, self.kind, self.batch = attention.module, attention.kind, attention.batch
        self.image_grid, self.precision, self.hidden_rows = attention.image_grid, attention.precision, attention.hidden_rows
        self.attention = None

    def size(self, profiles: bool) -> tuple[Any, ...]:
        """What layers must share to be stacked."""

        def of_group(group: GroupSums) -> tuple[Any, ...]:
            maps, tokens = group.maps, group.group
            return (
                maps.mass.shape,
                maps.column.shape,
                maps.column.dtype,
                maps.column.device,
                tokens.windows,
                tokens.heads,
                tokens.summed_heads,
                maps.distance is None,
                maps.padding is None,
                id(group.pairs.pairs) if group.pairs else None,
                id(tokens.image_places) if profiles else None,
            )

        return (self.kind, self.hidden_rows, self.image_grid if profiles else None, *map(of_group, self.groups))


@dataclass(eq=False)
class _Together:
    """Values of the layers of one size."""

    layers: list[_Layer]
    names: list[str]
    values: Float[Tensor, "metrics layers batch heads"]
    faults: Float[Tensor, "layers 2"]
    received: Float[Tensor, "layers batch tokens"] | None

    def check(self, on_host: Float[Tensor, "layers 2"]) -> None:
        """Raise for the first layer that is no attention."""
        for layer, (worst, negative) in zip(self.layers, on_host.tolist(), strict=True):
            raise_faults(worst, negative=bool(negative), precision=layer.precision, module=layer.module)


@dataclass(eq=False)
class _Norms:
    layers: list[_Layer]
    names: list[str]
    values: Float[Tensor, "metrics layers batch"]


@dataclass(eq=False)
class DeviceValues:
    """The values of a forward on the device."""

    names: list[str]
    layers: list[_Layer]
    together: list[_Together]
    norms: list[_Norms]

    def read(self) -> list[LayerValues]:
        """Bring them to the host in one transfer, and check that all maps were attention.

        Raises:
            CaptureError: NaN, negative weights, or rows that do not sum to 1; names the module.
        """
        custom = [value for layer in self.layers for value in layer.custom.values()]
        parts = [part for one in self.together for part in (one.faults, one.values, one.received) if part is not None]
        parts += [one.values for one in self.norms] + custom
        if not parts:
            return []
        flat = torch.cat([part.float().flatten() for part in parts]).cpu()
        pieces = torch.split(flat, [part.numel() for part in parts])
        host = iter(piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True))
        columns = {name: column for column, name in enumerate(self.names)}
        found: dict[int, LayerValues] = {}
        for one in self.together:
            flags, values = next(host), next(host).numpy()
            received = None if one.received is None else next(host).numpy()
            one.check(flags)
            for place, layer in enumerate(one.layers):
                table = np.full((*values.shape[2:], len(self.names)), np.nan, np.float32)
                table[..., [columns[name] for name in one.names]] = np.moveaxis(values[:, place], 0, -1)
                of_layer = None if received is None else received[place]
                found[id(layer)] = LayerValues(layer.module, layer.kind, table, of_layer, layer.image_grid)
        for norms in self.norms:
            values = next(host).numpy()
            for place, layer in enumerate(norms.layers):
                for name, value in zip(norms.names, values[:, place], strict=True):
                    found[id(layer)].values[:, :, columns[name]] = value[:, None]
        for layer in self.layers:
            for name in layer.custom:
                found[id(layer)].values[:, :, columns[name]] = next(host).numpy()
        return [found[id(layer)] for layer in self.layers]


def _pair_values(names: list[str], of_layers: Sequence[PairSums | None], maps: MapSums) -> list[Tensor]:
    """Metrics of the pairs, laid out over all items: NaN for those that are no corrupted one of a pair."""
    sums = PairSums.stack([layer for layer in of_layers if layer is not None], maps)
    if not names:
        return []
    values = torch.stack([STABILITY[name].formula(sums) for name in names])
    undefined = values.new_full((*values.shape[:-1], maps.mass.shape[-2]), torch.nan)
    return list(undefined.index_copy_(-1, sums.pairs.corrupted, values))


def _custom_values(metric: Metric, attention: AttentionMap, asked: Gathering) -> Float[Tensor, "batch heads"]:
    """A custom metric on each window (and head) of each image, then the mean over windows."""
    heads = attention.shape[1] if asked.per_head else 1
    groups = token_groups(attention, per_head=asked.per_head, device=attention.device)
    windows = sum(group.windows for group in groups)
    values = torch.full((attention.batch, windows, heads), torch.nan, device=attention.device)
    together = max(1, attention.batch * asked.sizes.images // (4 * math.prod(attention.shape)))
    step = 1 if metric.compares else together if attention.images_first else attention.batch
    for start in range(0, attention.batch, step):
        images = slice(start, min(start + step, attention.batch))
        clean = asked.reference[start] if metric.compares and asked.reference is not None else None
        if clean == start:
            continue
        maps = [row_shares(attention, 0, attention.shape[2], images)]
        if clean is not None:
            maps.insert(0, row_shares(attention, 0, attention.shape[2], slice(clean, clean + 1)))
        first = 0
        for group in groups:
            value = _call(metric, attention, group, maps, asked)
            values[images, first : first + group.windows] = value.float().view(-1, group.windows, heads)
            first += group.windows
    return values[:, 0] if windows == 1 else values.nanmean(1)


def _call(metric: Metric, attention: AttentionMap, group: TokenGroup, maps: list[Tensor], asked: Gathering) -> Tensor:
    """Call a custom function on the windows of a group."""
    taken = [_tokens_of(group, weights) for weights in maps]
    padded = group.kept_queries is not None or group.kept_keys is not None
    known = {
        "prefix_tokens": group.query_prefix,
        "key_prefix_tokens": group.key_prefix,
        "grid": None if padded or attention.kind == "class" else attention.grid,
        "key_grid": None if padded else attention.key_grid or attention.grid,
        "top_fraction": asked.top_fraction,
    }
    assert metric.function is not None
    value = metric.function(*taken, **{name: known[name] for name in _takes(metric.function)})
    items = len(taken[0])
    if not isinstance(value, Tensor) or tuple(value.shape) != (items,):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"expected metric {metric.name} to return a tensor of shape ({items},), one value per map; got {got}")
    return value


@lru_cache(maxsize=64)
def _takes(function: Callable[..., Any]) -> tuple[str, ...]:
    """The keyword arguments that a custom metric asks for."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return KEYWORDS
    return tuple(name for name in KEYWORDS if name in parameters)


def _tokens_of(group: TokenGroup, weights: Float[Tensor, "map_items heads queries keys"]) -> Tensor:
    """The windows of a group without padding tokens; heads that are measured apart as items."""
    if group.members is not None:
        weights = weights.reshape(-1, group.map_windows, *weights.shape[1:])[:, group.members].flatten(0, 1)
    for axis, kept, prefix in ((2, group.kept_queries, group.query_prefix), (3, group.kept_keys, group.key_prefix)):
        if kept is not None:
            front = torch.arange(prefix, device=weights.device)
            weights = weights.index_select(axis, torch.cat([front, kept + prefix]))
    return weights if group.summed_heads > 1 else weights.flatten(0, 1).unsqueeze(1)
