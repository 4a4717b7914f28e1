"""Pieces of one-line messages."""

from collections.abc import Sequence

_LONGEST = 200


def first_line(error: BaseException) -> str:
    """The first line of an error's text, cut where it is very long; its type where it has none."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:_LONGEST]


def some(names: Sequence[str]) -> str:
    """The first three names and how many more there are."""
    if not names:
        return "none"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
