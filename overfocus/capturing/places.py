"""Positions as whole numbers, and what can be read from a tensor of them.

A position is `image · 2⁴⁰ + grid · 2²⁸ + index + 1`, with `index` in that grid, row-major; 0 is padding, −1 a token that
belongs to no place (class, distillation, register and pooling tokens), −2 one whose position is unknown: a mask token, or the
result of a function that does not keep tokens where they were, −3 a frequency of a Fourier transform, −4 a sum of several places
and −5 of several images. A batch that grows inside the model (several crops, flips) has more images.
"""

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

IMAGE_BITS = 40
GRID_BITS = 28
NOWHERE = -1
UNKNOWN = -2
FREQUENCY = -3
SEVERAL = -4
MIXTURE = -5
IMAGE = 1 << IMAGE_BITS
FAR = torch.iinfo(torch.int64).max


def image_of(ids: Tensor) -> Tensor:
    """Number of the image that positions belong to; only of places."""
    return ids >> IMAGE_BITS


def grid_of(ids: Tensor) -> Tensor:
    """Number of the grid that positions point into; only of places."""
    return (ids >> GRID_BITS) & ((1 << (IMAGE_BITS - GRID_BITS)) - 1)


def index_of(ids: Tensor) -> Tensor:
    """Row-major index in its grid; only of places."""
    return (ids & ((1 << GRID_BITS) - 1)) - 1


def without_image(ids: Tensor) -> Tensor:
    """Positions with the number of the image left out."""
    return torch.where(ids > 0, ids & (IMAGE - 1), ids)


def representative(ids: Tensor, axis: int) -> Tensor:
    """One position per entry along an axis that mixes them: the smallest place, else padding, else no place. Keeps the axis."""
    if ids.shape[axis] == 1:
        return ids
    if ids.stride(axis) == 0:
        return ids.narrow(axis, 0, 1)
    nearest = ids.masked_fill(ids <= 0, FAR).amin(axis, keepdim=True)
    return torch.where(nearest == FAR, ids.amin(axis, keepdim=True), nearest)


def constant(ids: Tensor, axis: int) -> bool:
    """Whether every entry along an axis is the same place."""
    return ids.shape[axis] == 1 or ids.stride(axis) == 0 or bool((ids == ids.narrow(axis, 0, 1)).all())


def moved_cells(ids: Tensor, before: tuple[int, ...], size: tuple[int, ...]) -> tuple[Tensor | None, tuple[int, ...]] | None:
    """Row-major index of the cells (b, *size) that a function makes of mirrored or turned places, and their grid.

    None where the places (b, …), in a grid of size `before`, are in order; no index where they follow no rows and columns.
    """
    cells = ids
    for axis, length in enumerate(size, 1):
        middles = (2 * torch.arange(length, device=ids.device) + 1) * ids.shape[axis] // (2 * length)
        cells = cells.index_select(axis, middles)
    real = cells > 0
    lines = torch.unravel_index(index_of(cells.clamp(min=1)), before)
    if len(before) > len(size):  # frames, say, that have become one axis with others
        lines = tuple(line for line in lines if not bool((line == line.flatten()[0])[real].all()))
    if len(lines) != len(size):
        return None if len(lines) < len(size) else (None, size)
    for axes in permutations(range(len(size))):  # the axis on which each coordinate runs
        found = [
            _steps(line, real, axis + 1, repeated=size[axis] > ids.shape[axis + 1] > 1)
            for line, axis in zip(lines, axes, strict=True)
        ]
        steps = [step for step in found if step is not None]
        if len(steps) < len(found):
            continue
        if all(ascending for _, ascending in steps) and axes == tuple(range(len(size))):
            return None
        if not bool(real.all()):
            return None, size
        grid = tuple(size[axis] for axis in axes)
        index = torch.zeros_like(cells)
        for (ranks, _), axis, length in zip(steps, axes, grid, strict=True):
            shape = [len(cells)] + [length if other == axis else 1 for other in range(len(size))]
            index = index * length + ranks.reshape(shape)
        return index, grid
    return None, size


def _steps(coordinate: Tensor, real: Tensor, axis: int, *, repeated: bool) -> tuple[Tensor, bool] | None:
    """The order (b, n) of the steps along the only axis on which a coordinate runs, and whether it rises; None without one.

    A step may be there several times in a row where the function has `repeated` them (it samples up).
    """
    others = [other for other in range(1, coordinate.ndim) if other != axis]
    line = coordinate.masked_fill(~real, -1).amax(others, keepdim=True) if others else coordinate.masked_fill(~real, -1)
    if not bool(((coordinate == line) | ~real).all()):
        return None
    line = line.flatten(1)
    order, rises = torch.arange(line.shape[1], device=line.device), line[:, 1:] - line.cummax(1).values[:, :-1]
    if bool(((rises > 0) | (repeated & (rises == 0)) | (line[:, 1:] < 0)).all()):
        return order.expand_as(line), True
    if repeated and bool((line.diff(dim=1) <= 0).all()):
        return order.flip(0).expand_as(line), False
    ranks = line.argsort(1).argsort(1)
    return None if bool((line.sort(1).values.diff(dim=1) == 0).any()) else (ranks, False)


def renumber(index: Tensor, real: Tensor, size: tuple[int, ...]) -> tuple[Tensor, list[Tensor]] | None:
    """Row-major index among the rows and columns that occur, and these; None where not all of their crossings do.

    `index` points into a grid of `size` where `real`.
    """
    lines = [torch.unique(line) for line in torch.unravel_index(index[real], size)]
    if cell_count(tuple(map(len, lines))) != torch.unique(index[real]).numel():
        return None
    found = torch.zeros_like(index)
    for line, coordinate in zip(lines, torch.unravel_index(index.clamp(min=0), size), strict=True):
        found = found * len(line) + torch.searchsorted(line, coordinate.contiguous())
    return found, lines


def unrepeated(ids: Tensor) -> Tensor:
    """Positions with axes along which they are the same, because they were expanded, as one."""
    for axis, stride in enumerate(ids.stride()):
        if stride == 0 and ids.shape[axis] > 1:
            ids = ids.narrow(axis, 0, 1)
    return ids


def flattened(ids: Tensor) -> Tensor:
    """The same positions, those along an axis of one value stored once."""
    compact = ids
    for axis in reversed(range(ids.ndim)):
        last = compact.shape[axis] - 1
        if last > 0 and torch.equal(compact.select(axis, 0), compact.select(axis, last)) and constant(compact, axis):
            compact = compact.narrow(axis, 0, 1)
    return ids if compact is ids else compact.clone().expand(ids.shape)


def of_one_image(ids: Tensor, axes: Sequence[int]) -> bool:
    """Whether the entries along axes are of one image each."""
    image = image_of(ids.clamp(min=0))
    return bool((image.masked_fill(ids <= 0, -1).amax(tuple(axes)) <= image.masked_fill(ids <= 0, FAR).amin(tuple(axes))).all())


def cell_count(size: tuple[int, ...]) -> int:
    count = 1
    for side in size:
        count *= side
    return count


def everywhere(output: Tensor, position: int) -> Tensor:
    return torch.full((1,) * output.ndim, position, device=output.device).expand(output.shape)


def mixes_all(ids: Tensor, axis: int) -> bool:
    """Whether the places along an axis, which a function mixes, are those of the whole image: nothing of them is left."""
    if constant(ids, axis):
        return False
    image = ids[:1]
    return place_count(representative(image, axis)) <= 1 < place_count(image)


def is_batch(ids: Tensor) -> bool:
    """Whether the first axis holds the images of a batch, one each."""
    images = entry_images(ids)
    return bool((images >= 0).all()) and len(set(images.tolist())) == len(images)


def entry_images(ids: Tensor) -> Tensor:
    """The image of each entry of the first axis; −1 where there are several or none."""
    flat = ids.flatten(1)
    images = torch.where(flat > 0, image_of(flat), -1)
    highest = images.amax(1)
    lowest = torch.where(images < 0, FAR, images).amin(1)
    return torch.where(highest == lowest, highest, -1)


def same_places(ids: Tensor, images: Tensor) -> bool:
    """Whether entries of one image all show the same places: copies of it, not parts."""
    places = without_image(ids).reshape(ids.shape[0], -1)
    first = {int(number): place for place, number in reversed(list(enumerate(images.flatten().tolist())))}
    return all(torch.equal(places[place], places[first[int(number)]]) for place, number in enumerate(images.flatten().tolist()))


def place_count(ids: Tensor) -> int:
    return int(torch.unique(ids[ids > 0]).numel())


def first_of_runs(ids: Tensor, axis: int, size: int) -> Tensor:
    """The first entry of each of `size` runs along an axis."""
    run = max(ids.shape[axis] // max(size, 1), 1)
    starts = (torch.arange(size, device=ids.device) * run).clamp(max=ids.shape[axis] - 1)
    return ids.index_select(axis, starts)
