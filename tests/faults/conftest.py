"""A folder that shows what others hold, to run commands in."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def showing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Enter a folder of the test's own with a link to each file of another: `showing(folder)`."""

    def enter(folder: Path) -> Path:
        for path in folder.iterdir():
            (tmp_path / path.name).symlink_to(path)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return enter
