"""What the wheel and the sdist hold, and that API pages can be built."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True
    )
    return folder


@pytest.mark.slow
def test_wheel_holds_the_three_packages_with_their_data_and_nothing_else(archives: Path) -> None:
    (wheel,) = archives.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "overfocus",
        "overfocus_cli",
        "overfocus_reports",
    }
    for package, folder in (("overfocus", ROOT), ("overfocus_cli", ROOT / "cli"), ("overfocus_reports", ROOT / "reports")):
        paths = [path for path in (folder / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert folder / package / "py.typed" in paths
        assert {path.relative_to(folder).as_posix() for path in paths} <= set(names)


@pytest.mark.slow
def test_wheel_has_the_console_script(archives: Path) -> None:
    (wheel,) = archives.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "overfocus = overfocus_cli.main:run" in archive.read(entry).decode()


@pytest.mark.slow
def test_sdist_holds_what_the_tests_need(archives: Path) -> None:
    (sdist,) = archives.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "tests/test_readme.py", "overfocus/__init__.py"} <= names


@pytest.mark.slow
def test_api_pages_are_built(tmp_path: Path) -> None:
    """The command of the README; every module is imported for it."""
    pytest.importorskip("pdoc")
    subprocess.run([sys.executable, "-m", "pdoc", "overfocus", "-o", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    page = (tmp_path / "overfocus.html").read_text()
    assert all(f'id="{name}"' in page for name in ("analyze", "capture", "compare", "monitor"))
    assert (tmp_path / "overfocus" / "metrics.html").is_file()
