"""Stability against the control: how much more of its attention an image keeps than another image has in common with it.

`retained = 1 − D / D_control` for each metric of stability, where D is its distance form, how far it is from its value for
two identical maps. D is measured between an image and its corrupted variant, D_control between the image and another clean one,
in the same layers; both are averaged over images before the ratio. 1 = as if not corrupted, 0 = no more like itself than like
another image, negative = less.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from overfocus.metrics.catalogue import CATALOGUE
from overfocus.statistics.intervals import Interval, mean_interval, ratio_difference_interval
from overfocus.statistics.panel import (
    EVERY,
    Panel,
    RunTables,
    by_images,
    masked_jointly,
    mean_of_known,
    over_layers,
    read_panel,
    with_every,
)
from overfocus.variants import Variant

Array = np.ndarray[Any, Any]
NOISE_MARGIN = 10
"""A control whose interval reaches below this many times the numerical noise measures noise: what is retained is undefined."""
USUAL_NOISE = 1e-6
"""The noise of runs that did not measure theirs: what single precision leaves between two equal maps."""
LEAST_NOISE = float(np.finfo(np.float32).eps)
"""No noise is taken to be smaller: one that was measured as exactly 0 is below the resolution of single precision, no more."""
RETAINED = "retained."
"""Stands before the name of a metric where a table speaks of what is retained of it."""
NOT_MEASURED = "control not measured"
"""What is said of runs without the control."""
COLUMNS = ("metric", "corruption", "severity", "layer", "module", "value", "control", "retained", "low", "high", "count")
_RESAMPLES = 2_000


def distances(name: str, values: Array) -> Array:
    """The distance form of a metric of stability: 0 for two identical maps."""
    identical = CATALOGUE[name].identical
    assert identical is not None, name
    result: Array = np.abs(identical - values)
    return result


def undefined_control(control: Float[np.ndarray, "images columns"], noise: Float[np.ndarray, "columns"] | float) -> Array:
    """Which columns of control distances are no larger than numerical noise: the lower end of their mean is below ten times it.

    With a single image, where there is no interval, its value counts. A control of 0, as of copies of one image, is always noise.
    """
    low, _ = mean_interval(control)
    mean = mean_of_known(control, 0)
    usual = np.where(np.isnan(noise), USUAL_NOISE, np.maximum(noise, LEAST_NOISE))
    result: Array = ~(np.where(np.isnan(low), mean, low) >= NOISE_MARGIN * usual)
    return result


def stable_metrics(panels: Sequence[Panel]) -> list[str]:
    """Metrics of stability that all runs measured, with their control."""
    return [
        name
        for name in panels[0].control
        if CATALOGUE[name].identical is not None and all(name in panel.control and name in panel.values for panel in panels)
    ]


def control_of(panel: Panel, name: str) -> Array:
    """(images, variants, layers): the control beside each corrupted variant, NaN beside the clean one."""
    return beside_variants(panel.control[name], panel)


def beside_variants(control: Float[np.ndarray, "images layers"], panel: Panel) -> Array:
    """The same of the control of some images."""
    beside = np.repeat(control[:, None, :], len(panel.variants), axis=1)
    beside[:, [place for place in range(len(panel.variants)) if place not in panel.corrupted]] = np.nan
    return beside


def means_over_layers(panels: Sequence[Panel], name: str, group: str) -> list[Array]:
    """(images, variants): the metric of each panel, then the control of each, over the layers where both have a value."""

    def mean(*parts: Array) -> list[Array]:
        values, controls = parts[: len(panels)], parts[len(panels) :]
        beside = [beside_variants(control, panel) for control, panel in zip(controls, panels, strict=True)]
        pairs = [masked_jointly(pair) for pair in zip(values, beside, strict=True)]
        return over_layers([*panels, *panels], [*(value for value, _ in pairs), *(control for _, control in pairs)], group)

    return by_images(mean, *(panel.values[name] for panel in panels), *(panel.control[name] for panel in panels))


def tabulate_retained(run: RunTables) -> pd.DataFrame:
    """One row per metric of stability × corruption × severity × layer: value, control, and what is retained.

    Columns: metric, corruption, severity, layer, module; value (mean of the metric over images), control (mean between two
    different clean images), retained with the ends low and high of its 95 % bootstrap interval over images; count of images.
    Empty where the control was not measured.
    """
    panel = read_panel(run)
    layers = run.description.layers
    frames = []
    for name in stable_metrics([panel]):
        noise = np.repeat(panel.noise[name][None], len(panel.corrupted), 0).ravel()
        value, control = masked_jointly(
            [part[:, panel.corrupted].reshape(len(panel.images), -1) for part in (panel.values[name], control_of(panel, name))]
        )
        retained, low, high = retained_of(distances(name, value), distances(name, control), noise)
        cells = [(*panel.variants[place], layer) for place in panel.corrupted for layer in range(len(layers))]
        frames.append(
            pd.DataFrame(
                {
                    "metric": name,
                    "corruption": [corruption for corruption, _, _ in cells],
                    "severity": [severity for _, severity, _ in cells],
                    "layer": [layers[layer].number for _, _, layer in cells],
                    "module": [layers[layer].module for _, _, layer in cells],
                    "value": mean_of_known(value, 0),
                    "control": mean_of_known(control, 0),
                    "retained": retained,
                    "low": low,
                    "high": high,
                    "count": (~np.isnan(value)).sum(0),
                }
            )
        )
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(COLUMNS))


def retained_of(
    distance: Float[np.ndarray, "images columns"],
    control: Float[np.ndarray, "images columns"],
    noise: Float[np.ndarray, "columns"] | float,
) -> tuple[Array, Array, Array]:
    """What is retained, and the ends of its interval, by column; NaN where the control is no more than noise."""
    with np.errstate(invalid="ignore", divide="ignore"):
        retained = 1 - mean_of_known(distance, 0) / mean_of_known(control, 0)
    low, high = ratio_difference_interval(distance, control, resamples=_RESAMPLES)
    missing = undefined_control(control, noise)
    kept = [np.where(missing, np.nan, part) for part in (retained, 1 - high, 1 - low)]
    return kept[0], kept[1], kept[2]


def retained_by_variant(panel: Panel) -> pd.DataFrame:
    """One row per metric of stability × variant over all layers, and a last one for all corruptions together (`EVERY`, 0).

    Columns: metric, corruption, severity, value, control, retained, low, high, count.
    """
    frames = []
    for name in stable_metrics([panel]):
        (value, control), _ = with_every(means_over_layers([panel], name, "all"), panel.corrupted)
        retained, low, high = retained_of(distances(name, value), distances(name, control), mean_noise(panel, name, "all"))
        frame = pd.DataFrame([*panel.variants, (EVERY, 0)], columns=["corruption", "severity"]).assign(
            metric=name, value=mean_of_known(value, 0), control=mean_of_known(control, 0), retained=retained, low=low, high=high,
            count=(~np.isnan(value)).sum(0),
        )  # fmt: skip
        frames.append(frame.loc[frame["count"] > 0, [*COLUMNS[:3], *COLUMNS[5:]]])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*COLUMNS[:3], *COLUMNS[5:]])


def retained_interval(panel: Panel, name: str, variants: Sequence[Variant]) -> Interval:
    """What is retained over all layers and these variants, each image averaged over both first; NaN where undefined."""
    places = [panel.variants.index(variant) for variant in variants]
    arrays = masked_jointly([panel.values[name][:, places], control_of(panel, name)[:, places]])
    means = [distances(name, array) for array in arrays]
    distance, control = (mean_of_known(mean_of_known(part, 2), 1)[:, None] for part in means)
    retained, low, high = retained_of(distance, control, mean_noise(panel, name, "all"))
    known = ~np.isnan(distance[:, 0])
    return Interval(float(retained[0]), float(low[0]), float(high[0]), int(known.sum()), int((~known).sum()))


def mean_noise(panel: Panel, name: str, group: str) -> float:
    """Mean over a group's layers of the numerical noise of a metric; NaN where it was not measured."""
    return float(mean_of_known(panel.noise[name][panel.layer_group(group)], 0))
