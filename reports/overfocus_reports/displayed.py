"""What the attention explorer shows: pictures, received attention and matrices of the displayed images."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from overfocus.figures.overlay import ReceivedMaps, top_places
from overfocus.runs.description import Layer
from overfocus.variants import Variant, middle_severity
from overfocus_reports.encoding import Codes, picture_uri, png

if TYPE_CHECKING:
    from overfocus.run import Run

RECEIVED = Codes(per_octave=18)
"""Scale of the received attention: steps of 4 %, up to 256 times uniform."""
PICTURES = ((224, 85), (224, 75), (192, 72), (160, 68), (128, 62), (112, 55), (96, 50))
"""Longest side in pixels and JPEG quality, from the finest that is tried."""
LARGE_PICTURES = ((1024, 82), (768, 82), (640, 80), (512, 78), (448, 76), (384, 74), (320, 72), *PICTURES)
"""The same for segmentation, where single pixels are looked at."""
MANY = 128
"""Pictures above which only the middle severity of each corruption is shown."""
SHEET = 256
"""Columns of the sheet that one picture's received attention, all layers in a row, is laid out on."""


@dataclass(frozen=True)
class Displayed:
    """The displayed images in the variants that fit."""

    run: "Run"
    layers: list[Layer]
    variants: list[Variant]
    """All variants of the run; numbers of variants count from here."""

    @cached_property
    def received_maps(self) -> ReceivedMaps:
        """Received attention by image and variant."""
        return ReceivedMaps(self.run)

    @cached_property
    def middle(self) -> list[int]:
        """Numbers of the clean variant and of each corruption at its middle severity."""
        middle = middle_severity([variant.severity for variant in self.variants if variant.severity] or [0])
        return [number for number, variant in enumerate(self.variants) if variant.severity in (0, middle)]

    @cached_property
    def shown(self) -> list[int]:
        """Numbers of the variants to show: all, or the middle ones where that would be too many pictures."""
        few = len(self.run.displayed) * len(self.variants) <= MANY
        return list(range(len(self.variants))) if few else self.middle

    def pictures(self, room: int) -> dict[int, dict[int, str]]:
        """Image → variant → data URI, as fine as `room` characters allow."""
        pixels = {image: self.run.maps(image, ()).pictures for image in self.run.displayed}
        sizes = LARGE_PICTURES if self.run.segmented else PICTURES
        longest, quality = sizes[-1]
        for longest, quality in sizes:
            sample = [
                len(picture_uri(kept[number], longest, quality)) for kept in list(pixels.values())[:2] for number in self.shown
            ]
            if sum(sample) / max(1, len(sample)) * len(self.shown) * len(pixels) <= room:
                break
        return {
            image: {number: picture_uri(kept[number], longest, quality) for number in self.shown}
            for image, kept in pixels.items()
        }

    def same_pictures(self, other: "Displayed") -> bool:
        """Whether both show the very same pixels."""
        if self.run.displayed != other.run.displayed:
            return False
        shown = self.run.displayed
        return all(np.array_equal(self.run.maps(image, ()).pictures, other.run.maps(image, ()).pictures) for image in shown)

    def sheets(self) -> dict[int, dict[int, dict[str, Any]]]:
        """Image → variant → {"sheet": PNG of all layers' maps in a row, "top": places of the top k, layer by layer}."""
        return {image: {number: self.sheet_of(image, number) for number in self.shown} for image in self.run.displayed}

    def sheet_of(self, image: int, number: int) -> dict[str, Any]:
        """The received attention of one picture in multiples of uniform attention."""
        maps = self.received_maps(image, self.variants[number])
        flat = [profile.ravel() * profile.size for profile in maps if profile is not None]
        if not flat:
            return {"sheet": None, "top": [[] for _ in maps]}
        codes = RECEIVED.encode(np.concatenate(flat))
        sheet = np.zeros(-(-len(codes) // SHEET) * SHEET, dtype=np.uint8)
        sheet[: len(codes)] = codes
        top = [top_places(profile, layer) for profile, layer in zip(maps, self.layers, strict=True)]
        return {"sheet": png(sheet.reshape(-1, SHEET)), "top": top}
