"""Which axes of a map hold images, windows and heads: where the image changes, where the place changes."""

import torch
from torch import Tensor

from overfocus.capturing.positions import IMAGE
from overfocus.capturing.sources import Arrangement


def arrange(keys: Tensor) -> Arrangement | None:
    """Which axes in front of the keys hold images, windows and heads: where the image changes, where the place changes."""
    leading = keys.shape[:-1]
    image = torch.where(keys > 0, keys // IMAGE, -1).amax(-1)
    place = torch.where(keys > 0, keys % IMAGE, keys.clamp(max=0))
    images = int(image.max()) + 1
    if images < 1:
        return None
    axes: list[tuple[str, ...]] = []
    sizes: list[tuple[int, ...]] = []
    for axis, size in enumerate(leading):
        images_here = images if images > 1 and not _same(image, axis) else 1
        if size % images_here:
            return None
        line = _line(image, axis)
        steps, rest = torch.arange(size), size // images_here
        known = line >= 0
        image_outside = images_here == 1 or bool((line == steps // rest)[known].all())
        if not image_outside and not bool((line == steps % images_here)[known].all()):
            return None
        block = place.narrow(axis, 0, rest) if image_outside else place.index_select(axis, steps[::images_here])
        names, factors = _windows_and_heads(block, axis)
        if images_here > 1:
            names = ["image", *names] if image_outside else [*names, "image"]
            factors = [-1, *factors] if image_outside else [*factors, -1]
        axes.append(tuple(names))
        sizes.append(tuple(factors))
    if not any("image" in axis for axis in axes):
        return _with_single_image(axes, sizes)
    return Arrangement(tuple(axes), tuple(sizes))


def _windows_and_heads(place: Tensor, axis: int) -> tuple[list[str], list[int]]:
    """How an axis splits into windows, which look at different places, and heads, which look at the same."""
    size = place.shape[axis]
    if size == 1:
        return [], []
    if _same(place, axis):
        return ["head"], [size]
    rows = place.movedim(axis, 0).reshape(size, -1)
    first = (rows == rows[0]).all(1)
    heads = int(first.sum())
    if heads > 1 and size % heads == 0:
        if bool(first[:heads].all()):
            return ["window", "head"], [size // heads, heads]
        if bool(first[:: size // heads].all()):
            return ["head", "window"], [heads, size // heads]
    return ["window"], [size]


def _with_single_image(axes: list[tuple[str, ...]], sizes: list[tuple[int, ...]]) -> Arrangement:
    """With one image in the batch no axis shows which holds images: it is the first, as in every model that we know."""
    axes[0], sizes[0] = ("image", *axes[0]), (-1, *sizes[0])
    return Arrangement(tuple(axes), tuple(sizes))


def _same(ids: Tensor, axis: int) -> bool:
    return bool((ids == ids.narrow(axis, 0, 1)).all())


def _line(image: Tensor, axis: int) -> Tensor:
    """The image at each step of an axis, as seen at the start of the others; −1 where only padding is seen."""
    others = [other for other in range(image.ndim) if other != axis]
    return image.amax(others) if others else image


def padded_alike(arrangement: Arrangement, keys: Tensor) -> bool:
    """Whether the same tokens are padding in every image."""
    padding = Arrangement(arrangement.axes, arrangement.sizes).fold(keys.unsqueeze(-2))[:, 0, 0] == 0
    return bool((padding == padding[:1]).all())
