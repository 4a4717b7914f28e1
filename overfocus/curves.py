"""The log of a training or of a monitor, a CSV file, and its curves: an image, or a self-contained page."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overfocus.errors import RunError
from overfocus.files import atomic_file, read_text
from overfocus.text import one_line, printable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

GROUPS = ("early", "middle", "late")
"""Thirds of the layers by depth."""
QUANTITIES = {
    "top_share": "attention that the most attended patches receive, clean images",
    "effective_tokens": "share of the patches that attention effectively reaches, clean images",
    "row_entropy": "entropy of the rows, 1 where uniform, clean images",
    "largest_logit": "largest absolute product of a query and a key, scaled, before the softmax",
    "retained": "Jensen–Shannon divergence: 1 − D(corrupted) / D(another image); 1 as if not corrupted, 0 as another image",
}
"""What a monitor measures in each group of layers: means over images and layers, but the maximum of the logits. NaN: logits of a
model that computes its weights itself; what is retained without corrupted images, or with one image."""
ATTENTION = tuple(f"{quantity}_{group}" for quantity in QUANTITIES for group in GROUPS)
"""Columns of a monitor, beside step."""
TRAINING = (
    "step", "epoch", "loss", "adl", "adl_weight", "accuracy", "learning_rate", "images_per_second", "waiting",
    "validation_loss", "validation_accuracy", "validation_miou",
)  # fmt: skip
"""step and epoch count what is done; loss is the task's alone (with label smoothing), adl and accuracy those of the training
images (of 0 … 1; of pixels, where these have classes), all three means since the row before; validation_miou is the mean
IoU over the classes of the whole validation set; waiting is the share of time that was spent waiting for images."""


_EXPECTED = "the log of a training or of a monitor, log.csv"


class Log:
    """Appends rows to a CSV file; rows after step `start`, which a training that was killed left, are removed first.

    Raises:
        RunError: the file is there and is no such log.
    """

    def __init__(self, path: Path, start: int, columns: Sequence[str] = TRAINING) -> None:
        self.path = path
        self.columns = list(columns)
        kept: list[str] = []
        if path.exists():
            head, *rows = read_text(path, _EXPECTED).splitlines(keepends=True) or [""]
            if head and head.rstrip("\n").split(",")[0] != "step":
                raise RunError(f"{printable(path)}: exists and is not a training log; choose another file")
            rows = [row for row in rows if row.endswith("\n") and row.partition(",")[0].isdecimal()]
            kept = [row.rstrip("\n") for row in rows if int(row.partition(",")[0]) <= start]
            if kept:
                before = head.rstrip("\n").split(",")
                more = [column for column in self.columns if column not in before]  # asked for since
                self.columns = before + more
                kept = [row + "," * len(more) for row in kept]
        with atomic_file(path) as file:
            file.write("".join(f"{line}\n" for line in (",".join(self.columns), *kept)).encode())

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; columns that it does not have, and NaN, stay empty."""
        line = ",".join(_cell(row.get(column)) for column in self.columns)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _cell(value: object) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def read_log(path: Path) -> "pd.DataFrame":
    """A log as a table; NaN where nothing was measured.

    Raises:
        RunError: there is no such file, or it is no such log.
    """
    import pandas as pd

    text = read_text(path, _EXPECTED)
    try:
        table = pd.read_csv(io.StringIO(text))
    except ValueError as error:  # what pandas raises of a bad file are ValueErrors
        raise RunError(f"{printable(path)}: expected {_EXPECTED}, but it is no table ({one_line(error)})") from error
    if "step" not in table.columns:
        raise RunError(f"{printable(path)}: expected {_EXPECTED}, but it has no column step")
    shown = table.columns.intersection(["step", *TRAINING, *ATTENTION])
    table[shown] = table[shown].apply(pd.to_numeric, errors="coerce")
    return table


def write_curves(log: Path, output: Path, unit: str = "") -> Path:
    """Draw a log: a PNG, or with the ending .html a self-contained page, with the values at the beginning and the end.

    `unit` is that of the loss.

    Raises:
        RunError: it is no such log, or it holds no row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    table = read_log(log)
    panels = _panels(table, unit)
    if not panels:
        raise RunError(f"{printable(log)}: holds no values yet")
    page = output.suffix.lower() == ".html"
    figure = _draw(table, panels, columns=3 if page else len(panels))
    with atomic_file(output) as file:
        if page:
            file.write(_page(table, figure, printable(log)).encode())
        else:
            FigureCanvasAgg(figure).print_png(file)  # type: ignore[no-untyped-call]
    return output


def _panels(table: "pd.DataFrame", unit: str) -> list[tuple[str, str, dict[str, str]]]:
    """Title, unit and columns with their names, of what the log has values of."""
    panels = [
        ("Loss", unit, {"loss": "training", "validation_loss": "validation"}),
        ("Accuracy", "share of the answers", {"accuracy": "training", "validation_accuracy": "validation"}),
        ("Mean IoU", "share of the pixels", {"validation_miou": "validation"}),
        ("Attention diversification loss", "mean cosine", {"adl": "training"}),
        ("Learning rate", "highest of the groups", {"learning_rate": "training"}),
        *(
            (
                _title(quantity),
                f"{'largest' if quantity == 'largest_logit' else 'mean'} over the watched images",
                {f"{quantity}_{group}": f"{group} layers" for group in GROUPS},
            )
            for quantity in QUANTITIES
        ),
    ]
    return [panel for panel in panels if any(column in table and table[column].notna().any() for column in panel[2])]


def _title(quantity: str) -> str:
    """The title of a quantity: that of the metric, where it is one."""
    from overfocus.metrics.catalogue import title_of

    title = title_of(quantity)
    return title[0].upper() + title[1:]


def _draw(table: "pd.DataFrame", panels: Sequence[tuple[str, str, dict[str, str]]], columns: int) -> "Figure":
    from matplotlib.figure import Figure

    time = "epoch" if "epoch" in table and table["epoch"].notna().any() else "step"
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * min(columns, len(panels)), 3.2 * rows), layout="constrained")
    every = figure.subplots(rows, min(columns, len(panels)), squeeze=False).ravel()
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, label, shown) in zip(every, panels, strict=False):
        for column, kind in shown.items():
            known = table[[time, column]].dropna() if column in table else table[:0]
            if len(known):
                few = "validation" in column or len(known) == 1
                axes.plot(known[time], known[column], label=kind, marker="o" if few else None, markersize=3)
        axes.set(title=title, xlabel=time, ylabel=label, xlim=(0, None))
        if title in ("Accuracy", "Mean IoU") or not table.reindex(columns=[*shown]).fillna(0).to_numpy().any():
            axes.set_ylim(0, 1)
        axes.ticklabel_format(axis="y", useOffset=False)
        if len(shown) > 1:
            axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _page(table: "pd.DataFrame", figure: "Figure", name: str) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    drawn = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None})  # type: ignore[no-untyped-call]
    rows = []
    for column in table.columns.intersection([*TRAINING, *ATTENTION]).drop("step"):
        known = table[["step", column]].dropna()
        if len(known):
            quantity = column.rpartition("_")[0]
            ends = "".join(f"<td>{known[column].iloc[place]:.4g}</td><td>{known['step'].iloc[place]:g}</td>" for place in (0, -1))
            rows.append(f'<tr><th scope="row" title="{QUANTITIES.get(quantity, "")}">{column}</th>{ends}</tr>')
    told = "".join(f"<dt>{quantity}</dt><dd>{html.escape(words)}</dd>" for quantity, words in QUANTITIES.items())
    explained = f"<dl>{told}</dl>" if any(column in ATTENTION for column in table.columns) else ""
    title = html.escape(f"Training curves: {name}")
    source = base64.b64encode(drawn.getvalue()).decode()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ max-width: 75rem; margin: 2rem auto; padding: 0 1rem }} h1 {{ font-size: 1.25rem; overflow-wrap: anywhere }}
img {{ width: 100%; min-width: 50rem; background: white }} div {{ overflow-x: auto }} dt {{ font-weight: 600 }}
th {{ text-align: left; font-weight: 400 }} th, td {{ padding: 0.1rem 0.8rem 0.1rem 0 }} td {{ text-align: right }}
</style></head><body><h1>{title}</h1>
<div><img alt="Curves of the values in the table below" src="data:image/svg+xml;base64,{source}"></div>
<div><table><thead><tr><th>value</th><th>first</th><th>step</th><th>last</th><th>step</th></tr></thead>
<tbody>{"".join(rows)}</tbody></table></div>{explained}</body></html>
"""
