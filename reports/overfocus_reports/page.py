"""The page itself: templates, style and script put into one file that loads nothing."""

import base64
import hashlib
import json
import math
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from overfocus_reports.sentences import percent

STYLES = ("base.css", "controls.css", "panels.css", "explorer.css", "segmentation.css", "comparison.css", "print.css")
SCRIPTS = (
    "data.js", "state.js", "colour.js", "decode.js", "download.js", "tables.js", "pickers.js", "curves.js", "heatmaps.js",
    "tokens.js", "canvas.js", "explorer.js", "token_listening.js", "side.js", "matrix.js", "gallery.js", "segmentation.js",
    "segmentation_download.js", "predictions.js", "differences.js", "theme.js", "start.js",
)  # fmt: skip
"""In the order in which they stand in the page."""


def render(context: dict[str, Any], payload: dict[str, Any]) -> str:
    """The page from what the templates show and what the script works on."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("overfocus_reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "short": short, "value": exact}
    script = "(() => {\n'use strict';\n" + "\n".join(asset(name) for name in SCRIPTS) + "\n})();"
    return environment.get_template("page.html.jinja").render(
        **context,
        style=Markup("\n".join(asset(name) for name in STYLES)),
        script=Markup(script),
        policy=policy(script),
        data=Markup(json_for_html(payload)),
    )


def asset(name: str) -> str:
    """A file of the folder assets."""
    return resources.files("overfocus_reports").joinpath("assets", name).read_text(encoding="utf-8")


def policy(script: str) -> str:
    """A content-security policy under which the page loads nothing and runs this one script, told by its hash."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def json_for_html(payload: object) -> str:
    """JSON that can stand inside a `<script>` element, whatever names it holds."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def short(value: object) -> str:
    """A cell of a table for people: three digits of a number, a dash for none."""
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.3g}".replace("-", "−")
    return "–" if value is None else str(value)


def exact(value: object) -> str:
    """A cell of a table for sorting and for CSV."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else str(value)
