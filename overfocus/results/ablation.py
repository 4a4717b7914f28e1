"""What `ablate` measured, with its answer in words, read back from its run folder."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from overfocus.errors import RunError
from overfocus.files import atomic_file
from overfocus.run import committed_parts, read_run
from overfocus.runs.description import RunDescription
from overfocus.runs.folder import read_table, write_csv
from overfocus.settings import typed
from overfocus.statistics.ablation import AblationAnswer, AblationTables, describe_ablation, tabulate_ablation
from overfocus.text import model_title
from overfocus.variants import CLEAN

if TYPE_CHECKING:
    import pandas as pd


class Ablation:
    """What happens to a model's predictions without the most attended patches, read from the folder that `ablate` wrote.

    Raises:
        RunError: the folder holds no ablation, one that is not finished, or one of another version.
    """

    path: Path
    description: RunDescription
    """The content of run.json."""

    @typed(RunError)
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
        """Name of the model, as `Run.model`."""
        return model_title(self.description.checkpoint.name, self.description.checkpoint.source)

    @property
    def images(self) -> int:
        """Number of images that were measured."""
        return self.description.done - len(self.description.skipped)

    @property
    def how(self) -> str:
        """What was done to the patches: "remove" (from the attention) or "corrupt" (their pixels)."""
        return self.description.settings.how or "remove"

    @property
    def table(self) -> "pd.DataFrame":
        """Means over images per corruption × severity × choice × k.

        Columns: corruption, severity, choice ("top", "random", "bottom" or "mass", random ones of equal mass), k (the most
        attended tokens of each layer, of the first where layers differ; or patches of the image; as many random and least
        attended ones, and about as many or more of equal mass), fraction (of the tokens); and each with the ends _low and _high
        of its 95 % interval: agreement (share of images with the same class as with all tokens), confidence_drop (probability
        that this class loses), output_cosine (with the output for all tokens), clean_agreement (share with the class of the
        clean image with all tokens); count of images. Draws are averaged for each image. Rows with k = 0 stand for all tokens.
        Where patches are corrupted, outputs are compared with that for the clean image, which k = 0 stands for, and the clean
        variant has no rows. Values are NaN where the other patches receive too little for an equal mass.
        """
        return self._tables.table

    @property
    def differences(self) -> "pd.DataFrame":
        """The top patches against the other choices, paired over images.

        Columns: corruption, severity, k, fraction, quantity, against ("random", "bottom" or "mass"), difference, low, high (95 %
        interval), p_value (sign flips, McNemar's exact test for outcomes), count.
        """
        return self._tables.differences

    @property
    def answers(self) -> list[AblationAnswer]:
        """What predictions depend on, in words, for clean images and each corruption; `sentences` has each as one text."""
        return describe_ablation(self._tables, self.model, self.how)

    @property
    def sentences(self) -> list[str]:
        """The answer in words, for clean images and each corruption: what predictions depend on."""
        return [str(answer) for answer in self.answers]

    @cached_property
    def _tables(self) -> AblationTables:
        names = "ablation.parquet", "differences.parquet"
        remedy = "run `overfocus ablate` again"
        return AblationTables(*(read_table(self.path / name, remedy=remedy).to_pandas() for name in names))


def write_tables(folder: Path) -> None:
    """Write what follows from the values of each image: ablation.csv and .parquet, differences.csv and .parquet.

    Raises:
        RunError: the values cannot be read, or a file cannot be written.
    """
    description = read_run(folder)
    parts = committed_parts(folder, "ablation/part", description)
    values = read_table(parts.values(), remedy="start the same command again").to_pandas()
    try:
        if description.settings.how == "corrupt":  # nothing of a clean image is corrupted
            values = values[values["corruption"] != CLEAN]
        tables = tabulate_ablation(values)
        for name, table in (("ablation", tables.table), ("differences", tables.differences)):
            write_csv(folder / f"{name}.csv", table)
            with atomic_file(folder / f"{name}.parquet") as file:
                table.to_parquet(file, index=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: the tables of the ablation cannot be made ({error}); start the same command again") from error
