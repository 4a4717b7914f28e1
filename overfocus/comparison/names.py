"""A short name for each run of a comparison."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overfocus.run import Run


def display_names(runs: Sequence["Run"]) -> tuple[str, ...]:
    """Names that tell runs apart: their architectures, else the names of the checkpoint files, else those of the run folders.

    Where none of these differ for all runs, the architectures are numbered.
    """
    architectures = [str(run.info["checkpoint"]["name"]) for run in runs]
    files = [_stem(str(run.info["checkpoint"]["source"])) for run in runs]
    folders = [run.path.absolute().name for run in runs]
    for names in (architectures, files, folders):
        if len(set(names)) == len(names) and all(names):
            return tuple(names)
    return numbered(architectures)


def numbered(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each repeated one with a number behind it: a, a (2), a (3)."""
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(unique)


def _stem(source: str) -> str:
    """A file's name without its endings."""
    name = PurePath(source).name
    for ending in (".tar", ".pth", ".pt", ".safetensors", ".bin", ".ckpt"):
        name = name.removesuffix(ending)
    return name
