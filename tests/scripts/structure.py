"""Figures about the structure of the code: size, import circles, and how many files one `analyze` runs through.

    python tests/scripts/structure.py

How it counts:

- Files and lines: every `*.py` of the three packages, all lines, formatted as `ruff format` leaves them.
- Import circles: strongly connected groups of more than one module. Every import statement counts, also those inside
  functions and under `if TYPE_CHECKING:`. Packages that Python imports on the way to a module do not count.
- Files entered: files of ours in which at least one function runs while `overfocus.analyze` measures one bundled image.
- Switches: calls from a function in one of our files to a function in another of ours, direct or through other libraries,
  during the second forward of the bundled model under `capture(reduce=measure)`; the first learns the layout.
"""

import ast
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (ROOT / "overfocus", ROOT / "cli" / "overfocus_cli", ROOT / "reports" / "overfocus_reports")


def modules() -> dict[str, Path]:
    """Every module of the three packages, by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a module imports at any time."""

    class Imports(ast.NodeVisitor):
        def __init__(self) -> None:
            self.found: set[str] = set()

        def visit_Import(self, node: ast.Import) -> None:
            self.found |= {alias.name for alias in node.names if alias.name in known}

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            base = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                self.found |= {inner} if inner in known else {base} & known.keys()

    visitor = Imports()
    visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
    return visitor.found - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected groups of more than one module (Tarjan 1972), largest first."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], index[other])
        if lowest[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                groups.append(sorted(group))

    sys.setrecursionlimit(10_000)
    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(groups, key=len, reverse=True)


class Watch:
    """Counts which of our files run, and how often one calls into another."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.switches = 0
        self._prefixes = tuple(str(package) for package in PACKAGES)

    def __enter__(self) -> "Watch":
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _profile(self, frame: FrameType, event: str, _argument: object) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(self._prefixes):
            return
        here = frame.f_code.co_filename
        if frame.f_code.co_name != "<module>":
            self.files.add(here)
        for caller in self._callers(frame):
            self.switches += caller != here
            break

    def _callers(self, frame: FrameType) -> Iterator[str]:
        above = frame.f_back
        while above is not None:
            if above.f_code.co_filename.startswith(self._prefixes):
                yield above.f_code.co_filename
            above = above.f_back


def watched(function: Callable[[], object]) -> Watch:
    with Watch() as watch:
        function()
    return watch


def run_figures() -> None:
    import torch

    import overfocus
    from overfocus.samples import sample_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in ("warm-up", "counted"):  # imports and caches belong to the first
            watch = watched(
                lambda name=name: overfocus.analyze(  # type: ignore[misc]
                    corruptions=["gaussian_noise"],
                    severities=[3],
                    limit=1,
                    output=work / name,
                    workers=0,
                    device="cpu",
                    progress=False,
                )
            )
    print(f"files that analyze of one image enters: {len(watch.files)}")
    loaded = overfocus.load_model(sample_checkpoint())
    images = torch.randn(2, *loaded.input_size)
    with torch.no_grad(), overfocus.capture(loaded.model, reduce=overfocus.metrics.measure) as captured:
        for _ in range(2):
            captured.clear()
            watch = watched(lambda: loaded.model(images))
    print(f"switches between files in a forward after the first: {watch.switches} ({len(captured.reduced)} layers)")


def main() -> None:
    known = modules()
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in known.items()}
    print(f"Python files in the three packages: {len(known)}, lines: {sum(lines.values()):,}")
    longest = sorted(lines, key=lines.__getitem__)[-3:]
    print(f"longest: {', '.join(f'{name} ({lines[name]})' for name in reversed(longest))}")
    found = circles({name: imported(name, path, known) for name, path in known.items()})
    print(f"import circles: {len(found)}")
    for group in found:
        print(f"  {len(group)} modules: {', '.join(group)}")
    run_figures()


if __name__ == "__main__":
    main()
