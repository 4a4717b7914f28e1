"""Where the tokens of a map lie on the image: their order, their grid, and how windows tile it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from overfocus.capturing.positions import IMAGE
from overfocus.capturing.sources import Arrangement


@dataclass(frozen=True, eq=False)
class TokenPlaces:
    """Places of the tokens along one axis of a map, per window of the first image."""

    places: Tensor
    """(windows, tokens): row-major place in the image grid, −1 for prefix and −2 for padding, in the model's order."""
    grid: tuple[int, int] | None
    """The image grid that `places` points into."""
    keeps_padding: bool
    """Whether padding is attended, so that it has to stay."""

    @property
    def prefix(self) -> Tensor:
        return (self.places == -1).all(0)

    def order(self) -> Tensor | None:
        """Prefix tokens first, patches row by row; None where tokens already are in that order, or windows have no common one."""
        if not self.keeps_padding:
            kept = torch.nonzero(self.places[0] != -2).squeeze(1)
            order = kept[torch.argsort(self.places[0, kept], stable=True)]
            return None if torch.equal(order, torch.arange(self.places.shape[1])) else order
        whole = self.places[(self.places != -2).all(1)]
        if len(whole) == 0:
            return None
        order = torch.argsort(whole[0], stable=True)
        ascending = bool((whole[:, order].diff(dim=1)[:, int(self.prefix.sum()) :] > 0).all())
        in_order = bool((order == torch.arange(len(order))).all())
        return order if ascending and not in_order else None

    def ordered(self) -> Tensor:
        order = self.order()
        return self.places if order is None else self.places[:, order]


def token_places(arrangement: Arrangement, ids: Tensor, grid: tuple[int, int] | None, *, keeps_padding: bool) -> TokenPlaces:
    folded = Arrangement(arrangement.axes, arrangement.sizes).fold(ids.unsqueeze(-2))[:, 0, 0]
    folded = folded[: arrangement.windows]
    places = torch.where(folded > 0, folded % IMAGE - 1, torch.where(folded == 0, -2, -1))
    return TokenPlaces(*_regular(places, grid), keeps_padding)


def _regular(places: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, tuple[int, int] | None]:
    """Number places anew where they are a regular part of the grid (every second row and column, say)."""
    real = places[places >= 0]
    if grid is None or real.numel() == 0:
        return places, grid
    rows, columns = torch.unique(real // grid[1]), torch.unique(real % grid[1])
    if len(rows) == grid[0] and len(columns) == grid[1]:
        return places, grid
    if len(rows) * len(columns) != torch.unique(real).numel():
        return places, None
    kept = places.clamp(min=0).contiguous()
    index = torch.searchsorted(rows, kept // grid[1]) * len(columns) + torch.searchsorted(columns, kept % grid[1])
    return torch.where(places >= 0, index, places), (len(rows), len(columns))


def cell_grid(places: Tensor, grid: tuple[int, int] | None) -> tuple[int, int] | None:
    """(rows, columns) of one window's tokens in their order, or None where they form no row-major grid."""
    window = places[(places >= 0).sum(1).argmax()]
    index = torch.nonzero(window >= 0).squeeze(1)
    if grid is None or len(index) == 0:
        return None
    row = torch.unique(window[index] // grid[1], return_inverse=True)[1]
    column = torch.unique(window[index] % grid[1], return_inverse=True)[1]
    tokens, columns = len(window), int(column.max()) + 1
    if len(index) < tokens:  # padding lengthens the rows: the second one shows by how much
        columns = int((index[row == 1] - index[0])[0]) if bool((row == 1).any()) else 0
    if columns < 1 or tokens % columns or not torch.equal(index - index[0], row * columns + column):
        return None
    return tokens // columns, columns


def branch_of(places: Tensor, grid: tuple[int, int] | None) -> str | None:
    """How windows lie: "shifted" off the tiling that starts at the corner, "grid" where a window's tokens are strided."""
    real = places[places >= 0]
    if grid is None or not bool((places >= 0).any(1).all()) or len(real) != len(torch.unique(real)):
        return None
    spans, edges = [], []
    for window in places:
        real = window[window >= 0]
        rows, columns = torch.unique(real // grid[1]), torch.unique(real % grid[1])
        spans.append((len(rows), int(rows[-1] - rows[0]) + 1, len(columns), int(columns[-1] - columns[0]) + 1))
        edges.append((int(rows[0]), int(columns[0])))
    if all(rows < row_span or columns < column_span for rows, row_span, columns, column_span in spans):
        return "grid"
    height, width = max(span[0] for span in spans), max(span[2] for span in spans)
    whole = [edge for edge, span in zip(edges, spans, strict=True) if span == (height, height, width, width)]
    return "shifted" if any(row % height or column % width for row, column in whole) else None
