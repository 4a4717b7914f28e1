"""Where the time of a run goes."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PARTS = ("forward", "capture", "waiting", "normalising", "writing")
"""The model; attention weights and metrics beside it; waiting for corrupted pictures; bringing them to the model; files."""


class Stopwatch:
    """Adds up seconds by part, on top of those of earlier sessions of the same run."""

    def __init__(self, before: Mapping[str, float]) -> None:
        self._seconds = {part: float(before.get(part, 0.0)) for part in PARTS}
        self._began = time.perf_counter() - float(before.get("seconds", 0.0))

    @contextmanager
    def on(self, part: str, inside: str | None = None) -> Iterator[None]:
        """Count the time of the block as that of `part`; taken off that of the part `inside` which it interrupts."""
        began = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - began
            self._seconds[part] += elapsed
            if inside is not None:
                self._seconds[inside] -= elapsed

    def add(self, part: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        self._seconds[part] += seconds

    def leave_out(self, seconds: float) -> None:
        """Take seconds off the total, in which other runs were at work."""
        self._began += seconds

    def timing(self, images: int, pictures: int) -> dict[str, float]:
        """Seconds in total and by part, and the speed over `images` in all their variants, `pictures` together."""
        seconds = time.perf_counter() - self._began
        parts = {part: round(value, 3) for part, value in self._seconds.items()}
        speed = {"images_per_second": round(images / seconds, 3), "pictures_per_second": round(pictures / seconds, 3)}
        return {"seconds": round(seconds, 3)} | parts | speed
