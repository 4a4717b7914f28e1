"""What `ablate` measured, with its answer in words, and how it lies in a folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfocus.errors import RunError
from overfocus.files import atomic_file

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
"""Version of ablation.json."""
QUANTITIES = ("agreement", "confidence_drop", "output_cosine", "clean_agreement")
CHOICES = ("top", "random", "bottom")
"""Which tokens are taken out: those that receive most attention, any, those that receive least."""


@dataclass(frozen=True, eq=False)
class AblationTables:
    """The numbers of an ablation."""

    table: "pd.DataFrame"
    differences: "pd.DataFrame"


class Ablation:
    """What happens to a model's predictions without the most attended tokens, read from the folder that `ablate` wrote.

    Raises:
        RunError: the folder holds no ablation, or one of a newer version.
    """

    path: Path
    info: dict[str, Any]
    """The content of ablation.json: model, settings, images, notes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info = _read_info(self.path)
        self._tables = _read_tables(self.path)

    def __repr__(self) -> str:
        return f"Ablation({str(self.path)!r}, model={self.model!r}, images={self.info['images']})"

    @property
    def model(self) -> str:
        """Architecture of the model."""
        return str(self.info["checkpoint"]["name"])

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
        from overfocus.ablation.answer import describe_answer

        return describe_answer(self.table, self.differences, self.model)


def write_ablation(folder: Path, info: dict[str, Any], tables: AblationTables) -> Ablation:
    """Write an ablation: ablation.csv and .parquet, differences.csv and .parquet, ablation.json last.

    Raises:
        RunError: a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in (("ablation", tables.table), ("differences", tables.differences)):
            with atomic_file(folder / f"{name}.csv") as file:
                table.to_csv(file, index=False)
            with atomic_file(folder / f"{name}.parquet") as file:
                table.to_parquet(file, index=False)
        with atomic_file(folder / "ablation.json") as file:
            file.write(json.dumps({"format": FORMAT, "kind": "ablation"} | info, indent=1, ensure_ascii=False).encode())
    except OSError as error:
        raise RunError(f"{folder}: the ablation cannot be written ({error.strerror or error}); choose another output") from error
    return Ablation(folder)


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / "ablation.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{folder}: expected a folder as `overfocus ablate` writes it, but it holds no ablation.json") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: expected the description of an ablation, but it cannot be read ({error})") from None
    if not isinstance(info, dict) or info.get("kind") != "ablation":
        raise RunError(f"{path}: expected the description of an ablation, but this file is something else")
    if info.get("format") != FORMAT:
        raise RunError(f"{path}: written in format {info.get('format')!r}, this version reads format {FORMAT}; upgrade overfocus")
    return info


def _read_tables(folder: Path) -> AblationTables:
    import pandas as pd
    import pyarrow

    try:
        return AblationTables(pd.read_parquet(folder / "ablation.parquet"), pd.read_parquet(folder / "differences.parquet"))
    except (OSError, pyarrow.ArrowException) as error:
        raise RunError(f"{folder}: a table of the ablation cannot be read ({error}); run `overfocus ablate` again") from error
