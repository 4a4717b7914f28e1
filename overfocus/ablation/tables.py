"""Means and paired differences of an ablation from its values per image."""

from typing import Any

import numpy as np
import pandas as pd

from overfocus.ablation.ablation import CHOICES, QUANTITIES, AblationTables
from overfocus.comparison.bootstrap import bootstrap_intervals
from overfocus.comparison.paired import paired_differences

Array = np.ndarray[Any, Any]

_KEYS = ["corruption", "severity", "choice", "k", "fraction"]


def tabulate_ablation(pictures: pd.DataFrame, *, resamples: int) -> AblationTables:
    """Means over images with intervals, and the differences between the top tokens and the other choices.

    `pictures` has one row per image × corruption × severity × choice × k, with `QUANTITIES` as columns.
    """
    variants = list(dict.fromkeys(zip(pictures["corruption"], pictures["severity"], strict=True)))
    place = {choice: number for number, choice in enumerate(CHOICES)}
    cells = sorted(
        pictures[_KEYS].drop_duplicates().itertuples(index=False, name=None),
        key=lambda cell: (variants.index((cell[0], cell[1])), place[cell[2]], cell[3]),
    )
    values = {
        quantity: pictures.pivot_table(index="image", columns=_KEYS, values=quantity, dropna=False, sort=False)
        .reindex(columns=pd.MultiIndex.from_tuples(cells, names=_KEYS))
        .to_numpy("float64")
        for quantity in QUANTITIES
    }
    table = pd.DataFrame(cells, columns=_KEYS)
    for quantity, found in values.items():
        low, high = bootstrap_intervals(found, resamples=resamples)
        table[quantity] = _means(found)
        table[f"{quantity}_low"], table[f"{quantity}_high"] = low, high
    table["count"] = (~np.isnan(values["output_cosine"])).sum(0)
    return AblationTables(table, _differences(values, table, resamples))


def _differences(values: dict[str, Array], table: pd.DataFrame, resamples: int) -> pd.DataFrame:
    frames = []
    top = table.index[(table["choice"] == CHOICES[0]) & (table["k"] > 0)]
    same = ["corruption", "severity", "k", "fraction"]
    for against in CHOICES[1:]:
        others = table[table["choice"] == against].reset_index().set_index(same)["index"]
        places = others.loc[pd.MultiIndex.from_frame(table.loc[top, same])].to_numpy()
        for quantity, found in values.items():
            paired = paired_differences(found[:, top.to_numpy()], found[:, places], resamples=resamples)
            frame = table.loc[top, same].assign(quantity=quantity, against=against)
            for name in ("difference", "low", "high", "p_value", "count"):
                frame[name] = getattr(paired, name)
            frames.append(frame[frame["count"] > 0])
    return pd.concat(frames, ignore_index=True)


def _means(values: Array) -> Array:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: Array = np.where(known, values, 0).sum(0) / known.sum(0)
    return mean
