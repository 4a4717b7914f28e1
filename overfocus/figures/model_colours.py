"""Each model of a comparison keeps its colour in every figure: the baseline blue, the others after it."""

from overfocus.figures.colours import DASHES, OKABE_ITO

ORDER = (1, 0, 2, 3, 4, 5)


def model_colour(number: int) -> str:
    """Colour of the model with this number; the baseline is 0."""
    return OKABE_ITO[ORDER[number % len(ORDER)]]


def model_dash(number: int) -> str:
    """Dash of its lines, which differs where colours repeat."""
    return DASHES[(number // len(ORDER)) % len(DASHES)]
