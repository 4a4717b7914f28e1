"""A matplotlib figure as SVG inside the page: responsive, in the page's own font and text colour, free of foreign identifiers."""

import html
import io
import re
from typing import TYPE_CHECKING

from overfocus.figures.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PIXELS_PER_POINT = 1.3
"""Size of figures on the page unless they fill their card; 9-point text comes out at 12 pixels."""


def inline_svg(figure: "Figure", name: str, description: str, **attributes: object) -> str:
    """The figure as one `<svg>` element.

    `name` prefixes every identifier, so that figures do not meet; `attributes` become `data-` attributes for the page's script.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'\b(d|x|y|transform|points|width|height)="([^"]*)"', rounded, text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", text)
    text = re.sub(r' transform="rotate\(-?0 [^"]*"', "", text)
    text = text.replace(INK, "currentColor")
    text = re.sub(r">\s+<", "><", text)
    known = "".join(f' data-{key.replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items())
    label = html.escape(description)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box
    width = float(box[1].split()[2]) * PIXELS_PER_POINT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box[1]}"'
    head += f' style="width: {width:.0f}px"'
    return re.sub(r"^<svg[^>]*>", lambda _: f'{head} role="img" aria-label="{label}"{known}>', text).strip()


def rounded(match: re.Match[str]) -> str:
    """An attribute with its numbers cut to two digits after the point."""
    return f'{match[1]}="{re.sub(r"-?[0-9]+[.][0-9]{3,}", lambda number: f"{float(number[0]):.2f}", match[2])}"'


def plot_frame(figure: "Figure", axes: "Axes") -> dict[str, str]:
    """How data turn into positions in the SVG: x = left + layer · step, y = bottom − value · rise; in its own units (points)."""
    height = figure.get_figheight() * 72
    scale = 72 / figure.dpi
    (x0, y0), (x1, y1) = axes.transData.transform([(0, 0), (1, 1)]) * scale
    return {"left": f"{x0:.4f}", "step": f"{x1 - x0:.4f}", "bottom": f"{height - y0:.4f}", "rise": f"{y1 - y0:.6f}"}
