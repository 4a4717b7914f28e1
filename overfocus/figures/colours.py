"""Colours that people with any colour vision tell apart: Okabe–Ito for lines and differences, viridis for amounts."""

import numpy as np
import numpy.typing as npt

INK = "#1a1d23"
"""Text and axes of every figure; inside the page it becomes the page's own text colour."""
OKABE_ITO = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Without black, which is the clean image, and yellow, which is invisible on white."""
DASHES = ("-", "--", ":", "-.")
SEQUENTIAL = "viridis"
DIFFERENCE = ("#0072B2", "#D55E00")
"""Less and more attention than clean; no difference is clear, so that it works on light, dark and pictures."""
MISSING = "#8a8f98"


def line_style(number: int) -> tuple[str, str]:
    """Colour and dash of the corruption with this number: colours first, then the same colours dashed."""
    return OKABE_ITO[number % len(OKABE_ITO)], DASHES[(number // len(OKABE_ITO)) % len(DASHES)]


def lookup_table(name: str) -> npt.NDArray[np.uint8]:
    """A matplotlib colour map as (256, 3) bytes."""
    import matplotlib as mpl

    return np.round(255 * mpl.colormaps[name](np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)


def reads_dark(colour: npt.NDArray[np.uint8]) -> bool:
    """Whether text on this colour (red, green, blue bytes) has to be white, by WCAG relative luminance."""
    linear = np.where(colour / 255 <= 0.04045, colour / 255 / 12.92, ((colour / 255 + 0.055) / 1.055) ** 2.4)
    return bool(linear @ np.array([0.2126, 0.7152, 0.0722]) < 0.179)
