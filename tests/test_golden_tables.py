"""The bundled commands give the tables they gave before there was one engine for them."""

import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
from golden_tables import golden_tables

GOLDEN = Path(__file__).parent / "data" / "golden"
KEYS = ["image", "metric", "layers", "corruption", "severity", "layer", "model", "choice", "k"]
"""Columns that name a row; those that a table has."""


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    return golden_tables(tmp_path_factory.mktemp("golden"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.csv")))
def test_tables_are_as_before(tables: dict[str, pd.DataFrame], name: str) -> None:
    golden = pd.read_csv(GOLDEN / f"{name}.csv")
    keys = [key for key in KEYS if key in golden]
    now = tables[name].reset_index(drop=True)
    wanted = golden[keys].astype(str).agg("|".join, axis=1)
    there = now[keys].astype(str).agg("|".join, axis=1)
    assert there.is_unique
    now = now[there.isin(set(wanted))].reset_index(drop=True)  # new rows, such as a control's, may stand between
    pd.testing.assert_frame_equal(
        now[list(golden)], golden, check_dtype=False, check_exact=False, rtol=0, atol=1e-6, check_categorical=False
    )
