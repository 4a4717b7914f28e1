"""The colour of each class in pictures of segmentations."""

import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

# Grey for class 0, mostly the background, and colours that people with any colour vision tell apart (Okabe–Ito, Tol).
_FIXED = (
    (64, 64, 64), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (51, 34, 136), (136, 204, 238), (17, 119, 51), (153, 153, 51), (136, 34, 85), (221, 204, 119), (68, 170, 153), (170, 68, 153),
)  # fmt: skip
_GOLDEN = 0.618034


def class_colours(class_names: Sequence[str]) -> UInt8[np.ndarray, "classes 3"]:
    """RGB of every class: Cityscapes' where all names are its classes, otherwise from a fixed list.

    Classes beyond the list go round the colour circle by the golden ratio, so that neighbours in number differ.
    """
    from overfocus.datasets.cityscapes import CITYSCAPES

    if all(name in CITYSCAPES for name in class_names):
        return np.array([CITYSCAPES[name][1] for name in class_names], np.uint8).reshape(-1, 3)
    further = [
        [
            round(255 * part)
            for part in colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.55 + 0.15 * (number % 3), 0.95 - 0.2 * (number % 2))
        ]
        for number in range(len(class_names) - len(_FIXED))
    ]
    return np.array([*_FIXED[: len(class_names)], *further], np.uint8).reshape(-1, 3)
