"""Values in symbols, such as "k/N", and what they come to in a layer: the ends of a range, uniform attention, chance."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

TOP_FRACTION = 0.05
"""f of k = max(1, round(f·N)), unless asked otherwise."""

_NUMBER = re.compile(r"[−-]?\d+(\.\d+)?")


@dataclass(frozen=True)
class TokenCounts:
    """What the value of a symbol depends on."""

    tokens: int
    """N, the patch tokens."""
    prefix_tokens: int = 0
    grid: tuple[int, int] | None = None
    """(rows, columns) of the patches."""
    top_fraction: float = TOP_FRACTION

    @property
    def top(self) -> int:
        """k, the number of tokens that count as the most attended."""
        return top_count(self.tokens, self.top_fraction)


class Level(str):
    """A value in symbols, which is its text, and how it is computed: "k/N", "1", "undefined".

    >>> Level("k/N", lambda counts: counts.top / counts.tokens).value(TokenCounts(20))
    0.05
    >>> Level("−1").number
    -1.0
    """

    _computed: Callable[[TokenCounts], float] | None

    def __new__(cls, text: str, computed: Callable[[TokenCounts], float] | None = None) -> "Level":
        level = super().__new__(cls, text)
        level._computed = computed
        return level

    @property
    def number(self) -> float:
        """The value where it is the same for every layer; NaN where it depends on the layer or there is none."""
        return float(self.replace("−", "-")) if _NUMBER.fullmatch(self) else math.nan

    def value(self, counts: TokenCounts) -> float:
        """The value in a layer with that many tokens; NaN where there is none."""
        return self.number if self._computed is None else self._computed(counts)


def top_count(tokens: int, top_fraction: float) -> int:
    """Number of tokens that count as the most attended: k = max(1, round(f·N)).

    Raises:
        ValueError: `top_fraction` is not in (0, 1].
    """
    if not 0 < top_fraction <= 1:
        raise ValueError(f"expected top_fraction in (0, 1], got {top_fraction}; 0.05 takes the top twentieth of the tokens")
    return max(1, round(top_fraction * tokens))


def mean_distance(grid: tuple[int, int]) -> float:
    """Mean Euclidean distance, in patches, between two patches of a (rows, columns) grid that are drawn independently."""
    rows, columns = grid
    total = 0.0
    for down in range(rows):
        for right in range(columns):
            # a displacement of (down, right) fits (rows - down)(columns - right) times, and as often in each mirrored direction
            mirrored = (1 if down == 0 else 2) * (1 if right == 0 else 2)
            total += mirrored * (rows - down) * (columns - right) * math.hypot(down, right)
    return total / (rows * columns) ** 2
