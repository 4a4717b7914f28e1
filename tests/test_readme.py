"""The README says what the program does: every command and option, and what its examples print."""

import importlib
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from typer.main import get_command
from typer.testing import CliRunner

from overfocus.samples import sample_images
from overfocus_cli.main import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = get_command(app).commands


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that fills the README in."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "scripts"))
    return importlib.import_module("update_readme")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_is_documented(name: str) -> None:
    assert f"`overfocus {name}" in README


def test_every_command_in_the_readme_exists() -> None:
    assert set(re.findall(r"[`$] ?overfocus ([a-z]+)", README)) == set(COMMANDS)


def test_every_option_in_the_readme_exists() -> None:
    known = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    used = set(re.findall(r"`(--[a-z-]+)", README)) | set(
        re.findall(r"(?<=\s)--[a-z-]+", "\n".join(re.findall(r"^\$ overfocus.*$", README, re.M)))
    )
    assert used - known <= {"--help"}


def test_every_file_in_the_readme_exists() -> None:
    text = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / path).exists(), path


def test_every_script_in_the_readme_exists() -> None:
    scripts = re.findall(r"python (tests/\S+\.py)", README)
    assert scripts
    for path in scripts:
        assert (ROOT / path).is_file(), path


@pytest.mark.slow
def test_examples_print_what_the_readme_says(examples: ModuleType, tmp_path: Path) -> None:
    """Words with digits aside: numbers may differ in the last digit between machines, checksums altogether."""

    def without_numbers(text: str) -> list[str]:
        return re.sub(r"\S*\d\S*", "0", text).split()

    (tmp_path / "tests").symlink_to(ROOT / "tests")
    found = list(examples.commands(README))
    assert found
    for command, expected in found:
        assert without_numbers(examples.run(command, tmp_path)) == without_numbers(expected), command


@pytest.mark.slow
def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(sample_images((3, 224, 224)))
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(code, "README.md", "exec"), names)
    assert names["loss"].requires_grad
    # clean, fog, and the control
    assert len(names["run"].table) == len(names["run"].images) * 3 * len(names["captured"].maps)


@pytest.mark.slow
def test_shell_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, with a small model as every checkpoint; a training of three steps. The two commands are for .ci/run."""
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(sample_images((3, 224, 224)))
    for number, name in enumerate(("ckpt", "baseline", "tap", "tap_adl")):
        torch.manual_seed(number)
        torch.save({"arch": "test_vit", "state_dict": timm.create_model("test_vit").state_dict()}, f"{name}.pth")
    for number, photo in enumerate(sorted(Path("photos").iterdir())[:4]):
        Path(f"imagenet/class {number % 2}").mkdir(parents=True, exist_ok=True)
        Path(f"imagenet/class {number % 2}/{photo.name}").symlink_to(photo.resolve())
    few = ["--images", "photos", "--corruption", "fog", "--severity", "3", "--limit", "2", "--no-report", "--workers", "0"]
    before = [["analyze", "baseline.pth", *few, "--output", folder] for folder in ("run", "other")]
    blocks = re.findall(r"(?<!-->\n)```sh\n(.*?)```", README, re.DOTALL)
    printed = [shlex.split(line, comments=True)[1:] for line in "".join(blocks).splitlines() if line.startswith("overfocus ")]
    assert len(printed) >= 6
    for arguments in before + printed:
        short = ["--iterations", "3", "--batch-size", "2", "--workers", "0"] if arguments[0] == "train" else []
        result = CliRunner().invoke(app, [*arguments, *short])
        assert result.exit_code in ((0, 1) if arguments[0] == "check" else (0,)), (arguments, result.stderr)
        assert result.stdout
