"""Help is complete, shows an example, is never cut off, and comes at once because nothing heavy is imported for it."""

import json
import os
import re
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from overfocus.version import __version__
from overfocus_cli.main import app

COMMANDS = sorted(get_command(app).commands)
OF_TYPER = {"typer", "click", "shellingham", "typing_extensions", "annotated_doc", "colorama", "_distutils_hack", "sitecustomize"}
"""What typer needs; all else outside the standard library would be ours."""
MOST_MODULES = 60
"""Modules that help may load beyond those of `import typer`; an import costs about half a millisecond."""


def imported_by(code: str, *arguments: str) -> set[str]:
    """Names of the modules that a program has loaded at its end."""
    script = f"import sys\ntry:\n    {code}\nfinally:\n    import json; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    path = os.pathsep.join(sys.path)
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    modules: list[str] = json.loads(ended.stderr.splitlines()[-1])
    return set(modules)


@pytest.fixture(scope="module")
def needed_by_typer() -> set[str]:
    return imported_by("import typer; from typer.testing import CliRunner; typer.run(lambda: None)")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy(command: str, needed_by_typer: set[str]) -> None:
    loaded = imported_by("from overfocus_cli.main import run; run()", *command.split(), "--help") - needed_by_typer
    foreign = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names) - OF_TYPER
    assert foreign == {"overfocus", "overfocus_cli"}
    assert len(loaded) <= MOST_MODULES, sorted(loaded)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_an_example_and_is_not_cut_off(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"], prog_name="overfocus", terminal_width=80)
    assert result.exit_code == 0, result.stderr
    assert f"Example: overfocus {command}" in result.stdout
    assert not re.search(r"[a-z]\.\.\.$", result.stdout, re.MULTILINE)
    assert "None" not in result.stdout


def test_every_option_is_explained() -> None:
    for command in get_command(app).commands.values():
        for parameter in command.params:
            assert parameter.help or parameter.name == "help", f"{command.name} {parameter.name}"


def test_version_and_completion() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"overfocus {__version__}\n"
    options = CliRunner().invoke(app, ["--help"]).stdout
    assert "--install-completion" in options
    assert "--show-completion" in options


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("overfocus com", ["compare"]),
        ("overfocus analyze --corruption fo", ["fog"]),
        ("overfocus compare --corruption wea", ["weather"]),
        ("overfocus figure layers run --metrics gi", ["gini"]),
        ("overfocus train data --recipe fi", ["finetune"]),
        ("overfocus heatmap --method g", ["gradient-rollout", "grad-cam"]),
    ],
)
def test_tab_completes(line: str, offered: list[str]) -> None:
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_OVERFOCUS_COMPLETE": "complete_bash"}
    assert CliRunner().invoke(app, [], prog_name="overfocus", env=variables).stdout.split() == offered
