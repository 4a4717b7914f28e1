"""Which images of a run are shown in full: a few, spread over the list, that can be read."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from overfocus.analysis.settings import Settings
from overfocus.errors import ImageError
from overfocus.images.sources import ImageSource


@dataclass(frozen=True)
class Displayed:
    """The images to show."""

    images: list[int]
    example: Image.Image
    """One picture that could be read."""


def choose_displayed(sources: Sequence[ImageSource], settings: Settings) -> Displayed:
    """Choose images evenly spread over the list; where one cannot be read, the next that can.

    Raises:
        ImageError: none can be read; or, with `strict`, one of those tried cannot.
    """
    wanted = max(1, min(settings.displayed, len(sources)))
    chosen: list[int] = []
    example, problem = None, None
    for number in range(wanted):
        start = max(number * len(sources) // wanted, chosen[-1] + 1 if chosen else 0)
        stop = (number + 1) * len(sources) // wanted if example else len(sources)
        for place in range(start, stop):
            try:
                picture = sources[place].read(settings.max_pixels)
                sources[place].read_mask()
            except ImageError as error:
                if settings.strict:
                    raise
                problem = problem or error
                continue
            chosen.append(place)
            example = example or picture
            break
    if example is None:
        raise ImageError(f"none of the {len(sources)} images can be read; the first: {problem}")
    return Displayed(chosen[: settings.displayed], example)
