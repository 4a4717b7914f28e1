"""The finished evaluation whose errors those of others are divided by."""

from collections.abc import Sequence
from pathlib import Path

from overfocus.corruptions import GROUPS
from overfocus.errors import RunError
from overfocus.evaluation.evaluation import Evaluation
from overfocus.evaluation.plan import EvaluationSettings
from overfocus.evaluation.results import errors_of
from overfocus.evaluation.severities import describe_variants


def is_run(source: str | Path) -> bool:
    """Whether a baseline is a run folder, not a checkpoint."""
    return (Path(source) / "run.json").is_file()


def require_comparable(baseline: Evaluation, images: Sequence[tuple[str, str | None]], settings: EvaluationSettings) -> None:
    """Find out before anything is evaluated whether mCE can be relative to a baseline.

    Raises:
        RunError: it is not finished, saw other pictures or others of their corruptions, or none of the severities.
    """
    where, info = baseline.path, baseline.run.info
    if not baseline.run.complete:
        raise RunError(
            f"{where}: expected a finished evaluation as the baseline, got an interrupted one; let it go on to its end"
        )
    for name, words in {"made": "corruptions", "seed": "seed", "limit": "limit"}.items():
        mine, other = getattr(settings, name), info["settings"][name]
        if mine != other:
            raise RunError(f"{where}: the baseline was evaluated with {words} {other!r}, expected {mine!r}; evaluate it alike")
    if [(image["name"], image["label"]) for image in info["images"]] != list(images):
        raise RunError(f"{where}: the baseline was evaluated on other pictures; evaluate it on the same data")
    wanted = [(name, level) for name in settings.corruptions if name in GROUPS["common"] for level in settings.severities]
    there = list(errors_of(baseline.table)[0])
    if wanted and not set(wanted) & set(there):
        raise RunError(
            f"{where}: the baseline was evaluated under {describe_variants(there)} alone, expected some of "
            f"{describe_variants(wanted)}; evaluate it under the same corruptions and severities"
        )
