"""The images whose attention moved most and least under each corruption, with small pictures and maps."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from overfocus.errors import OverfocusError
from overfocus.figures.overlay import ReceivedMaps
from overfocus.images.reading import read_image
from overfocus.runs.description import Layer
from overfocus.variants import CLEAN_VARIANT, Variant
from overfocus_reports.displayed import RECEIVED, Displayed
from overfocus_reports.encoding import number, picture_uri, png
from overfocus_reports.extremes import ImageValues

if TYPE_CHECKING:
    from overfocus.run import Run

SIZE = 4
"""Images at each end of the ranking."""
MOST_PICTURES = 24
"""Small pictures that are read from files; images beyond are named without one."""
PIXELS = 112


def gallery(run: "Run", displayed: Displayed, values: ImageValues, layer: Layer) -> dict[str, Any]:
    """Per shown variant the images at both ends with the share of attention that moved and the maps of `layer` before and after.

    Small pictures of displayed images are the ones of the explorer; the others are read from their files where those still are.
    """
    variants, received, place = displayed.variants, displayed.received_maps, displayed.layers.index(layer)
    ends = {variant: values.gallery(variant, SIZE) for variant in displayed.shown if variant}
    for image in sorted({image for both in ends.values() for end in both for image in end}):
        for variant in (0, *ends):  # in the order of the files, each of which is unpacked once
            received(image, variants[variant])
    items = {
        variant: [
            [item_of(received, variants[variant], image, values.moved(variant, image), place) for image in end] for end in both
        ]
        for variant, both in ends.items()
    }
    wanted = Counter(image for both in ends.values() for end in both for image in end if image not in run.displayed)
    files = {entry.image: entry.path for entry in run.images}
    pictures = {image: small_picture(files[image]) for image, _ in wanted.most_common(MOST_PICTURES)}
    return {"items": items, "pictures": pictures, "layer": layer.number}


def item_of(received: ReceivedMaps, variant: Variant, image: int, moved: float, place: int) -> dict[str, Any]:
    """One image of a gallery; "maps" holds the clean and the corrupted received attention side by side."""
    clean, corrupted = received(image, CLEAN_VARIANT)[place], received(image, variant)[place]
    maps = None
    if clean is not None and corrupted is not None:
        maps = png(RECEIVED.encode(np.concatenate([clean, corrupted], axis=1) * clean.size))
    return {"image": image, "moved": number(moved), "maps": maps}


def small_picture(path: str | None) -> str | None:
    """A small version of a picture file; None where it cannot be read any more."""
    if path is None:
        return None
    try:
        return picture_uri(np.asarray(shrunk(path)), PIXELS, 70)
    except OverfocusError:
        return None


def shrunk(path: str) -> Any:
    """The picture at four times the size that is kept, so that a large one is not scaled twice at full size."""
    picture = read_image(path)
    picture.thumbnail((4 * PIXELS, 4 * PIXELS))
    return picture
