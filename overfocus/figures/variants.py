"""The versions of an image that a run holds: the clean one and each corruption at each severity."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from overfocus.variants import OTHER_IMAGE

if TYPE_CHECKING:
    from overfocus.run import Run


@dataclass(frozen=True, order=True)
class Variant:
    """One version of every image; `severity` is 0 for the clean one."""

    corruption: str
    severity: int

    @property
    def label(self) -> str:
        """In words: "clean" or "gaussian noise 3"."""
        return f"{self.name} {self.severity}" if self.severity else "clean"

    @property
    def words(self) -> str:
        """For sentences: "gaussian noise at severity 3"."""
        return f"{self.name} at severity {self.severity}" if self.severity else "clean images"

    @property
    def name(self) -> str:
        """The corruption with spaces."""
        return self.corruption.replace("_", " ")


CLEAN = Variant("clean", 0)


def variants_of(run: "Run") -> list[Variant]:
    """The clean version first, then each corruption that the tables hold, in the order that was asked for, severities rising."""
    pairs = run.table[["corruption", "severity"]].drop_duplicates()
    present = [Variant(str(name), int(severity)) for name, severity in pairs.itertuples(index=False) if name != OTHER_IMAGE]
    asked = [str(name) for name in run.description.settings.corruptions]
    position = {name: number for number, name in enumerate(asked)}
    corrupted = [variant for variant in present if variant != CLEAN]
    return [CLEAN, *sorted(corrupted, key=lambda variant: (position.get(variant.corruption, len(asked)), variant))]


def middle_severity(severities: list[int]) -> int:
    """The severity to show first: the middle one, the higher of two."""
    return sorted(severities)[len(severities) // 2]
