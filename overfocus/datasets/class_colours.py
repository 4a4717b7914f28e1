"""The colour of each class in pictures of segmentations."""

import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

CITYSCAPES: dict[str, tuple[int, tuple[int, int, int]]] = {
    "road": (7, (128, 64, 128)), "sidewalk": (8, (244, 35, 232)), "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)), "fence": (13, (190, 153, 153)), "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)), "traffic sign": (20, (220, 220, 0)), "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)), "sky": (23, (70, 130, 180)), "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)), "car": (26, (0, 0, 142)), "truck": (27, (0, 0, 70)), "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)), "motorcycle": (32, (0, 0, 230)), "bicycle": (33, (119, 11, 32)),
}  # fmt: skip
"""The 19 classes in the order of their train ids: number in the files `*_labelIds.png`, and colour."""
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
