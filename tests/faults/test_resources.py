"""A full disk, memory that runs out and a folder that another program writes: one line, and what was measured is kept."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import overfocus.files
from overfocus.errors import RunError
from overfocus.files import lock_folder
from overfocus.run import Run
from overfocus_cli.main import app

NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9000000000 "
    "bytes. Error code 12 (Cannot allocate memory)"
)
"""What torch says where a processor has no memory left."""
MEASURE = ["--workers", "0", "--device", "cpu", "--batch-size", "2", "--corruption", "fog", "--severity", "3"]
COMMANDS = {
    "analyze": ["analyze", "a.pth", "--images", "photos", "--no-report", "--output", "out", *MEASURE],
    "compare": [
        "compare",
        "a.pth",
        "b.pth",
        "--images",
        "photos",
        "--no-report",
        "--output",
        "out",
        "--resamples",
        "20",
        *MEASURE,
    ],
    "ablate": ["ablate", "a.pth", "--images", "photos", "--output", "out", "--fraction", "0.1", *MEASURE],
    "evaluate": ["evaluate", "a.pth", "--data", "photos", "--output", "out", *MEASURE],
    "heatmap": ["heatmap", "a.pth", "photos/x/0.png", "--layer", "0", "--output", "out"],
    "inspect": ["inspect", "a.pth"],
    "train": ["train", "photos", "--init", "a.pth", "--epochs", "1", "--batch-size", "2", "--workers", "0", "--output", "out"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resources")
    for number, name in enumerate("ab"):
        torch.manual_seed(number)
        about = {"num_classes": 2, "img_size": 32}
        state = timm.create_model("test_vit", **about).state_dict()
        torch.save({"arch": "test_vit", "model_args": about, "state_dict": state}, folder / f"{name}.pth")
    for number in range(4):
        path = folder / "photos" / "xy"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str) -> Result:
    return CliRunner().invoke(app, COMMANDS[name], prog_name="overfocus")


def complaint(result: Result, *words: str) -> str:
    """The one line of a failed command."""
    assert result.exit_code == 1, result.output + repr(result.exception)
    lines = [line for line in result.stderr.splitlines() if line.startswith("overfocus: ") and "warning: " not in line]
    assert len(lines) == 1, result.stderr
    assert "bug in overfocus" not in lines[0]
    assert all(word in lines[0] for word in words), lines[0]
    return lines[0]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a function raise from its so manyth call on."""

    def fail(owner: object, name: str, error: BaseException, after: int = 0) -> None:
        usual, calls = getattr(owner, name), iter(range(10**9))

        def instead(*arguments: Any, **options: Any) -> Any:
            if next(calls) >= after:
                raise error
            return usual(*arguments, **options)

        monkeypatch.setattr(owner, name, instead)

    return fail


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("name", ["analyze", "train"])
def test_full_disk(name: str, after: int, here: Path, failing: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    failing(os, "fsync", OSError(errno.ENOSPC, "No space left on device"), after)
    complaint(run(name), "room")
    assert not list(here.rglob(".*.unfinished"))
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert run(name).exit_code == 0
    if name == "analyze":
        assert Run("out").description.complete
        assert len(Run("out").predictions) == 8  # images × (clean, fog)


@pytest.mark.parametrize("name", ["compare", "ablate", "evaluate", "heatmap"])
def test_full_disk_at_the_end(name: str, here: Path, failing: Callable[..., None]) -> None:
    failing(os, "fsync", OSError(errno.ENOSPC, "No space left on device"))
    complaint(run(name), "full")
    assert not list(here.rglob(".*.unfinished"))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("after", [0, 30])
def test_out_of_memory_in_a_forward(name: str, after: int, failing: Callable[..., None]) -> None:
    failing(torch.nn.functional, "linear", RuntimeError(NO_MEMORY), after)
    result = run(name)
    if result.exit_code == 0:  # a command of fewer layers
        assert after
    else:
        complaint(result, "memory", "try")


@pytest.mark.parametrize("name", COMMANDS)
def test_out_of_memory_while_loading(name: str, failing: Callable[..., None]) -> None:
    failing(torch, "load", MemoryError())
    complaint(run(name), "memory")


@pytest.mark.parametrize("name", ["analyze", "compare", "ablate", "evaluate"])
def test_out_of_memory_in_a_corruption(name: str, failing: Callable[..., None]) -> None:
    from overfocus.sweep import reading

    failing(reading, "corrupt_cached", MemoryError())
    complaint(run(name), "memory", "try")


def test_two_programs_never_write_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overfocus.files, "_PATIENCE", 0.3)
    before = sorted(tmp_path.iterdir())
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        held = lock_folder(tmp_path)
        os.write(ready[1], b"1" if held else b"0")
        os.read(go[0], 1)
        os._exit(0)
    try:
        assert os.read(ready[0], 1) == b"1"
        with pytest.raises(RunError, match="another process is writing there; wait until it ends, or choose another output"):
            lock_folder(tmp_path)
    finally:
        os.write(go[1], b"1")
        os.waitpid(child, 0)
    mine = lock_folder(tmp_path)
    assert mine is not None
    assert lock_folder(tmp_path) is mine
    assert sorted(tmp_path.iterdir()) == before


denied: set[Path] = set()
"""Files and folders that may not be opened or written now."""


def _deny(event: str, details: Any) -> None:
    if denied and event in ("open", "os.listdir", "os.scandir", "os.mkdir") and isinstance(details[0], str | os.PathLike):
        path = Path.cwd() / details[0]
        writes = event == "os.mkdir" or (event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR))
        if path in denied or (writes and path.parent in denied):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))


@pytest.fixture
def locked(here: Path, synthetic_run: Callable[..., Path]) -> Iterator[Path]:
    """A folder in which some things may not be opened or written: the tests may run as root, to whom nothing is denied."""
    synthetic_run(here / "run", images=2, layers=1, displayed=1)
    (here / "recipe.yaml").write_text("epochs: 1\nbatch_size: 2\nlearning_rate: 0.1\n")
    for name in ("hidden", "full"):
        (here / name).mkdir()
    if not getattr(_deny, "installed", False):
        sys.addaudithook(_deny)  # can never be taken away
        _deny.installed = True  # type: ignore[attr-defined]
    names = ("b.pth", "photos/x/0.png", "recipe.yaml", "run/run.json", "hidden", "full")
    denied.update(here / name for name in names)
    try:
        yield here
    finally:
        denied.clear()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["inspect", "b.pth"], "b.pth"),
        (["inspect", "hidden"], "hidden"),
        (["analyze", "a.pth", "--images", "hidden", "--output", "full/out", "--no-report", *MEASURE], "hidden"),
        (["analyze", "a.pth", "--images", "photos/x/0.png", "--output", "full/out", "--no-report", *MEASURE], "0.png"),
        (["analyze", "a.pth", "--images", "photos/y", "--output", "full/out", "--no-report", *MEASURE], "full"),
        (["analyze", "a.pth", "--images", "photos/y", "--output", "full", "--no-report", *MEASURE], "full"),
        (["analyze", "a.pth", "--images", "photos/y", "--cache", "full/cache", "--output", "full/out", *MEASURE], "full"),
        (["evaluate", "a.pth", "--data", "hidden", "--output", "full/out", *MEASURE], "hidden"),
        (["compare", "a.pth", "b.pth", "--images", "photos/y", "--output", "full/out", *MEASURE], "b.pth"),
        (["heatmap", "a.pth", "photos/y/1.png", "--layer", "0", "--output", "full/out"], "full"),
        (["train", "photos", "--init", "a.pth", "--recipe", "recipe.yaml", "--output", "full/out"], "recipe.yaml"),
        (["report", "run"], "run"),
        (["check", "run", "--max", "gini=1"], "run"),
        (["curves", "hidden"], "hidden"),
    ],
)
def test_not_permitted(command: list[str], words: str, locked: Path) -> None:
    result = CliRunner().invoke(app, command, prog_name="overfocus")
    complaint(result, words)
    assert not list(locked.glob("full/*"))
