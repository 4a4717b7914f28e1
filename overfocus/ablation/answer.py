"""The answer of an ablation in words: do predictions hang on the tokens that receive the attention."""

from typing import Any

import pandas as pd

from overfocus.results.overview import decimal, variant_label

FRACTION = 0.05
"""The sentences speak of the share of tokens nearest to this one: the top of `top_share`."""


def describe_answer(table: pd.DataFrame, differences: pd.DataFrame, model: str) -> list[str]:
    """One sentence per version of the images.

    The quantity is the share of pictures that keep their class, or the cosine of the outputs for a model without classifier.
    Predictions hang on the most attended tokens where the interval of its difference to random tokens lies below 0.
    """
    quantity = "agreement" if table["agreement"].notna().any() else "output_cosine"
    rows = differences[(differences["quantity"] == quantity) & (differences["against"] == "random")]
    if not len(rows):
        return []
    fraction = min(rows["fraction"], key=lambda share: abs(share - FRACTION))
    return [_sentence(row, table, quantity, model) for row in rows[rows["fraction"] == fraction].to_dict("records")]


def _sentence(row: dict[Any, Any], table: pd.DataFrame, quantity: str, model: str) -> str:
    here = (table["corruption"] == row["corruption"]) & (table["severity"] == row["severity"]) & (table["k"] == row["k"])
    top, other = (float(table.loc[here & (table["choice"] == choice), quantity].iloc[0]) for choice in ("top", "random"))
    version = "clean images" if row["corruption"] == "clean" else variant_label(row["corruption"], row["severity"])
    if row["low"] > 0:
        claim = "hang less on the most attended tokens than on random ones"
    elif row["high"] < 0:
        claim = "hang on the most attended tokens"
    else:
        claim = "cannot be told to hang on the most attended tokens"
    kept = "keep their class" if quantity == "agreement" else "is the cosine of the outputs"
    numbers = (
        f"without the top {row['k']} ({100 * row['fraction']:.0f} %) {decimal(top)} {kept}, without as many random ones "
        f"{decimal(other)} "
        f"(difference {decimal(row['difference'], sign=True)}, 95 % interval {decimal(row['low'], sign=True)} … "
        f"{decimal(row['high'], sign=True)})"
    )
    return f"On {version}, predictions of {model} {claim}: {numbers}."
