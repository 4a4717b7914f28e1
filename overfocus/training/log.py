"""The log of a training, DIR/log.csv: one row every few steps and at the end of each epoch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfocus.files import atomic_file

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "step", "epoch", "loss", "adl", "adl_weight", "accuracy", "learning_rate", "images_per_second", "waiting",
    "validation_loss", "validation_accuracy", "validation_miou",
)  # fmt: skip
"""step and epoch count what is done; loss is the task's alone (with label smoothing), adl and accuracy those of the training
pictures (of 0 … 1; of pixels, where these have classes), all three means since the row before; validation_miou is the mean
IoU over the classes of the whole validation set; waiting is the share of time that was spent waiting for pictures."""


class Log:
    """Appends rows; those after step `start`, which a killed training left, are taken out first."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        if start == 0 or not path.is_file():
            self._rewrite(",".join(COLUMNS) + "\n")
        else:
            head, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [
                row
                for row in rows
                if row.endswith("\n") and row.partition(",")[0].isdecimal() and int(row.partition(",")[0]) <= start
            ]
            self._rewrite("".join([head, *kept]))

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; columns that it does not have stay empty."""
        cells = [row.get(column) for column in COLUMNS]
        line = ",".join("" if cell is None else f"{cell:.9g}" if isinstance(cell, float) else str(cell) for cell in cells)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _rewrite(self, text: str) -> None:
        with atomic_file(self.path) as file:
            file.write(text.encode())


def read_log(path: Path) -> "pd.DataFrame":
    """The log as a table; NaN where nothing was measured."""
    import pandas as pd

    return pd.read_csv(path)
