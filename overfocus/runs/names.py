"""A short name for each of several runs, and one for its folder."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from overfocus.text import source_name

if TYPE_CHECKING:
    from overfocus.run import Run


def display_names(runs: Sequence["Run"]) -> tuple[str, ...]:
    """Names that tell runs apart: their architectures, else the names of the checkpoint files, else those of the run folders.

    Where none of these differ for all runs, the architectures are numbered.
    """
    checkpoints = [run.description.checkpoint for run in runs]
    return distinct_names(
        [checkpoint.name for checkpoint in checkpoints],
        [checkpoint.source for checkpoint in checkpoints],
        [run.path.absolute().name for run in runs],
    )


def distinct_names(architectures: Sequence[str], sources: Sequence[str], folders: Sequence[str] = ()) -> tuple[str, ...]:
    """The first of architectures, names of the checkpoint files and folders that differ for all; else numbered: a, a (2)."""
    for names in (architectures, [source_name(source) for source in sources], folders):
        if len(set(names)) == len(architectures) and all(names):
            return tuple(names)
    seen: Counter[str] = Counter()
    unique = []
    for name in architectures:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(unique)


def folder_names(names: Sequence[str]) -> list[str]:
    """Names of the run folders: those given without what a file system may not take; all numbered where two are the same.

    >>> folder_names(["vit", "vit (2)"]), folder_names(["m", "m-3", "m"])
    (['vit', 'vit_(2)'], ['0_m', '1_m-3', '2_m'])
    """
    plain = [re.sub(r"[^\w.()+=-]+", "_", name).strip("._") or "model" for name in names]
    return plain if len(set(plain)) == len(plain) else [f"{number}_{name}" for number, name in enumerate(plain)]
