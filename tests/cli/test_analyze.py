"""`overfocus analyze` and `overfocus report`: what they print and where they write."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from overfocus.sweep.settings import AnalyzeSettings
from overfocus_cli.measure import default_output

Program = Callable[..., Result]
FEW = ["--corruption", "fog", "--severity", 3, "--workers", 0]


def test_folder_of_the_run_follows_what_is_measured(tmp_path: Path) -> None:
    checkpoint = tmp_path / "deit.pth.tar"
    checkpoint.touch()

    def folder(name: str, **options: Any) -> Path:
        return default_output("overfocus-run", AnalyzeSettings(corruptions=["noise"], **options), name)

    plain = folder(str(checkpoint), seed=0)
    assert plain.parent == Path("overfocus-run")
    assert plain.name.startswith("deit-")
    assert plain == folder(str(checkpoint), workers=3, strict=True)
    assert plain != folder(str(checkpoint), seed=1)
    assert folder("deit_tiny_patch16_224").name.startswith("deit_tiny_patch16_224-")
    assert folder("hf-hub:timm/vit").parent == Path("overfocus-run")


def test_tables_on_the_terminal(overfocus: Program, checkpoint: Path, photos: Path) -> None:
    result = overfocus("analyze", checkpoint, "--images", photos, "--no-report", *FEW)
    assert result.exit_code == 0, result.stderr
    assert "test_vit, 3 images" in result.stdout
    assert "0 · blocks.0.attn" in result.stdout
    assert "fog 3" in result.stdout
    (run,) = Path("overfocus-run").iterdir()
    assert f"run: {run}" in result.stdout
    assert not (run / "report.html").exists()


def test_the_same_command_again_returns_the_same_numbers_at_once(overfocus: Program, checkpoint: Path, photos: Path) -> None:
    command = ["analyze", checkpoint, "--images", photos, "--no-report", "--json", *FEW]
    first = overfocus(*command)
    (run,) = Path("overfocus-run").iterdir()
    written = (run / "run.json").stat().st_mtime_ns
    again = overfocus(*command)
    assert again.stdout == first.stdout
    assert (run / "run.json").stat().st_mtime_ns == written


def test_json_holds_the_summary(overfocus: Program, checkpoint: Path, photos: Path) -> None:
    result = overfocus("analyze", checkpoint, "--images", photos, "--json", "--no-report", "--output", "run", *FEW)
    found = json.loads(result.stdout)
    assert found["run"] == "run"
    assert found["report"] is None
    assert found["images"] == 3
    assert [layer["module"] for layer in found["layers"]] == [f"blocks.{number}.attn" for number in range(len(found["layers"]))]
    assert all(layer["uniform_top_share"] <= layer["top_share"]["mean"] <= 1 for layer in found["layers"])
    (fog,) = found["corruptions"]
    assert (fog["corruption"], fog["severity"]) == ("fog", 3)
    assert 0 <= fog["top_overlap"]["low"] <= fog["top_overlap"]["mean"] <= fog["top_overlap"]["high"] <= 1


def test_layers_can_be_chosen(overfocus: Program, checkpoint: Path, photos: Path) -> None:
    result = overfocus("analyze", checkpoint, "--images", photos, "--json", "--no-report", "--layers", "0,-1", *FEW)
    assert len(json.loads(result.stdout)["layers"]) == 2


@pytest.mark.slow
def test_report_is_drawn_and_drawn_again(overfocus: Program, checkpoint: Path, photos: Path) -> None:
    result = overfocus("analyze", checkpoint, "--images", photos, "--output", "run", *FEW)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith("run: run\nreport: run/report.html\n")
    page = Path("run", "report.html")
    page.unlink()
    assert overfocus("report", "run").stdout == "run/report.html\n"
    assert page.stat().st_size > 10_000
    assert json.loads(overfocus("report", "run", "--json").stdout) == ["run/report.html"]
