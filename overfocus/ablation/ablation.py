"""What `ablate` measured, with its answer in words, read back from its run folder."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from overfocus.errors import RunError
from overfocus.files import atomic_file
from overfocus.probes.ablation import CHOICES, QUANTITIES
from overfocus.run import committed_parts, read_run
from overfocus.runs.description import RunDescription

if TYPE_CHECKING:
    import pandas as pd

FRACTION = 0.05
"""The sentences speak of the share of tokens nearest to this one: the top of `top_share`."""

Array = np.ndarray[Any, Any]
_KEYS = ["corruption", "severity", "choice", "k", "fraction"]


@dataclass(frozen=True, eq=False)
class AblationTables:
    """The numbers of an ablation."""

    table: "pd.DataFrame"
    differences: "pd.DataFrame"


class Ablation:
    """What happens to a model's predictions without the most attended tokens, read from the folder that `ablate` wrote.

    Raises:
        RunError: the folder holds no ablation, one that is not finished, or one of another version.
    """

    path: Path
    description: RunDescription
    """The content of run.json."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "run.json").exists():
            raise RunError(f"{path}: expected a folder as `overfocus ablate` writes it, but it holds no run.json")
        self.description = read_run(self.path)
        if self.description.kind != "ablation":
            raise RunError(
                f"{path}: expected an ablation as `overfocus ablate` writes it, but this is an {self.description.kind}"
            )
        if not self.description.complete:
            raise RunError(f"{path}: the ablation is not finished; start the same command again to go on")

    def __repr__(self) -> str:
        return f"Ablation({str(self.path)!r}, model={self.model!r}, images={self.images})"

    @property
    def model(self) -> str:
        """Architecture of the model."""
        return self.description.checkpoint.name

    @property
    def images(self) -> int:
        """Number of images that were measured."""
        return self.description.done - len(self.description.skipped)

    @property
    def table(self) -> "pd.DataFrame":
        """Means over images per corruption × severity × choice × k.

        Columns: corruption, severity, choice ("top", "random" or "bottom"), k (tokens taken out of each layer; of its first
        layer where layers differ), fraction (of the tokens); and each with the ends _low and _high of its 95 % bootstrap
        interval: agreement (share of pictures with the same class as with all tokens), confidence_drop (probability that this
        class loses), output_cosine (with the output for all tokens), clean_agreement (share with the class of the clean
        picture with all tokens); count of images. Rows with k = 0 stand for all tokens.
        """
        return self._tables.table

    @property
    def differences(self) -> "pd.DataFrame":
        """The top tokens against as many random and bottom ones, paired over images.

        Columns: corruption, severity, k, fraction, quantity, against ("random" or "bottom"), difference, low, high (95 %
        bootstrap interval), p_value (Wilcoxon signed-rank test), count.
        """
        return self._tables.differences

    @property
    def sentences(self) -> list[str]:
        """The answer in words, for clean images and each corruption: do predictions hang on the most attended tokens."""
        return describe_answer(self.table, self.differences, self.model)

    @cached_property
    def _tables(self) -> AblationTables:
        import pandas as pd
        import pyarrow

        try:
            names = "ablation.parquet", "differences.parquet"
            return AblationTables(*(pd.read_parquet(self.path / name) for name in names))
        except (OSError, pyarrow.ArrowException) as error:
            raise RunError(
                f"{self.path}: a table of the ablation cannot be read ({error}); run `overfocus ablate` again"
            ) from error


def write_tables(folder: Path, *, resamples: int = 10_000) -> None:
    """Write what follows from the values of each image: ablation.csv and .parquet, differences.csv and .parquet.

    Raises:
        RunError: the values cannot be read, or a file cannot be written.
    """
    import pandas as pd
    import pyarrow

    description = read_run(folder)
    parts = committed_parts(folder, "ablation/part", description)
    try:
        values = pd.concat([pd.read_parquet(path) for path in parts.values()], ignore_index=True)
        tables = tabulate_ablation(values, resamples=resamples)
        for name, table in (("ablation", tables.table), ("differences", tables.differences)):
            with atomic_file(folder / f"{name}.csv") as file:
                table.to_csv(file, index=False)
            with atomic_file(folder / f"{name}.parquet") as file:
                table.to_parquet(file, index=False)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise RunError(f"{folder}: the tables of the ablation cannot be made ({error}); start the same command again") from error


def tabulate_ablation(pictures: "pd.DataFrame", *, resamples: int) -> AblationTables:
    """Means over images with intervals, and the differences between the top tokens and the other choices.

    `pictures` has one row per image × corruption × severity × choice × k, with `QUANTITIES` as columns.
    """
    import pandas as pd

    from overfocus.comparison.bootstrap import bootstrap_intervals

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


def _differences(values: dict[str, Array], table: "pd.DataFrame", resamples: int) -> "pd.DataFrame":
    import pandas as pd

    from overfocus.comparison.paired import paired_differences

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


def describe_answer(table: "pd.DataFrame", differences: "pd.DataFrame", model: str) -> list[str]:
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


def _sentence(row: dict[Any, Any], table: "pd.DataFrame", quantity: str, model: str) -> str:
    from overfocus.comparison.overview import decimal, variant_label

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
