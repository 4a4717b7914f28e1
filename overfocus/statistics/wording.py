"""Numbers and names of the tables in words."""

import math

from overfocus.metrics.catalogue import title_of
from overfocus.statistics.fragility import CLEAN_CONFIDENCE, CORRUPTION_ALONE, POOLED
from overfocus.statistics.panel import EVERY
from overfocus.statistics.retained import RETAINED

_GUESSES = {CORRUPTION_ALONE: "Which corruption it is, alone", CLEAN_CONFIDENCE: "Confidence on the clean image"}


def measure_title(name: str) -> str:
    """Name for people of a metric, of what is retained of one, or of a plain guess.

    >>> measure_title("retained.attention_cosine")
    'Retained: attention cosine'
    """
    if name.startswith(RETAINED):
        title = title_of(name.removeprefix(RETAINED))
        return f"Retained: {title if title[1:2].isupper() or title.startswith('Jensen') else title[:1].lower() + title[1:]}"
    return _GUESSES.get(name) or title_of(name)


def variant_label(corruption: str, severity: int) -> str:
    """A variant in words: "clean", "fog 3", "all corruptions"."""
    words = corruption.replace("_", " ")
    if severity:
        return f"{words} {severity}"
    return {EVERY: "all corruptions", POOLED: "all corruptions, pooled"}.get(corruption, words)


def decimal(number: float, *, sign: bool = False, places: int = 3) -> str:
    """With three places after the point, fewer for numbers from 100 on; "–" where undefined."""
    if math.isnan(number):
        return "–"
    places = places if abs(number) < 100 else 1
    number = round(number, places) or 0.0  # no minus in front of zeros
    return format(number, f"{'+' if sign and number else ''}.{places}f").replace("-", "−")


def probability(number: float) -> str:
    """A p-value; "< 0.001" for smaller ones."""
    return "–" if math.isnan(number) else "< 0.001" if number < 0.001 else f"{number:.3f}"


def interval_text(low: float, high: float, *, sign: bool = True, places: int = 3) -> str:
    """The ends of an interval: "−0.200 … −0.100"."""
    return f"{decimal(low, sign=sign, places=places)} … {decimal(high, sign=sign, places=places)}"


def counted(number: int, what: str = "image") -> str:
    """A number of things.

    >>> counted(1), counted(20)
    ('1 image', '20 images')
    """
    return f"{number:,} {what}" + ("" if number == 1 else "s")
