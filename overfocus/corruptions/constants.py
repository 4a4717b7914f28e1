"""What the benchmarks apply: names and groups of the corruptions, and their constants for three sizes of images.

Source: the constants are those of the programs with which Hendrycks & Dietterich made ImageNet-C, CIFAR-10-C and Tiny-ImageNet-C
("Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019; github.com/hendrycks/robustness).
"""

import difflib
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np

from overfocus.errors import CorruptionError
from overfocus.settings import shown

GROUPS: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
"""Names of corruptions by group; "common" are the 15 that ImageNet-C's mCE is computed over."""
GROUPS["common"] = GROUPS["noise"] + GROUPS["blur"] + GROUPS["weather"] + GROUPS["digital"]
GROUPS["all"] = GROUPS["common"] + GROUPS["extra"]

CORRUPTIONS: tuple[str, ...] = GROUPS["all"]
"""The 19 names, in ImageNet-C's order."""

SEVERITIES = (1, 2, 3, 4, 5)

ConstantSet = Literal["cifar-c", "tiny-imagenet-c", "imagenet-c"]
"""A benchmark whose constants are applied."""
CONSTANT_SETS: tuple[ConstantSet, ...] = get_args(ConstantSet)

_TITLES: dict[ConstantSet, str] = {"cifar-c": "CIFAR-C", "tiny-imagenet-c": "Tiny-ImageNet-C", "imagenet-c": "ImageNet-C"}
_SIDES: dict[ConstantSet, tuple[int, int]] = {"cifar-c": (1, 48), "tiny-imagenet-c": (49, 96), "imagenet-c": (192, 256)}
"""Shorter sides in pixels, first and last, at which a set's constants are applied without a word."""
_APPROXIMATIONS = frozenset({"motion_blur", "snow"})
"""The benchmarks have these blurred by ImageMagick, which nothing here needs; ours is a sum of shifted images instead."""

Parameters = tuple[float, ...]

CONSTANTS: dict[ConstantSet, dict[str, tuple[Parameters, ...]]] = {
    "imagenet-c": {
        "gaussian_noise": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
        "shot_noise": ((60,), (25,), (12,), (5,), (3,)),
        "impulse_noise": ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
        "speckle_noise": ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,)),
        "gaussian_blur": ((1,), (2,), (3,), (4,), (6,)),
        "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        "frost": ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
        "snow": (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        "spatter": (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        "contrast": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
        "brightness": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
        "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        "jpeg_compression": ((25,), (18,), (15,), (10,), (7,)),
        "pixelate": ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
        "elastic_transform": ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    },
    "cifar-c": {
        "gaussian_noise": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
        "shot_noise": ((500,), (250,), (100,), (75,), (50,)),
        "impulse_noise": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
        "speckle_noise": ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)),
        "gaussian_blur": ((0.4,), (0.6,), (0.7,), (0.8,), (1,)),
        "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        "frost": ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
        "snow": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        "spatter": (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        "contrast": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
        "brightness": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
        "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        "jpeg_compression": ((80,), (65,), (58,), (50,), (40,)),
        "pixelate": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
        "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    },
    "tiny-imagenet-c": {
        "gaussian_noise": ((0.04,), (0.08,), (0.12,), (0.15,), (0.18,)),
        "shot_noise": ((250,), (100,), (50,), (30,), (15,)),
        "impulse_noise": ((0.01,), (0.02,), (0.05,), (0.08,), (0.14,)),
        "speckle_noise": ((0.15,), (0.2,), (0.25,), (0.3,), (0.35,)),
        "gaussian_blur": ((0.5,), (0.75,), (1,), (1.25,), (1.5,)),
        "glass_blur": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        "defocus_blur": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        "motion_blur": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        "fog": ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        "frost": ((1, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
        "snow": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        "spatter": (
            (0.62, 0.1, 0.7, 0.7, 0.6, 0),
            (0.65, 0.1, 0.8, 0.7, 0.6, 0),
            (0.65, 0.3, 1, 0.69, 0.6, 0),
            (0.65, 0.1, 0.7, 0.68, 0.6, 1),
            (0.65, 0.1, 0.5, 0.67, 0.6, 1),
        ),
        "contrast": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
        "brightness": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
        "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
        "jpeg_compression": ((65,), (58,), (50,), (40,), (25,)),
        "pixelate": ((0.9,), (0.8,), (0.7,), (0.6,), (0.5,)),
        "elastic_transform": ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
    },
}
"""By set and corruption, the parameters of severities 1 to 5. What each of them is, the functions of `effects` say.

The last of frost's is the size that the photos of frost are shrunk to; all three of `elastic_transform` are shares of the side.
"""


def choose_constants(side: int) -> ConstantSet:
    """The benchmark whose images are nearest in size: CIFAR-C up to 48 pixels, Tiny-ImageNet-C up to 96, else ImageNet-C.

    `side` is the shorter side, in pixels, of the image at the moment that it is corrupted.

    >>> choose_constants(32), choose_constants(64), choose_constants(224)
    ('cifar-c', 'tiny-imagenet-c', 'imagenet-c')
    """
    if side < 1:
        raise CorruptionError(f"expected the side of an image, at least 1 pixel, got {side}")
    return next((name for name in ("cifar-c", "tiny-imagenet-c") if side <= _SIDES[name][1]), "imagenet-c")


def check_constants(constants: str | None) -> None:
    """Raise `CorruptionError` unless `constants` is the name of a set, or None for the one that fits the side."""
    if constants is not None and not (isinstance(constants, str) and constants in CONSTANT_SETS):
        raise CorruptionError(unknown("set of constants", constants, CONSTANT_SETS))


def describe_constants(constants: ConstantSet, side: int) -> str:
    """What a report calls them; the side is named where the benchmark has images of another size.

    >>> describe_constants("imagenet-c", 224), describe_constants("imagenet-c", 160)
    ('ImageNet-C constants', 'ImageNet-C constants at 160 pixels')
    """
    check_constants(constants)
    first, last = _SIDES[constants]
    return f"{_TITLES[constants]} constants" + ("" if first <= side <= last else f" at {side} pixels")


def is_approximation(name: str, constants: ConstantSet) -> bool:
    """Whether a corruption has the benchmark's constants but not its algorithm: motion blur and snow, in each of the sets."""
    if name not in CORRUPTIONS:
        raise CorruptionError(unknown("corruption", name, CORRUPTIONS))
    check_constants(constants)
    return name in _APPROXIMATIONS


def describe_approximations(names: Iterable[str], constants: ConstantSet) -> str:
    """What to say beside a number that rests on corruptions made here; empty where all of them are the benchmark's own.

    >>> describe_approximations(["fog", "snow"], "imagenet-c")
    'snow approximates the benchmark: its constants, another algorithm'
    """
    found = [name.replace("_", " ") for name in dict.fromkeys(names) if name in CORRUPTIONS and is_approximation(name, constants)]
    verb = "approximate" if len(found) > 1 else "approximates"
    return f"{' and '.join(found)} {verb} the benchmark: its constants, another algorithm" if found else ""


def resolve_corruptions(names: str | Iterable[str]) -> list[str]:
    """Names of corruptions for names and groups mixed, in the order given, each once.

    Raises:
        CorruptionError: a name that is neither; the message lists what there is and suggests the nearest.
    """
    resolved: dict[str, None] = {}
    for name in [names] if isinstance(names, str) else names:
        if name in GROUPS:
            resolved.update(dict.fromkeys(GROUPS[name]))
        elif name in CORRUPTIONS:
            resolved[name] = None
        else:
            raise CorruptionError(unknown("corruption", name, (*CORRUPTIONS, *GROUPS)))
    return list(resolved)


def check_severity(severity: int) -> None:
    """Raise `CorruptionError` unless `severity` is a whole number from 1 to 5."""
    if isinstance(severity, bool) or not isinstance(severity, int | np.integer) or severity not in SEVERITIES:
        raise CorruptionError(f"severity must be a whole number from 1 (weak) to 5 (strong), got {shown(severity)}")


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """One line that lists the valid names and suggests the nearest."""
    known = list(known)
    nearest = difflib.get_close_matches(
        shown(name).strip("'").lower().replace("-", "_").replace(" ", "_"), known, n=1, cutoff=0.5
    )
    suggestion = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"unknown {what} {shown(name)}; {suggestion}Valid names: {', '.join(known)}"
