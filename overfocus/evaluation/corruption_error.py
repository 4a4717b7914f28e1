"""mCE and relative mCE, and what they are relative to.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from overfocus.corruptions import GROUPS, ConstantSet, describe_approximations, describe_constants
from overfocus.evaluation.layouts import TREE
from overfocus.runs.description import Pixels


def describe_levels(levels: Sequence[int]) -> str:
    """Ascending severities in words.

    >>> describe_levels([1, 2, 3, 4, 5]), describe_levels([2, 4])
    ('1–5', '2, 4')
    """
    whole = len(levels) > 2 and list(levels) == list(range(levels[0], levels[-1] + 1))
    return f"{levels[0]}–{levels[-1]}" if whole else ", ".join(map(str, levels))


def describe_variants(variants: Iterable[tuple[str, int]]) -> str:
    """Corruptions, each with its severities.

    >>> describe_variants([("fog", 1), ("snow", 2), ("fog", 3)])
    'fog (1, 3), snow (2)'
    """
    levels: dict[str, list[int]] = {}
    for name, level in variants:
        levels.setdefault(name, []).append(level)
    return ", ".join(f"{name.replace('_', ' ')} ({describe_levels(sorted(found))})" for name, found in levels.items())


ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640,
    "defocus_blur": 0.819880, "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360,
    "snow": 0.866816, "frost": 0.826572, "fog": 0.819324, "brightness": 0.564592,
    "contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
"""Top-1 errors of AlexNet on ImageNet-C, mean over the five severities, as the benchmark's authors published them."""
ALEXNET_CLEAN_ERROR = 0.435
"""Top-1 error of the same AlexNet on ImageNet, from the paper's table 1."""
_NOT_PUBLISHED = {
    "on-the-fly": "; images were corrupted on the fly, so it is close to but not the published benchmark",
    TREE: "; the tree does not hold ImageNet-C's corruptions alone, so it may not be the published benchmark",
}
"""What to say where the images are not those of AlexNet's errors, by how the corruptions were made."""

Errors = Mapping[tuple[str, int], float]
"""Share of wrong predictions by (corruption, severity)."""
Divisor = tuple[str, Errors, float | None]
"""What errors are divided by: a name, its errors, and its error without corruption if it was measured."""
_ALEXNET: Divisor = (
    "AlexNet",
    {(name, severity): error for name, error in ALEXNET_ERRORS.items() for severity in range(1, 6)},
    ALEXNET_CLEAN_ERROR,
)
"""Its means over severities as if each severity had them: only their sum counts."""


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
    """What mCE is and is not, or why there is none."""
    relative_note: str
    """Why relative mCE is not defined where mCE is; else empty."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def corruption_error(
    errors: Errors,
    clean: float | None,
    *,
    made: str,
    imagenet: bool,
    baseline: Divisor | None,
    constants: ConstantSet | None = None,
    pixels: Pixels | None = None,
    tree_geometry: str | None = None,
) -> CorruptionError:
    """CE over those of the 15 common corruptions that were measured.

    AlexNet's published errors divide only where the classes are ImageNet's, all five severities were measured and the constants
    are ImageNet-C's; else those of the baseline, at those severities of each corruption at which both were measured; else nothing
    does. The note says which, how images of a tree were brought to the model's input, and which corruptions made here are
    approximations.

    Args:
        errors: of the model.
        clean: its error without corruption, if measured.
        made: how the corruptions were made, such as "ImageNet-C" or "on-the-fly".
        imagenet: whether the model has ImageNet's 1000 classes and the images are labelled with them.
        baseline: what to divide by where AlexNet does not fit.
        constants: those of corruptions made on the fly.
        pixels: the size at which they were made, or to which images of a tree were brought.
        tree_geometry: "as-is" or "model", of a tree.
    """
    measured = {name: [level for level in range(1, 6) if (name, level) in errors] for name in GROUPS["common"]}
    measured = {name: levels for name, levels in measured.items() if levels}
    if not measured:
        return _undefined("none of the 15 common corruptions was measured")
    whole = all(levels == [1, 2, 3, 4, 5] for levels in measured.values())
    others_constants = made == "on-the-fly" and constants not in (None, "imagenet-c")
    if imagenet and whole and not others_constants:
        by, others, other_clean = _ALEXNET
        relation = "relative to AlexNet's published errors on ImageNet-C" + _NOT_PUBLISHED.get(made, "")
    elif baseline is not None:
        by, others, other_clean = baseline
        relation = f"relative to {by}, not to AlexNet"
    else:
        why = "AlexNet's errors are those of ImageNet's classes"
        if imagenet:
            why = "AlexNet's errors are those with ImageNet-C's constants" if whole else "severities 1 to 5 were not all measured"
        return _undefined(f"{why}, and there is no baseline to divide by; give one")
    shared = {name: [level for level in levels if (name, level) in others] for name, levels in measured.items()}
    shared = {name: levels for name, levels in shared.items() if levels}
    if not shared:
        return _undefined(f"{by} was measured under none of these corruptions at these severities")
    left_out = [(name, level) for name, levels in measured.items() for level in levels if (name, level) not in others]
    note = f"over {_extent(shared)}, {made}{describe_tree(tree_geometry, pixels)}"
    if made == "on-the-fly" and constants is not None:
        side = min(int(pixels.height), int(pixels.width)) if pixels is not None else 224
        note += f", {describe_constants(constants, side)}"
    note += f"; {relation}"
    if made == "on-the-fly" and (approximations := describe_approximations(shared, constants or "imagenet-c")):
        note += f"; {approximations}" + (", AlexNet's errors are those on the benchmark" if by == "AlexNet" else "")
    if left_out:
        note += f"; left out, as {by} was not measured there: {describe_variants(left_out)}"
    own = {name: sum(errors[name, level] for level in levels) for name, levels in shared.items()}
    base = {name: sum(others[name, level] for level in levels) for name, levels in shared.items()}
    ratios = {name: 100 * own[name] / base[name] for name in shared if base[name] > 0}
    if flawless := [name for name in shared if name not in ratios]:
        note += f"; {by} makes no error under {_listed(flawless)}"
    mce = None if flawless else _mean(list(ratios.values()))
    if clean is None:
        why = "no clean images were measured; give those that the tree was made from (--clean)"
    elif other_clean is None:
        why = f"{by} was measured without clean images; evaluate it with them (--clean)"
    else:
        increases = {name: base[name] - len(levels) * other_clean for name, levels in shared.items()}
        # errors are shares of whole images: what is smaller comes from rounding
        robust = [name for name, increase in increases.items() if increase < 1e-9]
        if not robust:
            relative = _mean([100 * (own[name] - len(shared[name]) * clean) / increases[name] for name in shared])
            return CorruptionError(by, ratios, mce, relative, note, "")
        why = f"{by} makes no more errors under {_listed(robust)} than without"
    return CorruptionError(by, ratios, mce, None, note, f"no relative mCE: {why}")


def describe_tree(geometry: str | None, pixels: Pixels | None) -> str:
    """How images that are corrupted on the disk came to the model's input, to follow a name; empty where none are.

    >>> describe_tree("as-is", None)
    ', images as they are, not cropped'
    """
    if geometry == "as-is":
        size = f" at {pixels.width}×{pixels.height} pixels" if pixels is not None else ""
        return f", images as they are{size}, not cropped"
    crop = pixels.crop_pct if pixels is not None else None
    again = f" to {crop:g}" if crop is not None else ""
    return f", images resized and cropped{again} once more, which the published protocol does not" if geometry == "model" else ""


def _undefined(why: str) -> CorruptionError:
    return CorruptionError("", {}, None, None, f"no mCE and no relative mCE: {why}", "")


def _extent(shared: Mapping[str, list[int]]) -> str:
    """Corruptions and severities in words."""
    names = f"{len(shared)} of the 15 common corruptions" if len(shared) < 15 else "the 15 common corruptions"
    if len({tuple(levels) for levels in shared.values()}) > 1:
        return f"{names}, severities {describe_variants((name, level) for name, levels in shared.items() for level in levels)}"
    levels = next(iter(shared.values()))
    return f"{names}, {'severities' if len(levels) > 1 else 'severity'} {describe_levels(levels)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
