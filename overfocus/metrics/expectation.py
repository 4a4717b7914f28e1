"""What a metric would be where attention is uniform, and by chance: the lines that a measured value is read against."""

import math

from overfocus.metrics.catalogue import CATALOGUE


def top_count(tokens: int, top_fraction: float) -> int:
    """Number of tokens that count as the most attended: k = max(1, round(f·N)).

    Raises:
        ValueError: `top_fraction` is not in (0, 1].
    """
    if not 0 < top_fraction <= 1:
        raise ValueError(f"expected top_fraction in (0, 1], got {top_fraction}; 0.05 takes the top twentieth of the tokens")
    return max(1, round(top_fraction * tokens))


def uniform_value(
    name: str,
    tokens: int,
    *,
    prefix_tokens: int = 0,
    grid: tuple[int, int] | None = None,
    top_fraction: float = 0.05,
) -> float:
    """Value of metric `name` where each query spreads its attention evenly over all keys; NaN where it has none.

    `tokens` is the number N of patch tokens; `grid` their (rows, columns), which attention_distance needs.

    >>> round(uniform_value("top_share", 196), 3)
    0.051
    """
    if name not in CATALOGUE:
        raise ValueError(f"expected a metric, one of {', '.join(CATALOGUE)}; got {name!r}")
    if name == "top_share":
        return top_count(tokens, top_fraction) / tokens
    if name == "prefix_share":
        return prefix_tokens / (prefix_tokens + tokens)
    if name == "attention_distance":
        return mean_distance(grid) if grid else math.nan
    if tokens == 1 and name in ("row_entropy", "token_cosine"):
        return math.nan
    text = CATALOGUE[name].uniform
    return math.nan if text == "undefined" else float(text)


def chance_level(name: str, tokens: int, *, top_fraction: float = 0.05) -> float:
    """Value of metric `name` for an uninformed guess among `tokens` patch tokens; NaN where there is no such level.

    >>> round(chance_level("top_overlap", 196), 3)
    0.051
    """
    if name not in CATALOGUE:
        raise ValueError(f"expected a metric, one of {', '.join(CATALOGUE)}; got {name!r}")
    if name == "top_overlap":
        return top_count(tokens, top_fraction) / tokens
    return 0.0 if name == "rank_correlation" else math.nan


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
