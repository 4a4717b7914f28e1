"""The example notebook runs, cell by cell, and shows what is printed in it."""

import ast
import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
TOUR = Path(__file__).parent / "tour.ipynb"


def shown(source: str, names: dict[str, Any]) -> dict[str, str]:
    """What a notebook shows of the last expression of a cell, by MIME type; the cell is run."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    if not isinstance(last, ast.Expr):
        return {}
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    found = {"text/plain": repr(value)}
    if hasattr(value, "_repr_html_"):
        found["text/html"] = value._repr_html_()
    if hasattr(value, "_repr_png_"):
        found["image/png"] = base64.b64encode(value._repr_png_()).decode()
    return found


def test_the_tour_runs_as_printed(tmp_path, monkeypatch):
    """OVERFOCUS_DRAW_GOLDEN=1 writes what the cells show into the notebook."""
    monkeypatch.chdir(tmp_path)
    tour, names = json.loads(TOUR.read_text()), {}
    for cell in tour["cells"]:
        if cell["cell_type"] != "code":
            continue
        before = {kind for output in cell["outputs"] for kind in output["data"]}
        after = shown(cell["source"], names)
        if os.environ.get("OVERFOCUS_DRAW_GOLDEN"):
            cell["outputs"] = [{"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": after}]
        else:
            assert set(after) == before, cell["source"]
    if os.environ.get("OVERFOCUS_DRAW_GOLDEN"):
        TOUR.write_text(json.dumps(tour, indent=1) + "\n")
