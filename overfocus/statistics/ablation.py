"""What predictions lose without the most attended patches, against controls: means, paired differences and the answer in words.

Patches are removed from attention, or corrupted in the image. Those that receive most attention (`top`) are compared with as many
random ones (`random`), as many of those that receive least (`bottom`), and as many or more random ones that together receive as
much (`mass`). Random choices are drawn several times and averaged for each image first.

1. Is more lost with the top patches than with as many random ones? Otherwise we cannot say that predictions depend on the
   most attended patches.
2. Is more lost than with random ones of equal mass, too? Then predictions depend on what the top patches show: the same
   attention on other patches matters less.
3. Else, where the interval of that difference leaves less than half of the loss of question 1 open, predictions depend on the
   attention: whatever receives as much is missed about as much. Where it leaves more open, the two cannot be distinguished.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from overfocus.statistics.differences import paired_differences
from overfocus.statistics.intervals import holm, mean_interval, rate_interval
from overfocus.statistics.panel import mean_of_known
from overfocus.statistics.verdicts import FEWEST_IMAGES, LEVEL, counted, decimal, interval_text, probability, variant_label
from overfocus.variants import CLEAN

Array = np.ndarray[Any, Any]

QUANTITIES = ("agreement", "confidence_drop", "output_cosine", "clean_agreement")
RATES = ("agreement", "clean_agreement")
CHOICES = ("top", "random", "bottom", "mass")
"""Which patches are chosen: those that receive most attention, any, those that receive least, any that together receive as much
as the top ones."""
CHOICE_WORDS = {
    "top": "the most attended",
    "random": "as many random ones",
    "bottom": "as many least attended ones",
    "mass": "random ones of equal mass",
}
FRACTION = 0.05
"""The sentences speak of a share of tokens near to this one: the top of `top_share`."""
_KEYS = ["corruption", "severity", "choice", "k", "fraction"]


@dataclass(frozen=True, eq=False)
class AblationTables:
    """The numbers of an ablation."""

    table: pd.DataFrame
    differences: pd.DataFrame


def tabulate_ablation(rows: pd.DataFrame) -> AblationTables:
    """Means over images with intervals, and the differences between the top patches and the other choices.

    `rows` has one row per image × corruption × severity × choice × k (× draw), with `QUANTITIES` as columns; k is the number of
    top patches that a choice stands beside. Draws are averaged.
    """
    draws = rows.groupby(["image", *_KEYS], sort=False)[list(QUANTITIES)].mean()
    trials = rows.groupby(["image", *_KEYS], sort=False).size()
    variants = list(dict.fromkeys(zip(rows["corruption"], rows["severity"], strict=True)))
    place = {choice: number for number, choice in enumerate(CHOICES)}
    cells = sorted(
        rows[_KEYS].drop_duplicates().itertuples(index=False, name=None),
        key=lambda cell: (variants.index((cell[0], cell[1])), place[cell[2]], cell[3]),
    )
    columns = pd.MultiIndex.from_tuples(cells, names=_KEYS)
    values = {
        name: draws[name].unstack(_KEYS).reindex(columns=columns).to_numpy("float64", na_value=np.nan) for name in QUANTITIES
    }
    number = trials.unstack(_KEYS).reindex(columns=columns).fillna(0).to_numpy("int64")
    table = pd.DataFrame(cells, columns=_KEYS)
    for name, found in values.items():
        low, high = rate_interval(found, number) if name in RATES else mean_interval(found)
        table[name] = mean_of_known(found, 0)
        table[f"{name}_low"], table[f"{name}_high"] = low, high
    table["count"] = (~np.isnan(values["output_cosine"])).sum(0)
    return AblationTables(table, _differences(values, number, table))


class AblationAnswer(NamedTuple):
    """What an ablation says of one variant, in words."""

    variant: str
    """"clean images" or "fog 3"."""
    claim: str
    """"On fog 3, predictions of vit depend on …"."""
    numbers: str
    """"with the top 3 patches (5 %) removed, …": what the claim rests on."""

    def __str__(self) -> str:
        return f"{self.claim} {self.numbers[0].upper()}{self.numbers[1:]}"


def describe_ablation(tables: AblationTables, model: str, how: str = "remove") -> list[AblationAnswer]:
    """One answer per variant: do predictions depend on the attention, on what the most attended patches show, or on neither.

    The quantity is the share of images that keep their class, or the cosine of the outputs for a model without classifier.
    """
    quantity = "agreement" if tables.table["agreement"].notna().any() else "output_cosine"
    rows = tables.differences[tables.differences["quantity"] == quantity]
    if rows.empty:
        return []
    groups = rows.groupby(["corruption", "severity"], sort=False)
    return [_answer(_at_one_share(group), tables.table, quantity, model, how) for _, group in groups]


def _at_one_share(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one share of tokens, the nearest to `FRACTION`: of those with enough images of equal mass if there are any.

    Where few tokens take most of the attention, the others receive as much as the top ones only where these are very few.
    """
    equal = rows[(rows["against"] == "mass") & (rows["count"] >= FEWEST_IMAGES)]["fraction"]
    fractions = equal if len(equal) else rows["fraction"]
    nearest = min(fractions, key=lambda share: abs(share - FRACTION))
    found: pd.DataFrame = rows.loc[rows["fraction"] == nearest]
    return found


def _differences(values: dict[str, Array], trials: Array, table: pd.DataFrame) -> pd.DataFrame:
    same = ["corruption", "severity", "k", "fraction"]
    top = table[(table["choice"] == "top") & (table["k"] > 0)].reset_index(names="place")
    frames = []
    for against in CHOICES[1:]:
        others = table[table["choice"] == against].reset_index(names="other")[[*same, "other"]]
        pairs = top[[*same, "place"]].merge(others, on=same)
        if pairs.empty:
            continue
        first, second = pairs["place"].to_numpy(), pairs["other"].to_numpy()
        for name, found in values.items():
            number = np.maximum(trials[:, first], trials[:, second])
            paired = paired_differences(found[None][:, :, first], found[None][:, :, second], rates=name in RATES, trials=number)
            frame = pairs[same].assign(quantity=name, against=against)
            for column in ("difference", "low", "high", "p_value", "count"):
                frame[column] = getattr(paired, column)
            frames.append(frame[frame["count"] > 0])
    return pd.concat(frames, ignore_index=True)


def _answer(rows: pd.DataFrame, table: pd.DataFrame, quantity: str, model: str, how: str) -> AblationAnswer:
    rows = rows.assign(p_adjusted=holm(rows["p_value"].to_numpy("float64", na_value=np.nan))).set_index("against")
    first = rows.iloc[0]
    here = (table["corruption"] == first["corruption"]) & (table["severity"] == first["severity"])
    found = table[here & (table["k"] == first["k"])].set_index("choice")[quantity]
    variant = "clean images" if first["corruption"] == CLEAN else variant_label(first["corruption"], first["severity"])
    done = "removed" if how == "remove" else "corrupted"
    measured = "the share of images that keep their class" if quantity == "agreement" else "the mean cosine with the usual output"
    numbers = "; ".join(
        f"{decimal(found[choice])} with {CHOICE_WORDS[str(choice)]} (difference {decimal(row['difference'], sign=True)}, 95 % "
        f"interval {interval_text(row['low'], row['high'])}, p {probability(row['p_adjusted'])} after Holm over {len(rows)}"
        f"{'' if row['count'] == first['count'] else ', ' + counted(int(row['count']))})"
        for choice, row in rows.iterrows()
    )
    patches = f"the top {first['k']} patches" if first["k"] > 1 else "the top patch"
    return AblationAnswer(
        variant,
        f"On {variant}, {_claim(rows, int(first['count']), f'predictions of {model}')}.",
        f"with {patches} ({100 * first['fraction']:.0f} %) {done}, {measured} is {decimal(found['top'])}; it is {numbers}.",
    )


def _claim(rows: pd.DataFrame, images: int, predictions: str) -> str:
    """The answer, to follow "On fog 3, "; `predictions` says whose."""
    if images < FEWEST_IMAGES:
        few = "is" if images == 1 else "are"
        return f"{counted(images)} {few} too few to tell what {predictions} depend on, at least {FEWEST_IMAGES} are needed"
    if "random" not in rows.index:
        return f"we cannot tell what {predictions} depend on without random patches beside the most attended ones"
    if _sure(rows, "random", 1):
        return f"{predictions} depend less on the most attended patches than on random ones"
    if not _sure(rows, "random", -1):
        return f"we cannot tell whether {predictions} depend more on the most attended patches than on random ones"
    if "mass" not in rows.index or int(rows["count"]["mass"]) < FEWEST_IMAGES:  # often the others receive too little
        return (
            f"{predictions} depend on the most attended patches; we cannot tell whether on their attention or on what they show, "
            "because in too few images the others together receive as much"
        )
    if _sure(rows, "mass", -1):
        return f"{predictions} depend on what the most attended patches show: losing others of equal attention costs less"
    if _sure(rows, "mass", 1):
        return f"{predictions} depend on the attention: losing others that receive as much, more in number, costs even more"
    if rows["low"]["mass"] > rows["difference"]["random"] / 2:
        return f"{predictions} depend on the attention: losing others that receive as much costs about as much"
    return (
        f"{predictions} depend on the most attended patches; from {counted(images)} we "
        "cannot tell whether on their attention or on what they show"
    )


def _sure(rows: pd.DataFrame, against: str, sign: int) -> bool:
    """Whether the difference to a choice surely has this sign."""
    row = rows.loc[against]
    return bool(row["p_adjusted"] < LEVEL and min(sign * row["low"], sign * row["high"]) > 0)
