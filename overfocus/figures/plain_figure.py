"""A matplotlib figure that notebooks show without pyplot, so that drawing one opens no window and leaves nothing behind."""

import io

from matplotlib.figure import Figure

from overfocus.figures.style import styled


class PlainFigure(Figure):
    """What the methods of `Run` and `Comparison` return; `savefig` writes it as any figure."""

    def _repr_png_(self) -> bytes:
        """For notebooks."""
        buffer = io.BytesIO()
        with styled():
            self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()
