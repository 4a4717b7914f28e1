"""`overfocus compare`: what it prints, where it writes, and what it refuses."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from typer.testing import Result

Program = Callable[..., Result]
FEW = ["--corruption", "fog", "--severity", 3, "--workers", 0, "--no-report"]


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("checkpoint") / "other.pth"
    torch.save({"arch": "test_vit", "state_dict": timm.create_model("test_vit").state_dict()}, path)
    return path


def test_checkpoints_then_their_runs(overfocus: Program, checkpoint: Path, other: Path, photos: Path) -> None:
    result = overfocus("compare", checkpoint, other, "--images", photos, *FEW)
    assert result.exit_code == 0, result.stderr
    assert "other against small, 3 images" in result.stdout
    assert "Does it overfocus less? Can't tell" in result.stdout
    assert "control: the same metric between two different clean images" in " ".join(result.stdout.split())
    (folder,) = Path("overfocus-comparison").iterdir()
    assert folder.name.startswith("small-")
    assert f"comparison: {folder}" in result.stdout
    runs = [folder / "runs" / name for name in ("small", "other")]
    assert all((run / "run.json").is_file() for run in runs)

    found = json.loads(overfocus("compare", *runs, "--output", "saved", "--no-report", "--json").stdout)
    assert (found["comparison"], found["report"], found["baseline"], found["images"]) == ("saved", None, "small", 3)
    assert {row["corruption"] for row in found["table"]} == {"clean", "fog", "all"}
    assert Path("saved", "comparison.parquet").is_file()

    markdown = overfocus("compare", *runs, "--output", "saved", "--no-report", "--format", "markdown").stdout
    assert markdown.startswith("| Metric | Layers | Corruption | Model |")
    latex = overfocus("compare", *runs, "--output", "saved", "--no-report", "--format", "latex").stdout
    assert latex.startswith("\\begin{tabular}")
    rows = [line.partition(" & ")[0] for line in latex.splitlines() if line.endswith(r"\\")]
    assert 5 < len(rows) - 1 < len(markdown.splitlines()) - 2  # those that the verdicts rest on, of all; without the headings
    saved = ["compare", *runs, "--output", "saved", "--no-report", "--metrics"]
    chosen = overfocus(*saved, "gini,row_entropy", "--format", "latex").stdout
    assert re.findall(r"(?m)^(.*?) & .*\\\\$", chosen)[1:] == ["Gini coefficient", "Row entropy"]
    wrong = overfocus(*saved, "ginny")
    assert wrong.exit_code == 1
    assert "the comparison has no metric 'ginny'; there is " in wrong.stderr
    assert wrong.stderr.endswith("; did you mean gini?\n")


def test_identical_checkpoints_are_called_identical(overfocus: Program, checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pth"
    copy.write_bytes(checkpoint.read_bytes())
    result = overfocus("compare", checkpoint, copy, "--images", photos, *FEW)
    assert result.exit_code == 0, result.stderr
    assert "copy is identical to small: every number" in " ".join(result.stdout.split())
    assert "Does it overfocus less?" not in result.stdout


def test_bundled_pair(overfocus: Program) -> None:
    result = overfocus("compare", "--limit", 10, *FEW)
    assert result.exit_code == 0, result.stderr
    assert "fashion_mnist_vit_tap_adl against fashion_mnist_vit, 10 images" in result.stdout
    (folder,) = Path("overfocus-comparison").iterdir()
    assert folder.name.startswith("fashion_mnist_vit-")


def test_what_it_refuses(overfocus: Program, checkpoint: Path) -> None:
    for arguments, complaint in (
        ([checkpoint], "overfocus: expected at least two checkpoints or run folders, a baseline and another; got one\n"),
        (["nowhere.pth", "nowhere.pth"], "overfocus: nowhere.pth: expected a checkpoint file or folder, found nothing there"),
    ):
        result = overfocus("compare", *arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith(complaint)
        assert result.stdout == ""
    assert overfocus("compare", checkpoint, checkpoint, "--format", "word").exit_code == 2


def test_ablation(overfocus: Program, checkpoint: Path, photos: Path) -> None:
    command = ["ablate", checkpoint, "--images", photos, "--corruption", "fog", "--fraction", 0.1, "--workers", 0]
    result = overfocus(*command)
    assert result.exit_code == 0, result.stderr
    assert "test_vit, 3 images" in result.stdout
    assert "On clean images, 3 images are too few to tell what predictions of test_vit" in " ".join(result.stdout.split())
    assert "10 (10 %)" in result.stdout
    (folder,) = Path("overfocus-ablation").iterdir()
    assert f"ablation: {folder}\nreport: {folder / 'report.html'}" in result.stdout
    page = (folder / "report.html").read_text()
    assert "3 images are too few" in page
    figure = overfocus("figure", "ablation", folder, "--width", "5in")
    assert (figure.exit_code, figure.stdout, Path("ablation.pdf").read_bytes()[:5]) == (0, "ablation.pdf\n", b"%PDF-")
    assert overfocus("figure", "ablation", folder, folder).exit_code == 1
    (folder / "report.html").unlink()
    drawn = overfocus("report", folder)
    assert (drawn.exit_code, drawn.stdout) == (0, f"{folder / 'report.html'}\n")
    assert (folder / "report.html").read_text() == page
    again = overfocus(*command)  # a finished run is shown at once
    assert (again.exit_code, again.stdout) == (0, result.stdout)
    found = json.loads(overfocus(*command, "--overwrite", "--json").stdout)
    assert {row["k"] for row in found["table"]} == {0, 10}
    assert {row["against"] for row in found["differences"]} == {"random", "bottom", "mass"}


def test_ablation_by_corruption(overfocus: Program, checkpoint: Path, photos: Path) -> None:
    command = [
        "ablate",
        checkpoint,
        "--images",
        photos,
        "--how",
        "corrupt",
        "--draws",
        2,
        "--workers",
        0,
        "--output",
        "out",
    ]
    command += ["--fraction", 0.1, "--fraction", 0.9, "--no-report"]
    result = overfocus(*command, "--corruption", "fog")
    assert result.exit_code == 0, result.stderr
    assert "fog 3, patches corrupted" in result.stdout
    assert "On fog 3, 3 images are too few to tell what predictions of test_vit" in " ".join(result.stdout.split())
    assert "clean images" not in result.stdout
    assert "no value: all other patches together receive less" in result.stdout
    assert {row["corruption"] for row in json.loads(overfocus(*command, "--corruption", "fog", "--json").stdout)["table"]} == {
        "fog"
    }
    refused = overfocus(*command, "--corruption", "fog", "--how", "blur")
    assert refused.exit_code != 0
    assert "remove" in refused.stderr


def test_groups_of_runs(overfocus: Program, checkpoint: Path, other: Path, photos: Path) -> None:
    for name, file in (("one", checkpoint), ("two", other)):
        assert overfocus("analyze", file, "--images", photos, *FEW, "--no-report", "--output", name).exit_code == 0
    command = ["compare", "--group", "A=one,two", "--group", "B=two,one", "--no-report", "--output", "groups", "--json"]
    result = overfocus(*command)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["baseline"] == "A"
    assert {row["model"] for row in found["table"]} == {"B"}
    assert any("A is 2 runs" in note for note in found["notes"])
    assert "expected NAME=VALUE" in overfocus("compare", "--group", "A").stderr
