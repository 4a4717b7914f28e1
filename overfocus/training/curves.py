"""Loss, accuracy, ADL and learning rate of a training as a picture."""

from pathlib import Path

from overfocus.atomic import atomic_file
from overfocus.training.log import read_log


def draw_curves(log: Path, picture: Path) -> None:
    """Draw the log into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table = read_log(log)
    panels = [
        ("loss", {"loss": "training", "validation_loss": "validation"}),
        ("accuracy", {"accuracy": "training", "validation_accuracy": "validation"}),
        ("mean IoU", {"validation_miou": "validation"}),
        ("attention diversification loss", {"adl": "training"}),
        ("learning rate", {"learning_rate": "highest of the groups"}),
    ]
    shown = [(title, columns) for title, columns in panels if any(table[column].notna().any() for column in columns)]
    figure = Figure(figsize=(4 * len(shown), 3.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, (title, columns) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for column, label in columns.items():
            known = table[["epoch", column]].dropna()
            if len(known):
                axes.plot(
                    known["epoch"], known[column], label=label, marker="o" if "validation" in column else None, markersize=3
                )
        axes.set(title=title, xlabel="epoch")
        if title in ("accuracy", "mean IoU"):
            axes.set_ylim(0, 1)
        if len(columns) > 1:
            axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(picture) as file:
        canvas.print_png(file)  # type: ignore[no-untyped-call]
