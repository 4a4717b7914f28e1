"""The table of a comparison as the page's script filters it, column by column."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from overfocus.metrics.catalogue import CATALOGUE, title_of
from overfocus_reports.encoding import numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES = ("metric", "layers", "corruption", "model")
"""Columns of text, which travel as numbers into the list of their values."""


def differences_payload(table: pd.DataFrame, colours: "Mapping[str, str]") -> dict[str, Any]:
    """Columns, the values of text columns, titles and directions of the metrics, and colours of the models."""
    columns: dict[str, Any] = {}
    names: dict[str, list[str]] = {}
    for name in table.columns:
        if name in NAMES:
            codes, values = pd.factorize(table[name])
            columns[name], names[name] = codes.tolist(), [str(value) for value in values]
        elif pd.api.types.is_integer_dtype(table[name].dtype):
            columns[name] = table[name].tolist()
        else:
            columns[name] = numbers(table[name].to_numpy("float64"))
    known = [CATALOGUE.get(metric) for metric in names["metric"]]
    return {
        "order": [str(name) for name in table.columns],
        "columns": columns,
        "names": names,
        "titles": [title_of(metric) for metric in names["metric"]],
        "directions": [
            DIRECTIONS.get(name, metric.overfocused if metric else "neither")
            for name, metric in zip(names["metric"], known, strict=True)
        ],
        "colours": [colours[model] for model in names["model"]],
    }


DIRECTIONS = {"output_cosine": "low"}
"""Which end speaks of fragility, of scores that the catalogue does not describe."""


def chance_in_words(table: pd.DataFrame) -> str:
    """The chance level of top-k overlap: "0.051", or the smallest and largest of the models and groups of layers."""
    known = table["chance"].dropna() if "chance" in table else pd.Series(dtype=float)
    if known.empty:
        return ""
    low, high = f"{known.min():.2g}", f"{known.max():.2g}"
    return low if low == high else f"{low} … {high}"
