"""Loss, accuracy, ADL and learning rate of a training as a picture."""

from pathlib import Path

from overfocus.files import atomic_file
from overfocus.training.log import read_log


def draw_curves(log: Path, picture: Path, unit: str) -> None:
    """Draw the log into a PNG; `unit` is that of the loss."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table = read_log(log)
    panels = [
        ("loss", unit, {"loss": "training", "validation_loss": "validation"}),
        ("accuracy", "share of the answers", {"accuracy": "training", "validation_accuracy": "validation"}),
        ("mean IoU", "share of the pixels", {"validation_miou": "validation"}),
        ("attention diversification loss", "mean cosine", {"adl": "training"}),
        ("learning rate", "highest of the groups", {"learning_rate": "training"}),
    ]
    shown = [panel for panel in panels if any(table[column].notna().any() for column in panel[2])]
    figure = Figure(figsize=(4 * len(shown), 3.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, (title, label, columns) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for column, kind in columns.items():
            known = table[["epoch", column]].dropna()
            if len(known):
                few = "validation" in column or len(known) == 1
                axes.plot(known["epoch"], known[column], label=kind, marker="o" if few else None, markersize=3)
        axes.set(title=title, xlabel="epoch", ylabel=label, xlim=(0, None))
        if title in ("accuracy", "mean IoU"):
            axes.set_ylim(0, 1)
        if len(columns) > 1:
            axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(picture) as file:
        canvas.print_png(file)  # type: ignore[no-untyped-call]
