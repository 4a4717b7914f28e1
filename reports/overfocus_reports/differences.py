"""The table of a comparison as the page's script filters it, column by column."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from overfocus.metrics.catalogue import CATALOGUE
from overfocus.statistics.retained import RETAINED
from overfocus.statistics.wording import measure_title
from overfocus_reports.encoding import numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES = ("metric", "layers", "corruption", "model", "family")
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
    return {
        "order": [str(name) for name in table.columns],
        "columns": columns,
        "names": names,
        "titles": [measure_title(metric) for metric in names["metric"]],
        "directions": [
            "low" if metric.startswith(RETAINED) else CATALOGUE[metric].overfocused if metric in CATALOGUE else "neither"
            for metric in names["metric"]
        ],
        "colours": [colours[model] for model in names["model"]],
    }
