"""mCE and relative mCE, and what they are relative to.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from overfocus.corruptions import GROUPS

ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640,
    "defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360,
    "snow": 0.866816, "frost": 0.826572, "fog": 0.819324, "brightness": 0.564592,
    "contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
"""Top-1 errors of AlexNet on ImageNet-C, mean over the five severities, as the benchmark's authors published them."""
ALEXNET_CLEAN_ERROR = 0.435
"""Top-1 error of the same AlexNet on ImageNet, from the paper's table 1."""

Errors = Mapping[tuple[str, int], float]
"""Share of wrong predictions by (corruption, severity)."""


@dataclass(frozen=True)
class CorruptionError:
    """Errors under corruption, each divided by those of something else."""

    relative_to: str
    """"AlexNet" or the name of the baseline; empty where there is nothing to divide by."""
    corruptions: dict[str, float]
    """CE of each corruption, in percent: the sum of errors over severities, divided by that of the other model."""
    mce: float | None
    """Their mean."""
    relative_mce: float | None
    """The same with the increase over the clean error in place of the error."""
    note: str
    """What the number is and is not."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def corruption_error(
    errors: Errors,
    clean: float | None,
    *,
    made: str,
    imagenet: bool,
    baseline: tuple[str, Errors, float | None] | None,
) -> CorruptionError:
    """CE over those of the 15 common corruptions that were measured.

    AlexNet's published errors divide only where the classes are ImageNet's and all five severities were measured; else those of
    the baseline, given as (name, errors, clean error); else nothing does.

    Args:
        errors: of the model.
        clean: its error without corruption, if measured.
        made: how the corruptions were made, such as "ImageNet-C" or "on-the-fly".
        imagenet: whether the model has ImageNet's 1000 classes and the pictures are labelled with them.
        baseline: what to divide by where AlexNet does not fit.
    """
    names = [name for name in GROUPS["common"] if any(corruption == name for corruption, _ in errors)]
    severities = {name: sorted(severity for corruption, severity in errors if corruption == name) for name in names}
    extent = f"{len(names)} of the 15 common corruptions" if len(names) < 15 else "the 15 common corruptions"
    if not names:
        return CorruptionError("", {}, None, None, "no mCE: none of the 15 common corruptions was measured")
    if imagenet and all(found == [1, 2, 3, 4, 5] for found in severities.values()):
        by, others = "AlexNet", _spread_alexnet()
        other_clean: float | None = ALEXNET_CLEAN_ERROR
        note = f"over {extent}, severities 1 to 5, {made}; relative to AlexNet's published errors on ImageNet-C"
        if made != "ImageNet-C":
            note += "; pictures were corrupted on the fly, so it is near to but not the published benchmark"
    elif baseline is not None:
        by, others, other_clean = baseline[0], dict(baseline[1]), baseline[2]
        levels = ", ".join(map(str, sorted({severity for found in severities.values() for severity in found})))
        note = f"over {extent}, severities {levels}, {made}; relative to {by}, not to AlexNet"
    else:
        why = "severities 1 to 5 were not all measured" if imagenet else "AlexNet's errors are those of ImageNet's classes"
        return CorruptionError("", {}, None, None, f"no mCE: {why}, and there is no baseline to divide by; give one")
    shared = {name: [level for level in severities[name] if (name, level) in others] for name in names}
    own = {name: [errors[name, level] for level in levels] for name, levels in shared.items()}
    base = {name: [others[name, level] for level in levels] for name, levels in shared.items()}
    ratios = {name: 100 * sum(own[name]) / sum(base[name]) for name in names if sum(base[name]) > 0}
    relative = None
    if clean is not None and other_clean is not None:
        increases = {
            name: (sum(own[name]) - len(own[name]) * clean, sum(base[name]) - len(base[name]) * other_clean) for name in names
        }
        defined = [100 * mine / other for mine, other in increases.values() if other > 0]
        relative = sum(defined) / len(defined) if len(defined) == len(names) else None
    return CorruptionError(by, ratios, sum(ratios.values()) / len(ratios) if len(ratios) == len(names) else None, relative, note)


def _spread_alexnet() -> dict[tuple[str, int], float]:
    """AlexNet's means over severities as if each severity had them: only their sum counts."""
    return {(name, severity): error for name, error in ALEXNET_ERRORS.items() for severity in range(1, 6)}
