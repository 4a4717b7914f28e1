"""Sliding windows: a picture larger than the model's input goes through it in overlapping parts.

The grid is that of mmsegmentation, with which the published scores on Cityscapes were measured.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overfocus.segmentation.prediction import upsample

_VALUES_AT_A_TIME = 2**22


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an axis; the last one is moved back inside.

    Raises:
        ValueError: the window is longer than the axis, or the stride than the window: pixels between windows would be left out.

    >>> window_starts(2048, 1024, 768)
    [0, 768, 1024]
    """
    if not 1 <= stride <= window <= length:
        raise ValueError(f"expected 1 ≤ stride ≤ window ≤ length, got stride {stride}, window {window}, length {length}")
    count = max(length - window + stride - 1, 0) // stride + 1
    return [min(number * stride, length - window) for number in range(count)]


def sliding_logits(
    model: nn.Module,
    pictures: Float[Tensor, "batch channels height width"],
    window: tuple[int, int],
    stride: tuple[int, int],
    together: int,
) -> Float[Tensor, "batch classes height width"]:
    """Logits of every pixel: the mean of those of the windows that it lies in, each upsampled to the window's size.

    `together` windows go through the model at a time and are added up in place, so that memory depends on the pictures and on
    `together`, not on the number of windows. `window` and `stride` are (height, width).
    """
    height, width = pictures.shape[2:]
    tops, lefts = window_starts(height, window[0], stride[0]), window_starts(width, window[1], stride[1])
    places = [(number, top, left) for number in range(len(pictures)) for top in tops for left in lefts]
    total: Tensor | None = None
    for start in range(0, len(places), together):
        chosen = places[start : start + together]
        crops = torch.stack([pictures[n, :, top : top + window[0], left : left + window[1]] for n, top, left in chosen])
        logits: Tensor = model(crops)
        if total is None:
            total = torch.zeros(len(pictures), logits.shape[1], height, width, device=logits.device)
        for (number, top, left), part in zip(chosen, logits, strict=True):
            _add_upsampled(total[number, :, top : top + window[0], left : left + window[1]], part)
    assert total is not None  # there is a picture, so there is a window
    # windows form a grid: how many lie on a pixel is the product of how many lie on its row and on its column
    for axis, length, starts in ((2, height, tops), (3, width, lefts)):
        if len(starts) > 1:
            total /= _covering(length, starts, window[axis - 2]).to(total).view(-1, *[1] * (3 - axis))
    return total


def _add_upsampled(place: Float[Tensor, "classes height width"], logits: Float[Tensor, "classes rows columns"]) -> None:
    """Add logits to a part of the total, some classes at a time: what is upsampled stays in the processor's cache."""
    height, width = place.shape[1:]
    step = max(1, _VALUES_AT_A_TIME // (height * width))
    for start in range(0, len(logits), step):
        place[start : start + step] += upsample(logits[None, start : start + step].float(), (height, width))[0]


def _covering(length: int, starts: list[int], window: int) -> Float[Tensor, " length"]:
    """How many windows lie on each place of an axis."""
    count = torch.zeros(length)
    for start in starts:
        count[start : start + window] += 1
    return count
