"""Corruptions and their severities in words."""

from collections.abc import Iterable, Sequence


def describe_levels(levels: Sequence[int]) -> str:
    """Ascending severities in words.

    >>> describe_levels([1, 2, 3, 4, 5]), describe_levels([2, 4])
    ('1–5', '2, 4')
    """
    whole = len(levels) > 2 and list(levels) == list(range(levels[0], levels[-1] + 1))
    return f"{levels[0]}–{levels[-1]}" if whole else ", ".join(map(str, levels))


def describe_variants(variants: Iterable[tuple[str, int]]) -> str:
    """Corruptions, each with its severities.

    >>> describe_variants([("fog", 1), ("snow", 2), ("fog", 3)])
    'fog (1, 3), snow (2)'
    """
    levels: dict[str, list[int]] = {}
    for name, level in variants:
        levels.setdefault(name, []).append(level)
    return ", ".join(f"{name.replace('_', ' ')} ({describe_levels(sorted(found))})" for name, found in levels.items())
