"""What the report needs to know of a layer: how many patch tokens it has, and how they lie on the image."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from overfocus.metrics.expectation import top_count

if TYPE_CHECKING:
    from overfocus.run import Run


@dataclass(frozen=True)
class Layer:
    """One captured layer of the run."""

    number: int
    module: str
    kind: str
    branch: str | None
    tokens: int
    """N, the patch tokens among the keys of one window."""
    top: int
    """k, the most attended tokens that are counted."""
    windows: int
    key_prefix_tokens: int
    """Class, distillation and register tokens among the keys."""
    grid: tuple[int, int] | None
    key_grid: tuple[int, int] | None
    image_grid: tuple[int, int] | None
    top_fraction: float

    @property
    def label(self) -> str:
        """Number, module and branch: "7 · blocks.7.attn"."""
        return f"{self.number} · {self.module}" + (f" ({self.branch})" if self.branch else "")

    @property
    def uniform_share(self) -> float:
        """top_share of uniform attention, k/N."""
        return self.top / self.tokens

    def excess(self, top_share: float) -> float:
        """top_share rescaled so that uniform attention is 0 and all attention on the top tokens 1; NaN where these are equal."""
        return math.nan if self.top == self.tokens else (top_share - self.uniform_share) / (1 - self.uniform_share)


def layers_of(run: "Run") -> list[Layer]:
    """The layers of a run, in the order in which the model called them."""
    fraction = float(run.info["settings"]["top_fraction"])
    layers = []
    for row in run.info["layers"]:
        grids = {name: pair(row[name]) for name in ("grid", "key_grid", "image_grid")}
        prefix = int(row["key_prefix_tokens"])
        tokens = int(row["keys"]) - prefix
        layers.append(
            Layer(
                number=int(row["layer"]),
                module=str(row["module"]),
                kind=str(row["kind"]),
                branch=row["branch"],
                tokens=tokens,
                top=top_count(tokens, fraction),
                windows=int(row["windows"]),
                key_prefix_tokens=prefix,
                top_fraction=fraction,
                **grids,
            )
        )
    return layers


def pair(values: Any) -> tuple[int, int] | None:
    """Rows and columns of a grid as they were read from JSON."""
    return (int(values[0]), int(values[1])) if values else None
