"""`check`: whether what a run measured keeps within limits, for continuous integration and model cards."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from overfocus.errors import RunError
from overfocus.settings import Settings, did_you_mean, setting, shown, takes
from overfocus.variants import CLEAN, OTHER_IMAGE

if TYPE_CHECKING:
    import pandas as pd

    from overfocus.run import Run

RETAINED = "retained."
"""Stands before a metric of stability for what is retained of it against the control."""


@dataclass(frozen=True)
class CheckSettings(Settings):
    """What `check` takes."""

    run: "str | Path | Run" = setting(help="Run folder.", argument=True, metavar="RUN")
    _: KW_ONLY
    maximum: Mapping[str, Any] | None = setting(
        None,
        "Highest value that the metric may have, in its worst layer (and head) under its worst variant, as mean over "
        "images, e.g. top_share=0.3.",
        spelling=("--max",),
        metavar="METRIC=VALUE",
    )
    minimum: Mapping[str, Any] | None = setting(
        None,
        "Lowest value, in the same way, e.g. agreement=0.8 or retained.js_divergence=0.5.",
        spelling=("--min",),
        metavar="METRIC=VALUE",
    )
    layers: Sequence[int] | None = setting(
        None, "Look at these layers only, e.g. 0,5,-1 (-1 is the last).", none="all", metavar="N,N,…"
    )
    corruptions: Sequence[str] | None = setting(
        None, "Look at these corruptions only; clean is one.", none="all, and clean", metavar="NAME"
    )


@dataclass(frozen=True)
class Limit:
    """One limit and the value that comes nearest to breaking it, or breaks it most."""

    metric: str
    kind: Literal["max", "min"]
    limit: float
    value: float
    """Mean over images in the worst layer, head and variant; NaN where it is undefined in one of them."""
    corruption: str
    severity: int
    layer: int | None
    """None for metrics of predictions."""
    module: str | None
    head: int | None
    others: "tuple[Limit, ...]" = ()
    """Every other layer, head and variant that breaks the limit, the worst first."""

    @property
    def kept(self) -> bool:
        """Whether the value keeps within the limit; an undefined one does not."""
        return self.value <= self.limit if self.kind == "max" else self.value >= self.limit

    @property
    def sentence(self) -> str:
        """In words: "top_share 0.412 is above 0.3 in layer 7 (blocks.7.attn) under fog 5"."""
        place = "" if self.layer is None else f" in layer {self.layer} ({self.module})"
        head = "" if self.head is None else f", head {self.head},"
        variant = f"under {self.corruption} {self.severity}" if self.severity else f"on {self.corruption} images"
        if math.isnan(self.value):
            return f"{self.metric} is undefined{place}{head} {variant}, so it cannot be shown to keep within {self.limit:g}"
        relation = {"max": ("at most", "above"), "min": ("at least", "below")}[self.kind][not self.kept]
        return f"{self.metric} {self.value:.4g} is {relation} {self.limit:g}{place}{head} {variant}"


@takes(CheckSettings)
def check(settings: CheckSettings) -> list[Limit]:
    """Compare a run with limits; one entry for each, all of them to be `kept`.

    A limit holds for the mean over images in every layer and head under every variant that was measured, so the worst is what
    counts. What is undefined there is not kept.

    Raises:
        RunError: there is no such run, metric, layer or corruption in it, the control was not measured, or no limit is given.
    """
    from overfocus.run import Run

    run = settings.run if isinstance(settings.run, Run) else Run(settings.run)
    wanted = [(name, "max", value) for name, value in (settings.maximum or {}).items()]
    wanted += [(name, "min", value) for name, value in (settings.minimum or {}).items()]
    if not wanted:
        raise RunError("expected at least one limit; give --max METRIC=VALUE or --min METRIC=VALUE")
    return [_compared(run, settings, name, "max" if kind == "max" else "min", value) for name, kind, value in wanted]


def _compared(run: "Run", settings: CheckSettings, name: str, kind: Literal["max", "min"], limit: Any) -> Limit:
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not abs(limit) <= sys.float_info.max:
        raise RunError(f"expected a finite number as the limit of {name}, got {shown(limit)}")
    rows = list(_values(run, settings, name))
    if not rows:
        raise RunError(f"{run.path}: {name} was not measured under {', '.join(settings.corruptions or ['any variant'])}")
    sign = -1 if kind == "max" else 1
    rows.sort(key=lambda row: -math.inf if math.isnan(row["value"]) else sign * row["value"])
    worst, *others = (Limit(name, kind, float(limit), **row) for row in rows)
    return replace(worst, others=tuple(other for other in others if not other.kept))


def _values(run: "Run", settings: CheckSettings, name: str) -> Iterator[dict[str, Any]]:
    """The mean of a metric over images for each layer, head and variant that is looked at."""
    table, column = _table(run, name)
    stability = _compares(name)
    table = table[table["corruption"] != OTHER_IMAGE]
    if stability:
        table = table[table["corruption"] != CLEAN]
    if settings.corruptions is not None:
        known = list(dict.fromkeys(table["corruption"]))
        for corruption in settings.corruptions:
            if corruption not in known:
                near = did_you_mean(corruption, known)
                raise RunError(f"{run.path}: {name} was measured under {', '.join(known)}, not {shown(corruption)}{near}")
        table = table[table["corruption"].isin(settings.corruptions)]
    layered = "layer" in table.columns
    if settings.layers is not None and layered:
        table = table[table["layer"].isin(_numbers(run, table, settings.layers))]
    keys = ["corruption", "severity", *(["layer", "module"] if layered else []), *(["head"] if "head" in table.columns else [])]
    means = table.groupby(keys, sort=False, dropna=False)[column].mean()
    for place, value in means.items():
        found: dict[str, Any] = dict(zip(keys, cast(tuple[Any, ...], place), strict=True))
        yield {
            "value": float(value),
            "corruption": str(found["corruption"]),
            "severity": int(found["severity"]),
            "layer": int(found["layer"]) if layered else None,
            "module": str(found["module"]) if layered else None,
            "head": int(found["head"]) if "head" in found else None,
        }


def _table(run: "Run", name: str) -> "tuple[pd.DataFrame, str]":
    """The table that holds a metric, and its column.

    Raises:
        RunError: no table holds it.
    """
    from overfocus.metrics.catalogue import CATALOGUE

    metric = name.removeprefix(RETAINED)
    if name.startswith(RETAINED):
        retained = run.retained
        if not len(retained):
            raise RunError(f"{run.path}: {name} needs the control (another image), which was not measured; measure the run again")
        rows = retained[retained["metric"] == metric]
        if len(rows):
            return rows, "retained"
        raise RunError(
            f"{run.path}: retained is not defined for {metric}; choose one of {', '.join(dict.fromkeys(retained['metric']))}"
        )
    import pandas as pd

    columns = {"metrics": [*run.cells], "predictions": list(run.predictions.columns)}
    if metric in columns["metrics"]:
        modules = {layer.number: layer.module for layer in run.layers}
        rows = pd.concat([block.astype({"corruption": "object"}) for block in run.blocks("metrics", [metric])], ignore_index=True)
        return rows.assign(module=rows["layer"].map(modules)), metric
    if metric in columns["predictions"] and metric not in ("image", "name", "label", "corruption", "severity"):
        return run.predictions, metric
    known = [column for names in columns.values() for column in names if column in CATALOGUE]
    raise RunError(
        f"{run.path}: holds no metric {shown(name)}; `overfocus list metrics` explains those there are{did_you_mean(name, known)}"
    )


def _compares(name: str) -> bool:
    """Whether a metric compares with the clean image, and so says nothing about it."""
    from overfocus.metrics.catalogue import CATALOGUE

    known = CATALOGUE.get(name.removeprefix(RETAINED))
    return known is not None and known.identical is not None


def _numbers(run: "Run", table: "pd.DataFrame", layers: Sequence[int]) -> list[int]:
    there = sorted({int(number) for number in table["layer"]})
    count = there[-1] + 1 if there else 0
    chosen = [layer + count if layer < 0 else layer for layer in layers]
    for asked, layer in zip(layers, chosen, strict=True):
        if layer not in there:
            raise RunError(f"{run.path}: has no layer {asked}; it holds {', '.join(map(str, there))}")
    return chosen
