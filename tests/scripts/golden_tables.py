"""The tables that the bundled `analyze`, `compare`, `evaluate` and `ablate` give, to hold later versions to.

    python tests/scripts/golden_tables.py FOLDER      # writes FOLDER/*.csv

`tests/data/golden` was written by commit 5cb9c52, before there was one engine for the four; `tests/test_golden_tables.py`
compares. Change the files only with a reason that the changelog gives.
"""

import sys
import tempfile
from pathlib import Path

import pandas as pd

import overfocus
from overfocus.samples import sample_checkpoints, sample_images

CORRUPTIONS = ["gaussian_noise", "defocus_blur", "jpeg_compression"]
"""Of the kinds whose pixels the package `imagecorruptions` makes as published."""
SEVERITIES = [2, 4]
LIMIT = 8


def golden_tables(work: Path, **options: object) -> dict[str, pd.DataFrame]:
    """Every table by name; runs are written into `work`, `options` go to all four functions."""
    baseline, mended = sample_checkpoints()
    asked = {
        "corruptions": CORRUPTIONS,
        "severities": SEVERITIES,
        "limit": LIMIT,
        "device": "cpu",
        "workers": 0,
        "constants": "imagenet-c",
    } | options
    common = asked | {"progress": False}
    run = overfocus.analyze(baseline, output=work / "analyze", batch_size=7, **common)
    comparison = overfocus.compare([baseline, mended], output=work / "compare", batch_size=7, **common)
    folder = sample_images(overfocus.load_model(baseline).input_size)
    (evaluation,) = overfocus.evaluate([baseline], folder, work / "evaluate", batch_size=8, **asked)
    ablation = overfocus.ablate(baseline, output=work / "ablate", fractions=[0.05, 0.2], batch_size=8, **common)
    means = comparison.table[["metric", "layers", "corruption", "severity", "model", "mean", "difference"]]
    removed = ablation.table
    return {
        "analyze-metrics": run.table,
        "analyze-predictions": run.predictions,
        "compare-second-metrics": comparison.runs[1].table,
        "compare-means": means,
        "evaluate": evaluation.table,
        "ablate": removed[[name for name in removed if not name.endswith(("_low", "_high"))]],
    }


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for name, table in golden_tables(Path(work)).items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.9g")
            print(f"{name}: {len(table)} rows, columns {', '.join(map(str, table.columns))}")


if __name__ == "__main__":
    main()
