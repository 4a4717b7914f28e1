"""Corruptions of the user: functions that take the place of a name.

    def streaks(rgb, severity, generator):
        rows = generator.random(len(rgb)) < 0.1 * severity
        return np.where(rows[:, None, None], np.uint8(255), rgb)

A function takes the pixels, uint8 (height, width, 3), the severity (1 … 5) and a `numpy.random.Generator`, and returns pixels of
the same kind and size. The generator is seeded from (pixels, name, severity, seed), as that of the built-in corruptions is, so
that an image gets the same corruption in any order and process.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from overfocus.corruptions.apply import random_words
from overfocus.corruptions.constants import CORRUPTIONS, GROUPS, resolve_corruptions
from overfocus.errors import CorruptionError
from overfocus.settings import shown
from overfocus.text import one_line, printable
from overfocus.variants import RESERVED

LONGEST_NAME = 64
_PROBE_SIDE = 48


@dataclass(frozen=True)
class CustomCorruption:
    """A function of the user under its name.

    Raises:
        CorruptionError: it is no function, or its name is missing, taken or not printable.
    """

    name: str
    function: Callable[..., Any] = field(repr=False)

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise CorruptionError(f"expected the name of a corruption, or a function, got {shown(self.function)}")
        name = self.name
        if not isinstance(name, str) or not name.strip() or name == "<lambda>":
            raise CorruptionError(
                "expected a corruption with a name, so that its run can be continued and compared; define it with def, or give "
                '("name", function)'
            )
        if name != printable(name) or len(name) > LONGEST_NAME:
            raise CorruptionError(
                f"expected a name of at most {LONGEST_NAME} printable characters for a corruption, got {printable(name, 80)!r}"
            )
        if name in (*CORRUPTIONS, *GROUPS, *RESERVED):
            raise CorruptionError(f"{name} is the name of a built-in corruption, group or variant; choose another name")

    def __call__(
        self, rgb: UInt8[np.ndarray, "height width 3"], severity: int, seed: int = 0
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Corrupt one image, which is not changed.

        Raises:
            CorruptionError: the function fails, or gives something else than an image of the same kind and size.
        """
        generator = np.random.default_rng(random_words(rgb, self.name, severity, seed))
        try:
            result = self.function(rgb.copy(), int(severity), generator)
        except Exception as error:  # the function is the user's and may raise anything
            reason = one_line(error, 200) or type(error).__name__
            raise CorruptionError(
                f"the corruption {self.name} fails at severity {severity} ({type(error).__name__}: {reason}); it is called with "
                "(rgb, severity, generator)"
            ) from error
        if isinstance(result, Image.Image):
            result = np.asarray(result)
        if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.shape != rgb.shape:
            got = f"{result.dtype} {result.shape}" if isinstance(result, np.ndarray) else type(result).__name__
            raise CorruptionError(
                f"the corruption {self.name} must give RGB pixels as a uint8 array of shape {rgb.shape}, got {got}"
            )
        return np.array(result)  # a copy: the function may keep and change its own

    def fingerprint(self, severities: Sequence[int]) -> str:
        """SHA-256 of what it makes of a fixed image at these severities: shows whether it is the same function.

        Raises:
            CorruptionError: as the call does, or it draws random numbers from elsewhere than the generator.
        """
        first, again = self._hash(severities), self._hash(severities)
        if first != again:
            raise CorruptionError(
                f"the corruption {self.name} gives another result when called again; draw random numbers from the generator that "
                "it is called with"
            )
        return first

    def _hash(self, severities: Sequence[int]) -> str:
        side = _PROBE_SIDE
        noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        slope = np.linspace(0, 255, side).astype(np.uint8)
        image = np.concatenate([noise[: side // 2], np.broadcast_to(slope[None, :, None], (side // 2, side, 3))])
        digest = hashlib.sha256()
        for severity in severities:
            digest.update(self(image, severity).tobytes())
        return digest.hexdigest()


def named_corruptions(given: Any) -> list[str]:
    """Names of corruptions that are there already, of saved runs or a tree on the disk: any names, groups resolved.

    Raises:
        CorruptionError: one is no name.
    """
    entries = [given] if isinstance(given, str) else list(given)
    if strange := [entry for entry in entries if not isinstance(entry, str)]:
        raise CorruptionError(f"expected names of corruptions that were made before, got {shown(strange[0])}")
    return list(dict.fromkeys(name for entry in entries for name in GROUPS.get(entry, (entry,))))


def choose_corruptions(given: Any) -> tuple[list[str], dict[str, CustomCorruption]]:
    """Names of the corruptions asked for, groups resolved, each once and in order; and the functions among them by name.

    `given` is a name, a group, a function, a pair (name, function), or a sequence of these.

    Raises:
        CorruptionError: there is no such corruption, it is nothing of these, or two functions have the same name.
    """
    several = isinstance(given, Iterable) and not isinstance(given, str) and not _is_pair(given)
    entries: Iterable[Any] = given if several else [given]
    names: dict[str, None] = {}
    custom: dict[str, CustomCorruption] = {}
    for entry in entries:
        if isinstance(entry, str):
            names.update(dict.fromkeys(resolve_corruptions(entry)))
            continue
        name, function = entry if _is_pair(entry) else (getattr(entry, "__name__", ""), entry)
        corruption = CustomCorruption(name, function)
        if corruption.name in custom:
            raise CorruptionError(
                f'expected functions of different names as corruptions, got {corruption.name} twice; give ("name", function)'
            )
        custom[corruption.name] = corruption
        names[corruption.name] = None
    return list(names), custom


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and callable(entry[1])
