"""Names of images, classes, corruptions, models and files that would act on a terminal, page, table or figure act nowhere."""

import csv
import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

from overfocus.run import Run
from overfocus_cli.main import app

HOSTILE = {
    "escape": "\x1b[31mred\x07",
    "bidirectional": "\u202egpj.\u2066",
    "lines": "a\nb\r\u2028c",
    "zero byte": "a\x00b",
    "invisible": "a\u200b\ufeff",
    "formula": "=cmd|' /C calc'!A0",
    "at": "@SUM(1)",
    "minus": "-1+1",
    "LaTeX": r"\input{/etc/passwd}%$x_{\frac$&#~^",
    "Markdown": "|`y`[z](javascript:alert(1))*b*$x$",
    "HTML": "<img src=x onerror=alert(1)>\"'&",
    "script": "</script><script>alert(2)</script>",
    "rich": "[bold]x[/] [link=file:///etc]",
    "template": "{0.__class__} %s ${alert(3)} {{7*7}}",
    "long": "k" * 5000,
}
MODELS = ("<b>\x1b[31m|=x_{%$", "\u202e[red]@=cmd")
CORRUPTION = "<img src=x>|\x1b_%"


def acting(text: str) -> set[str]:
    """The characters that cannot be seen."""
    unseen = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return {sign for sign in set(text).difference("\n\t") if unicodedata.category(sign) in unseen}


def overfocus(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, arguments, prog_name="overfocus")
    assert result.exit_code == status, result.output[-2000:] + repr(result.exception)
    assert not acting(result.output)
    return result.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, synthetic_run: Callable[..., Path]) -> Path:
    """Two runs full of hostile names."""
    folder = tmp_path_factory.mktemp("names")
    names = tuple(HOSTILE.values())
    for place, model in enumerate(MODELS):
        run = synthetic_run(
            folder / f"run-{place}",
            images=len(names),
            layers=2,
            displayed=1,
            side=4,
            pixels=16,
            names=names,
            class_names=names,
            corruptions=("fog", CORRUPTION),
            severities=(1,),
        )
        about = json.loads((run / "run.json").read_text())
        about["checkpoint"] |= {"name": model, "source": names[0] + model, "notes": list(names)}
        (run / "run.json").write_text(json.dumps(about | {"notes": list(names)}))
    return folder


@pytest.fixture
def here(runs: Path, showing: Callable[[Path], Path]) -> Path:
    return showing(runs)


@pytest.mark.parametrize("kind", ["columns", "layers", "stability", "matrix"])
def test_figures(kind: str, here: Path) -> None:
    overfocus("figure", kind, "run-0", "run-1", "--output", "figure.svg")
    text = (here / "figure.svg").read_text()
    assert not acting(text)
    ET.fromstring(text)
    assert "<img" not in text


@pytest.mark.usefixtures("here")
def test_checks() -> None:
    overfocus("check", "run-0", "--max", "gini=0.0001", status=1)
    assert json.loads(overfocus("check", "run-0", "--max", "gini=0.0001", "--json", status=1))


@pytest.mark.slow
def test_comparisons(here: Path) -> None:
    both = ["compare", "run-0", "run-1", "--output", "out", "--resamples", "50"]
    overfocus(*both)
    page = (here / "out" / "report.html").read_text()
    assert not acting(page)
    assert not [part for part in ("<img src=x", "<script>alert", "</script><script>") if part in page]
    assert json.loads(overfocus(*both, "--json"))
    for line in overfocus(*both, "--format", "markdown", "--no-report").splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 13
        assert not re.search(r"(?<!\\)[<`$]", line)
    for line in overfocus(*both, "--format", "latex", "--no-report").splitlines()[4:-2]:
        assert len(re.findall(r"(?<!\\)&", line)) == 11
        assert not re.search(r"(?<!\\)[%#]|(?<!\\)_", line)
    for path in (here / "out").glob("*.csv"):
        with path.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
        assert not acting("".join(cells))


@pytest.mark.slow
def test_reports(here: Path) -> None:
    assert not acting(Run("run-0")._repr_html_())
    assert "<img" not in Run("run-0")._repr_html_()
    overfocus("report", "run-0")
    page = (here / "run-0" / "report.html").read_text()
    assert not acting(page)
    assert not [part for part in ("<img src=x", "<script>alert", "</script><script>") if part in page]


@pytest.mark.slow
def test_files_of_such_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, classes and checkpoints on a disk, also of names that are not UTF-8."""
    monkeypatch.chdir(tmp_path)
    about = {"num_classes": 2, "img_size": 32}
    state = timm.create_model("test_vit", **about).state_dict()
    checkpoint = "a\x1b[31m\udcff=<b>.pth"
    torch.save({"arch": "test_vit", "model_args": about, "state_dict": state}, checkpoint)
    names = ["\x1b[31mred.png", "[red]x[/].png", "=1+1.png", "\udcff\udcfe.png", "a\nb.png", "<img src=x onerror=alert(1)>.png"]
    for number, name in enumerate(names):
        path = tmp_path / "odd" / ("[bold]\u202e" if number % 2 else "=cmd") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)).save(path, "PNG")
    output = "run\x1b[2J[red]"
    measure = ["--workers", "0", "--device", "cpu", "--batch-size", "2", "--corruption", "fog", "--severity", "3"]
    overfocus("evaluate", checkpoint, "--data", "odd", "--output", output, *measure)
    overfocus("analyze", checkpoint, "--images", "odd", "--output", f"{output}-2", *measure)
    page = (tmp_path / f"{output}-2" / "report.html").read_text()
    assert "<img src=x" not in page
    assert not acting(page)
    run = Run(f"{output}-2")
    assert len(set(run.predictions["name"])) == len(names)
    assert any(name.endswith(r"\xff\xfe.png") for name in run.predictions["name"])
    overfocus("heatmap", checkpoint, f"odd/=cmd/{names[0]}", "--layer", "0", "--output", output)
    training = ["train", "odd", "--init", checkpoint, "--epochs", "1", "--batch-size", "2", "--workers", "0"]
    overfocus(*training, "--output", f"{output}-3")
    for path in tmp_path.rglob("*.csv"):
        with path.open(newline="") as file:
            assert not [cell for row in csv.reader(file) for cell in row if cell.startswith(("=", "+", "@"))]
