"""Run the README's commands and put what they print under them.

    python tests/scripts/update_readme.py

A command is a line that begins with "$ " in a block of kind `console`; what follows up to the next one is its output. They run
in one folder, in order, with nothing in it but `tests`. `tests/test_readme.py` runs them again and compares.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[tuple[str, str]]:
    """The (command, output) pairs of a README, in order."""
    for block in BLOCK.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output.strip("\n")


def run(command: str, folder: Path) -> str:
    """What a command prints in `folder`, without blanks at the ends of lines; raises if it fails."""
    paths = [str(ROOT), str(ROOT / "cli"), str(ROOT / "reports")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "100", "PYTHON": sys.executable}
    functions = 'overfocus() { "$PYTHON" -m overfocus "$@"; }; python() { "$PYTHON" "$@"; }; '
    result = subprocess.run(["bash", "-c", functions + command], cwd=folder, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{command}: exit status {result.returncode}\n{result.stderr}")
    return "\n".join(line.rstrip() for line in result.stdout.strip("\n").splitlines())


def updated(text: str, folder: Path) -> str:
    """The README with what its commands print now."""

    def rerun(block: re.Match[str]) -> str:
        printed = ((command, run(command, folder)) for command, _ in commands(f"```console\n{block[0]}```\n"))
        return "\n".join(f"$ {command}\n{output}\n" if output else f"$ {command}" for command, output in printed).rstrip() + "\n"

    return BLOCK.sub(rerun, text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tests").symlink_to(ROOT / "tests")
        README.write_text(updated(README.read_text(), Path(folder)))
