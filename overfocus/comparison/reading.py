"""A comparison read back from the folder that it was written into."""

import json
from pathlib import Path
from typing import Any

from overfocus.comparison.comparison import FORMAT, Comparison
from overfocus.comparison.differences import EVERY
from overfocus.errors import RunError
from overfocus.run import Run


def is_comparison(folder: str | Path) -> bool:
    """Whether a comparison was written into this folder."""
    return (Path(folder) / "comparison.json").is_file()


def read_comparison(folder: str | Path) -> Comparison:
    """The comparison in a folder, made again from the runs that it rests on.

    Raises:
        RunError: the folder holds no comparison, one of another format, or its runs are gone.
    """
    folder = Path(folder)
    path = folder / "comparison.json"
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if info["format"] != FORMAT:
            raise RunError(f"{path}: written in format {info['format']!r}, this version reads format {FORMAT}; upgrade overfocus")
        models = [(str(model["name"]), str(model["run"])) for model in info["models"]]
        variants = {(str(row["corruption"]), int(row["severity"])) for row in info["table"] if row["severity"]}
        resamples = int(info["resamples"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: expected what `overfocus compare` wrote, but it cannot be read ({error!r})") from error
    return Comparison(
        [Run(_where(run, folder)) for _, run in models],
        [name for name, _ in models],
        corruptions=list(dict.fromkeys(name for name, _ in sorted(variants) if name != EVERY)) or None,
        severities=sorted({severity for _, severity in variants}) or None,
        resamples=resamples,
        path=folder,
    )


def _where(run: str, folder: Path) -> Path:
    """A run's folder; below the comparison's own where both were moved or the working directory is another."""
    inside = folder / "runs" / Path(run).name
    return inside if not Path(run).is_dir() and inside.is_dir() else Path(run)
