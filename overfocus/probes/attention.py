"""Attention measured layer by layer while the model runs: metrics, received attention, and maps of displayed images."""

import ctypes
import dataclasses
import hashlib
import inspect
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from overfocus.attention import TOKEN_KINDS, AttentionMap
from overfocus.capturing import Captured, capture
from overfocus.checkpoints.loaded import LoadedModel
from overfocus.errors import CaptureError, RunError
from overfocus.forward import precision
from overfocus.metrics.catalogue import BUILT_IN, Metric, select_metrics
from overfocus.metrics.measuring import ForwardMeasurement
from overfocus.metrics.pooling import averaging, block_numbers, block_side
from overfocus.metrics.received import class_areas, received_shares
from overfocus.probes.probe import Array, Batch, Column, Described, ItemResult, Probe, Table, model_device, variant_columns
from overfocus.run import CLASS_SHARE_COLUMNS
from overfocus.runs.description import MEASURE_FIELDS, Layer, MeasureEntry, RunDescription, SiteEntry
from overfocus.sweep.reading import InputSize, Sample
from overfocus.sweep.recorder import Stopwatch
from overfocus.variants import CONTROL_VARIANT, Variant

MOST_QUERIES = 1024
"""Layers with more queries than this are pooled in the maps of displayed images, and leave much to clear away."""
ROWS = 256
"""Queries whose weights are pooled at a time."""


class AttentionProbe(Probe):
    """Measures every attention map as soon as it exists; no map outlives its layer."""

    name: ClassVar[str] = "attention"
    paired: ClassVar[bool] = True

    def __init__(
        self,
        loaded: LoadedModel,
        stopwatch: Stopwatch,
        *,
        layers: Sequence[int] | None = None,
        top_fraction: float = 0.05,
        per_head: bool = False,
        amp: bool = False,
        exact: bool = True,
        maps_limit: int = 1000,
        metrics: Sequence[Any] = (),
    ) -> None:
        """`layers` are those asked for, in call order, negative ones counted from the end; `metrics` come beside the built-in.

        Raises:
            RunError: a metric is unknown, has a name that is taken, or is no function of attention weights.
        """
        self.loaded = loaded
        self.stopwatch = stopwatch
        self.asked = layers
        self.top_fraction = top_fraction
        self.per_head = per_head
        self.amp = amp
        self.exact = exact
        self.metrics = choose_metrics(metrics)
        self.measures = tuple(_measure_entry(metric) for metric in self.metrics if metric.function is not None)
        self.maps_limit = maps_limit
        self.device = model_device(loaded)
        self.layers: list[Layer] = []
        self.displayed: frozenset[int] = frozenset()
        self._names: dict[int, str] = {}
        self._class_names: Sequence[str] | None = None
        self._numbers: list[int] = []
        self._captured: Captured | None = None
        self._measurement = ForwardMeasurement(self.metrics, top_fraction=top_fraction, per_head=per_head)
        self._compared = [place for place, metric in enumerate(self.metrics) if metric.compares]
        self._shown: list[bool] = []
        self._number = -1

    def describe(self, inputs: Tensor) -> Described:
        """The layers to measure, all sites of attention, and the numerical noise of each metric of stability.

        Warns of a module that looks like attention but showed none; a gate, such as TAP's, is not attention.

        Raises:
            CaptureError: no attention over tokens was found.
            RunError: a layer that was asked for does not exist.
        """
        model = self.loaded.model
        with torch.no_grad(), precision(self.device, amp=self.amp), capture(model, reduce=_describe_map) as captured:
            model(inputs[:2])
        found = [row for row in captured.reduced if row is not None]
        coverage = [_site(site.row()) for site in captured.coverage]
        silent = [site for site in captured.coverage if not site.captured]
        if not found:
            reasons = (
                "; ".join(sorted({f"{site.module}: {site.reason}" for site in silent})[:3])
                or "it has no attention modules; is it a CNN?"
            )
            raise CaptureError(
                f"no attention over tokens was found in {type(model).__name__} ({reasons}); `overfocus inspect` lists its sites"
            )
        silent = [site for site in silent if site.kind != "gating"]
        if silent:
            names = ", ".join(site.module for site in silent[:4]) + (" …" if len(silent) > 4 else "")
            warnings.warn(
                f"{len(silent)} attention modules gave no map and are not measured: {names} ({silent[0].reason})", stacklevel=3
            )
        chosen = self._chosen(len(found))
        layers = [
            Layer(layer=number, top_fraction=self.top_fraction, **described)
            for number, (described, _) in enumerate(found)
            if number in chosen
        ]
        partitions = {
            f"layer_{number:02d}": partition.cpu().numpy().astype(np.int32)
            for number, (_, partition) in enumerate(found)
            if number in chosen and partition is not None
        }
        self.layers, self._numbers = layers, [layer.layer for layer in layers]
        fields = {
            "layers": layers,
            "attention_layers": len(found),
            "coverage": coverage,
            "noise": self._noise(inputs),
        }
        return Described(fields, {"maps/windows.npz": partitions} if partitions else {})

    def prepare(self, description: RunDescription) -> None:
        """Take the layers of the run, its displayed images and names."""
        self.layers, self._numbers = description.layers, [layer.layer for layer in description.layers]
        self.displayed = frozenset(description.displayed)
        self._names = {image.image: image.name for image in description.images}
        self._class_names = description.class_names

    def rows(self, variants: Sequence[Variant]) -> Mapping[str, int]:
        """One per variant, the control too, and layer, or head of it."""
        return {"metrics": len(variants) * sum(layer.heads if self.per_head else 1 for layer in self.layers)}

    def attach(self) -> AbstractContextManager[object]:
        """Capture the attention of all forwards in the block."""
        return _Attached(self)

    def begin(self, batch: Batch) -> None:
        """Note where the clean counterparts are, and which images are shown in full."""
        assert self._captured is not None
        self._measurement.begin(batch.places)
        self._number = -1
        kept = [
            [sample.item in self.displayed and sample.variants[member] != CONTROL_VARIANT for member in members]
            for sample, members in zip(batch.samples, batch.members, strict=True)
        ]
        self._shown = [shown for sample in kept for shown in sample]
        self._captured.clear()

    def columns(self, batch: Batch, output: Any) -> Mapping[str, Column]:
        """Metrics (images, heads, metrics), received attention and shown maps by layer.

        Raises:
            CaptureError: the attention holds NaN or is not attention, or other layers ran than in the first batch.
        """
        del output
        assert self._captured is not None
        self._captured.check()
        kept = [maps for maps in self._captured.reduced if maps is not None]
        with self.stopwatch.on("capture", inside="forward"):
            measured = self._measurement.finish(self._captured.norms)
        if len(measured) != len(self._numbers):
            raise CaptureError(
                f"expected attention of layers {self._numbers} in every batch, got that of {len(measured)} of them"
            )
        controls = [variant == CONTROL_VARIANT for variant in batch.variants]
        partnered = batch.each([sample.control for sample in batch.samples])
        columns: dict[str, Column] = {}
        for number, layer, maps in zip(self._numbers, measured, kept, strict=True):
            for place, (control, partner) in enumerate(zip(controls, partnered, strict=True)):
                if control:  # the pair is measured, not the other image
                    pair = layer.values[place][:, self._compared] if partner else np.nan
                    layer.values[place] = np.nan
                    layer.values[place][:, self._compared] = pair
            columns[f"values_{number}"] = layer.values
            if layer.received is not None and layer.image_grid is not None:
                columns[f"received_{number}"] = layer.received.reshape(-1, *layer.image_grid)
            if maps:
                columns[f"attention_{number}"] = [None if one is None else _host(one) for one in maps]
        return columns

    def finish(self, sample: Sample, result: ItemResult) -> None:
        """Drop the maps of images that are not displayed, and share out received attention over the classes of the mask."""
        columns = result.columns[self.name]
        if sample.item not in self.displayed:
            for name in [name for name in columns if name.startswith("attention_")]:
                del columns[name]
        if sample.mask is not None:
            mask = InputSize.of(self.loaded.preprocess).fit_mask(sample.mask)
            result.extra[self.name] = self._shares(mask, columns, result.kept)

    def tables(self, results: Sequence[ItemResult]) -> Mapping[str, Table]:
        """The metrics table, and received attention by class where there are masks."""
        import pyarrow

        columns = results[0].columns[self.name]
        heads = {number: np.asarray(columns[f"values_{number}"]).shape[1] for number in self._numbers}
        slots = [(layer, head) for layer in self.layers for head in range(heads[layer.layer])]
        images = sum(len(result.variants) for result in results)
        places = np.tile(np.arange(len(slots)), images)
        table: dict[str, Any] = {
            "layer": _taken([layer.layer for layer, _ in slots], places, pyarrow.int32()),
            "module": _taken([layer.module for layer, _ in slots], places, pyarrow.string()),
            "kind": _taken([layer.kind for layer, _ in slots], places, pyarrow.string()),
        }
        if self.per_head:
            table["head"] = _taken([head for _, head in slots], places, pyarrow.int32())
        values = np.concatenate([self.joined(results, f"values_{number}", control=True) for number in self._numbers], axis=1)
        flat = values.reshape(len(places), len(self.metrics))
        table |= {metric.name: pyarrow.array(flat[:, place]) for place, metric in enumerate(self.metrics)}
        found = {"metrics": Table(table, repeats=len(slots), control=True)}
        if any(self.name in result.extra for result in results):
            found["attention_by_class"] = Table(self._by_class(results), repeats=0)
        return found

    def arrays(self, results: Sequence[ItemResult], first: int) -> Iterator[tuple[str, Mapping[str, Array], bool]]:
        """Received attention of the first images of a run, pixels and maps of displayed ones."""
        kept = [result for result in results if result.item < self.maps_limit]
        received = [name for name in results[0].columns[self.name] if name.startswith("received_")]
        if kept and received:
            numbers = np.concatenate([np.repeat(result.item, len(result.kept)) for result in kept])
            arrays: dict[str, Array] = {"image": numbers} | variant_columns(kept)
            for name in received:
                arrays[f"layer_{int(name.removeprefix('received_')):02d}"] = self.joined(kept, name)
            yield f"maps/received-{first:05d}.npz", arrays, False
        for result in results:
            if result.pixels is None:
                continue
            arrays = variant_columns([result]) | {"pictures": result.pixels[result.kept]}
            for name, maps in result.columns[self.name].items():
                if name.startswith("attention_"):
                    shown = [np.asarray(maps[place]) for place in result.kept]
                    arrays[f"attention_{int(name.removeprefix('attention_')):02d}"] = np.stack(shown)
            yield f"maps/image-{result.item}.npz", arrays, False

    def _chosen(self, count: int) -> set[int]:
        """Numbers of the layers to measure among so many."""
        if self.asked is None:
            return set(range(count))
        if wrong := [number for number in self.asked if not -count <= number < count]:
            raise RunError(f"layers must be between {-count} and {count - 1} for this model, got {', '.join(map(str, wrong))}")
        return {number % count for number in self.asked}

    @torch.no_grad()
    def _noise(self, inputs: Tensor) -> dict[str, list[float | None]]:
        """By metric of stability and layer: how far from identical the same image is at other places of the batch; means."""
        with precision(self.device, amp=self.amp), self.attach():
            assert self._captured is not None
            self._measurement.begin([0] * len(inputs))
            self._shown, self._number = [False] * len(inputs), -1
            self.loaded.model(inputs)
            measured = self._measurement.finish()
        noise: dict[str, list[float | None]] = {}
        for place, metric in enumerate(self.metrics):
            if metric.compares and metric.identical is not None:
                distances = [metric.distance(layer.values[1:, :, place]) for layer in measured]
                noise[metric.name] = [float(np.nanmean(found)) if np.isfinite(found).any() else None for found in distances]
        return noise

    def _measure_map(self, attention: AttentionMap) -> "list[Tensor | None] | None":
        """Measure one map, and keep it of the images to show; called by `capture` while its layer runs."""
        if attention.kind not in TOKEN_KINDS:
            return None
        self._number += 1
        if self._number not in self._numbers:
            return None
        with self.stopwatch.on("capture", inside="forward"), torch.autocast(self.device.type, enabled=False):
            self._measurement.add(attention)
            if attention.shape[2] > MOST_QUERIES:
                _malloc_trim()
            return self._kept(attention)

    def _kept(self, attention: AttentionMap) -> list[Float[Tensor, "windows queries keys"] | None]:
        """Mean over heads of the weights of the images to show, float16; pooled where there are many queries.

        Nothing for layers of so many queries whose patches have no known grid.
        """
        queries = attention.shape[2]
        if not any(self._shown) or (queries > MOST_QUERIES and attention.grid is None):
            return []
        read = self._pooled if queries > MOST_QUERIES else _whole
        return [
            read(attention, slice(place, place + 1)).to(torch.float16) if shown else None
            for place, shown in enumerate(self._shown)
        ]

    @staticmethod
    def _pooled(attention: AttentionMap, images: slice) -> Float[Tensor, "windows blocks blocks"]:
        """Means over heads and over pairs of blocks, as `overfocus.metrics.pooling` numbers them."""
        queries, keys = attention.shape[2:]
        sides = []
        for tokens, grid in ((queries, attention.grid), (keys, attention.key_grid or attention.grid)):
            fits = grid if grid and grid[0] * grid[1] <= tokens else None
            sides.append(averaging(block_numbers(tokens, fits, block_side(tokens, fits))))
        total: Tensor | None = None
        for start in range(0, queries, ROWS):
            rows = attention.rows(start, min(queries, start + ROWS), images).mean(1)
            left, right = (torch.from_numpy(side).to(rows.device) for side in (sides[0][:, start : start + ROWS], sides[1]))
            part = left @ (rows @ right.T)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _shares(self, mask: Array, columns: Mapping[str, Column], kept: Sequence[int]) -> list[tuple[int, Array, Array, Array]]:
        """By layer: its number, the classes of the mask, their share of the area and of what each variant's attention gives."""
        found = []
        by_grid: dict[tuple[int, ...], tuple[Array, Array]] = {}
        for number in self._numbers:
            if f"received_{number}" not in columns:
                continue
            profile = np.asarray(columns[f"received_{number}"])[list(kept)]
            grid = (profile.shape[1], profile.shape[2])
            if grid not in by_grid:
                by_grid[grid] = class_areas(mask, grid)
            classes, areas = by_grid[grid]
            found.append((number, classes, areas.mean((1, 2)), received_shares(profile, areas)))
        return found

    def _by_class(self, results: Sequence[ItemResult]) -> dict[str, Any]:
        """One row per image × variant × layer × class in the image's mask."""
        import pyarrow

        modules = {layer.layer: layer.module for layer in self.layers}
        rows = [
            (
                result.item, self._names[result.item], *result.variants[place], number, modules[number], int(of_class),
                self._class_names[of_class] if self._class_names else None, float(share), float(area),
            )
            for result in results
            for row, place in enumerate(result.kept)
            for number, classes, areas, received in result.extra.get(self.name, [])
            for of_class, area, share in zip(classes, areas, received[row], strict=True)
        ]  # fmt: skip
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(CLASS_SHARE_COLUMNS)
        return {
            name: pyarrow.array(values, getattr(pyarrow, kind)())
            for (name, kind), values in zip(CLASS_SHARE_COLUMNS.items(), columns, strict=True)
        }


class _Attached(AbstractContextManager["_Attached"]):
    """A capture that hands its maps to a probe."""

    def __init__(self, probe: AttentionProbe) -> None:
        self.probe = probe
        self._context = capture(probe.loaded.model, reduce=probe._measure_map, norms=True, exact=probe.exact)

    def __enter__(self) -> "_Attached":
        self.probe._captured = self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.probe._captured = None
        self._context.__exit__(*error)


def _whole(attention: AttentionMap, images: slice) -> Float[Tensor, "windows queries keys"]:
    """The mean over heads."""
    return attention.rows(0, attention.shape[2], images).mean(1)


def _describe_map(attention: AttentionMap) -> tuple[dict[str, Any], Tensor | None] | None:
    if attention.kind not in TOKEN_KINDS:
        return None
    described = {
        "module": attention.module,
        "kind": attention.kind,
        "branch": attention.branch,
        "grid": attention.grid,
        "key_grid": attention.key_grid,
        "image_grid": attention.image_grid,
        "prefix_tokens": attention.prefix_tokens,
        "key_prefix_tokens": attention.key_prefix_tokens,
        "windows": attention.windows,
        "frames": attention.frames,
        "heads": attention.shape[1],
        "queries": attention.shape[2],
        "keys": attention.shape[3],
    }
    return described, attention.partition


def _site(row: Mapping[str, Any]) -> SiteEntry:
    known = {entry.name for entry in dataclasses.fields(SiteEntry)}
    kept: dict[str, Any] = {name: list(value) if name == "shape" and value is not None else value for name, value in row.items()}
    return SiteEntry(**{name: value for name, value in kept.items() if name in known})


def choose_metrics(metrics: Sequence[Any]) -> tuple[Metric, ...]:
    """The built-in metrics of attention, and those given beside them: names, functions or rows of the catalogue.

    Raises:
        RunError: one of them is not a metric.
    """
    if isinstance(metrics, str) or not isinstance(metrics, Sequence):
        metrics = [metrics]
    own = [metric for metric in metrics if not (isinstance(metric, str) and metric in _BUILT_IN)]
    try:
        return select_metrics([*_BUILT_IN, *own])
    except ValueError as error:
        raise RunError(str(error)) from None


def fingerprint_metric(metric: Metric) -> str:
    """SHA-256 of what the function of a metric makes of fixed weights, to four digits; "" where they do not suit it."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, 17, 17, generator=generator).softmax(-1) for _ in range(1 + metric.compares)]
    known = {"prefix_tokens": 1, "key_prefix_tokens": 1, "grid": (4, 4), "key_grid": (4, 4), "top_fraction": 0.05}
    assert metric.function is not None
    try:
        taken = inspect.signature(metric.function).parameters
        values = metric.function(*maps, **{name: value for name, value in known.items() if name in taken})
        text = " ".join(f"{float(value):.3e}" for value in values)
    except Exception:  # the function is the user's; its run says what is wrong with it
        return ""
    return hashlib.sha256(text.encode()).hexdigest()


_BUILT_IN = [metric.name for metric in BUILT_IN if metric.per_layer]


def _measure_entry(metric: Metric) -> MeasureEntry:
    described = metric.describe()
    return MeasureEntry(table="metrics", **{name: described[name] for name in described if name in MEASURE_FIELDS})


def _taken(values: Sequence[Any], places: Array, kind: Any) -> Any:
    """`values[place]` for each place."""
    import pyarrow

    return pyarrow.array(values, kind).take(pyarrow.array(places))


def _host(tensor: Tensor) -> Array:
    array: Array = tensor.cpu().numpy()
    return array


def _malloc_trim() -> None:
    """Return the free pages of glibc's heap, between what is kept too; elsewhere nothing is done.

    The blocks of a map of 4,096 tokens leave holes between the results that are kept of it, which glibc holds and later layers do
    not fit into: with four images of 1024×1024 pixels that was 2 GB. Calling this after each such layer costs milliseconds.
    """
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
