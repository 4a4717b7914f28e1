"""Help is complete, shows an example, and comes at once because nothing heavy is imported for it."""

import os
import resource
import subprocess
import sys

import pytest
from typer.main import get_command

from overfocus_cli.main import app

COMMANDS = sorted(get_command(app).commands)
HEAVY = {"torch", "timm", "pandas", "numpy", "matplotlib", "scipy", "PIL", "rich"}


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_an_example(command: str) -> None:
    result = run_python("from overfocus_cli.main import run; run()", *command.split(), "--help")
    assert result.returncode == 0, result.stderr
    assert f"Example: overfocus {command}" in result.stdout


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom overfocus_cli.main import run\n"
        f"try: run()\nexcept SystemExit: print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    assert run_python(code, *command.split(), "--help").stderr.strip() == "[]"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_takes_less_than_three_tenths_of_a_second(command: str) -> None:
    def seconds() -> float:
        """Of the processor, so that other work on the machine does not count."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_python("from overfocus_cli.main import run; run()", *command.split(), "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


def test_every_option_is_explained() -> None:
    for command in get_command(app).commands.values():
        for parameter in command.params:
            assert parameter.help or parameter.name == "help", f"{command.name} {parameter.name}"
