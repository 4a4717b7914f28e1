"""The example notebook runs, and what it shows is there."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TOUR = Path(__file__).parent / "tour.ipynb"


def test_the_tour_runs_as_printed(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    kept = nbformat.read(TOUR, as_version=4)
    tour = nbformat.from_dict({**kept, "cells": [{**cell} for cell in kept.cells]})
    nbclient.NotebookClient(tour, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for before, after in zip(kept.cells, tour.cells, strict=True):
        if before.cell_type == "code":
            assert kinds_of(before) == kinds_of(after), before.source


def kinds_of(cell):
    """The MIME types that a cell shows, and nothing on stderr."""
    return [sorted(output.data) if "data" in output else output.output_type for output in cell.outputs]
