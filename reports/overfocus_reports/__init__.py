"""Pages and images of what overfocus found (`draw_report`, `draw_comparison`, `draw_ablation`), and its words (`summarise`).

Names are imported when they are first used: matplotlib is not needed to say `overfocus --help`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overfocus_reports.report import draw_ablation, draw_comparison, draw_report
    from overfocus_reports.sentences import summarise
    from overfocus_reports.summary import Summary

_HOME = {
    "Summary": "overfocus_reports.summary",
    "draw_ablation": "overfocus_reports.report",
    "draw_comparison": "overfocus_reports.report",
    "draw_report": "overfocus_reports.report",
    "summarise": "overfocus_reports.sentences",
}

__all__ = ["Summary", "draw_ablation", "draw_comparison", "draw_report", "summarise"]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'overfocus_reports' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
