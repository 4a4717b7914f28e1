"""A page of a run with hostile names."""

from collections.abc import Callable
from pathlib import Path

import pytest

from overfocus.run import Run


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory, synthetic_run: Callable[..., Path]) -> Path:
    """The page of a small run whose file and class names are hostile; drawn once, only read."""
    from overfocus_reports import draw_report

    hostile = ("<script>alert(1)</script>.png", '=HYPERLINK("x")&\'.png')
    classes = ("</script><img src=x onerror=alert(2)>", '"quoted" & <b>bold</b>', "coffee mug")
    folder = tmp_path_factory.mktemp("drawn") / "run"
    return draw_report(Run(synthetic_run(folder, names=hostile, class_names=classes, labels=True, heads=2)))
