"""Whatever goes wrong: one clear line on standard error, exit status 1 or 2, nothing lost and nothing run."""

import re
import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from overfocus_cli.main import app

_spec = spec_from_file_location("museum", Path(__file__).with_name("museum.py"))
assert _spec is not None
assert _spec.loader is not None
museum = module_from_spec(_spec)
sys.modules["museum"] = museum
_spec.loader.exec_module(museum)

ADVICE = re.compile(
    r"expected|must |\btry\b|choose|\bgive\b|[Dd]id you mean|[Tt]here is|Valid|valid|check the|see overfocus|restore|copy it|"
    r"download|leave|between|start the same|make sure|[Cc]onvert|[Ss]ave |measure again|shrink|nearest|pass |put |use |take |"
    r"add |remove |name the|divide |write it|measure one again|measure it|trust|at most|"
    r"needed|Missing|requires|overfocus list|those of|of one kind|are for|it holds|measured under"
)
"""What was expected, or what to try."""
LONGEST = 2200
"""Characters of a line with the name of the program."""


class Case(NamedTuple):
    """One thing that goes wrong."""

    kind: str
    command: list[str]
    words: str
    """Part of the line: the name of the file or option."""
    status: int = 1


def cases() -> Iterator[Case]:
    few = ["--images", "photos", "--corruption", "fog", "--severity", "3", "--workers", "0", "--no-report", "--output", "out"]
    for name in museum.BAD_CHECKPOINTS:
        shown = name.partition(".")[0]
        yield Case(f"checkpoint {name}", ["inspect", name], shown)
        yield Case(f"checkpoint {name}", ["analyze", name, *few], shown)
        yield Case(f"checkpoint {name}", ["compare", "good.pth", name, *few], shown)
        yield Case(f"checkpoint {name}", ["heatmap", name, "photos/cat/one.png", "--output", "out"], shown)
    for name in museum.HOSTILE:
        yield Case(f"checkpoint {name}", ["inspect", name], name.partition(".")[0])
    for name in museum.BAD_IMAGES:
        of_list = {"list_of_missing.txt": "nowhere.png: no such file", "list_of_pipes.txt": "pipe.png: expected an image, but"}
        shown = of_list.get(name, name.partition(".")[0].removeprefix("/dev/"))
        yield Case(f"image {name}", ["analyze", "good.pth", *few[2:], "--images", name], shown)
        yield Case(f"image {name}", ["heatmap", "good.pth", name, "--output", "out"], shown)
    for name in museum.BAD_RUNS:
        yield Case(f"run {name}", ["report", name], name)
        yield Case(f"run {name}", ["check", name, "--max", "gini=1"], name)
        yield Case(f"run {name}", ["figure", "layers", name, "--output", "out.png"], name)
    for name in museum.BAD_PARTS:
        yield Case(f"table {name}", ["report", name], name)
        yield Case(f"table {name}", ["check", name, "--max", "gini=1"], name)
    for name in museum.BAD_MAPS:
        yield Case(f"maps {name}", ["figure", "columns", name, "--output", "out.png"], name)
    for name in museum.BAD_RECIPES:
        yield Case(f"recipe {name}", ["train", "photos", "--model", "test_vit", "--recipe", name, "--output", "out"], "recipe")
    yield from numbers()
    yield from usage()
    yield from values()


def numbers() -> Iterator[Case]:
    """Values out of bounds, before any work."""
    train = ["train", "photos", "--model", "test_vit", "--output", "out"]
    for option in (
        "--epochs", "--iterations", "--batch-size", "--accumulation", "--learning-rate", "--seed", "--workers", "--limit",
        "--image-size", "--tap", "--log-every", "--save-every", "--validate-every", "--watch-every", "--adl", "--adl-warmup",
    ):  # fmt: skip
        name = option.removeprefix("--")
        yield Case(f"train {option} below", [*train, option, "-1"], name)
        yield Case(f"train {option} no number", [*train, option, "high"], name, 2)
        if option not in ("--learning-rate", "--adl", "--adl-warmup"):
            yield Case(f"train {option} above", [*train, option, "1" + "0" * 30], name)
        else:
            yield Case(f"train {option} infinite", [*train, option, "inf"], name)
            yield Case(f"train {option} NaN", [*train, option, "nan"], name)
    for option, value in (
        ("--set", "epochs=-1"), ("--set", "batch_size=1e30"), ("--set", "flip=2"), ("--set", "crop_scale=[1,0]"),
        ("--set", "masking=1"), ("--set", "precision=int4"), ("--set", "label_smoothing=nan"), ("--task", "detection"),
        ("--objective", "gan"), ("--tap-pooling", "sum"), ("--precision", "int4"),
    ):  # fmt: skip
        yield Case(f"train {option} {value}", [*train, option, value], value.partition("=")[0])
    for option, value, words in (
        ("--max", "gini", "NAME=VALUE"), ("--max", "=1", "NAME=VALUE"), ("--layers", "first", "--layers"),
    ):  # fmt: skip
        yield Case(f"check {option} {value}", ["check", "run", "--max", "gini=1", option, value], words, 2)
    for value, words in (
        ("gini=high", "gini"), ("ginni=1", "did you mean gini"), ("retained.gini=1", "retained is not defined for gini"),
        (f"{museum.ESCAPE}=1", r"\x1b"),
    ):  # fmt: skip
        yield Case(f"check --max {value}", ["check", "run", "--max", value], words)
    for command in ("analyze", "ablate", "compare"):
        start = [command, "--output", "out"]
        for option, value in (
            ("--batch-size", "0"), ("--batch-size", "-3"), ("--severity", "0"), ("--severity", "6"), ("--limit", "0"),
            ("--limit", "-1"), ("--workers", "-1"), ("--corruption", "no_such"), ("--max-pixels", "0"), ("--device", "tpu9"),
        ):  # fmt: skip
            words = option.removeprefix("--").replace("-", "_") if option not in ("--corruption", "--severity") else value
            yield Case(f"{command} {option} {value}", [*start, option, value], words.split("_")[0])


def usage() -> Iterator[Case]:
    """Words that are none of the program's, with what was probably meant."""
    for command, words in (
        (["analyse"], "Did you mean 'analyze'"),
        (["--colour", "analyze"], "--colour"),
        (["analyze", "--colour"], "see overfocus analyze --help"),
        (["analyze", "--severity", "high"], "--severity"),
        (["analyze", "--layers", "first"], "--layers"),
        (["report"], "Missing argument"),
        (["list"], "Missing argument"),
        (["figure", "layers", "run", "--width", "wide"], "3.3in"),
        (["heatmap", "--query", "here"], "ROW,COL"),
        (["inspect", "a", "b"], "see overfocus inspect --help"),
        (["train", "photos", "--epochs"], "requires an argument"),
        (["analyze", "--output", "--images", "photos"], "'--output': expected a value, got '--images'"),
        (["report", "run", "--ablation", "--json"], "'--ablation': expected a value"),
        (["train", "photos", "--model-arg", "depth"], "NAME=VALUE"),
        (["inspect", ""], "empty"),
        (["analyze", "good.pth", "--images", ""], "--images is empty"),
        (["analyze", "--output="], "--output is empty"),
        (["report", ""], "empty"),
        (["train", "photos", "--init", ""], "--init is empty"),
        (["check", "run", "--max", "gini=1", "--max", "gini=2"], "'gini' twice"),
        (["train", "photos", "--set", "epochs=1", "--set", "epochs=2"], "'epochs' twice"),
        (["train", "photos", "--epochs", "1_0"], "--epochs"),
        (["train", "photos", "--epochs", "٣"], "--epochs"),
        (["analyze", "--layers", "1_0"], "--layers"),
        (["list", "models", ""], "empty"),
    ):
        yield Case(f"usage {' '.join(command)}", command, words, 2)
    for command, words in (
        (["list", "metric"], "did you mean metrics?"),
        (["list", "modles"], "did you mean models?"),
        (["list", "corruptions", "zz"], "overfocus list corruptions shows all"),
        (["list", "metrics", "ginni", "--json"], "did you mean gini?"),
        (["inspect", "test_vit", "--model-args", "depth=2"], "model_args has no meaning for the name of a timm model"),
        (["inspect", "test_vit", "--weights", "state_dict"], "weights has no meaning for the name of a timm model"),
        (["inspect", "good.pth", "--model-args", "num_classes=7"], "expected num_classes="),
        (["inspect", "good.pth", "--model-args", "depth=6,depth=6"], "depth twice"),
        (["check", "run", "--max", "gini=inf"], "expected a finite number"),
        (["evaluate", "good.pth", "--data", "tree", "--output", "out"], "tree/fog: expected severities 1 to 5"),
        (["evaluate", "good.pth", "--data", "videos", "--output", "out", "--workers", "0"], "expected a video of 2 to"),
        (["train", "photos", "--model", "test_vit", "--epochs", "2", "--set", "epochs=-1"], "--set must leave epochs out"),
        (["train", "photos", "--init", "good.pth", "--learning-rate", "1", "--set", "reference_batch=0"], "reference_batch"),
        (["figure", "layer", "run"], "did you mean layers?"),
        (["figure", "matrx", "run"], "did you mean matrix?"),
        (["heatmap", "--method", "rolout"], "did you mean rollout?"),
        (["analyze", "photos"], "--images photos"),
        (["inspect", "photos/cat/one.png"], "one.png"),
        (["ablate", "photos"], "--images photos"),
        (["heatmap", "photos/cat/one.png", "good.pth"], "overfocus heatmap good.pth photos/cat/one.png"),
        (["report", "."], "run folder"),
        (["train", "photos", "--output", "out"], "--model NAME"),
        (["train", "no_images", "--model", "test_vit", "--output", "out"], "no_images"),
        (["train", "nowhere", "--model", "test_vit", "--output", "out"], "nowhere"),
        (["train", "good.pth", "--model", "test_vit", "--output", "out"], "good.pth"),
        (["train", "photos", "--model", "test_vit", "--batch-size", "2", "--output", "good.pth"], "good.pth"),
        (["train", "photos", "--model", "test_vit", "--output", "out", "--init", "text.pth"], "text.pth"),
        (["train", "photos", "--model", "test_vt", "--output", "out"], "test_vit"),
        (["train", "photos", "--model", "test_vit", "--output", "out", "--workers", "0"], "--batch-size 2"),
        (["evaluate", "text.pth", "--data", "photos", "--output", "out"], "text.pth"),
        (["evaluate", "good.pth", "--data", "nowhere", "--output", "out"], "nowhere"),
    ):
        yield Case(f"meant {' '.join(command)}", command, words)


def values() -> Iterator[Case]:
    """Values of the right type that mean nothing: each is refused with what would mean something."""
    measure = ["--images", "photos", "--corruption", "fog", "--severity", "3", "--workers", "0", "--no-report", "--output", "out"]
    for command, options in {
        ("analyze", "good.pth", *measure): (
            ("--device", "meta", "device 'meta' cannot be used"), ("--device", "hpu", "try cpu"), ("--device", "mps", "try cpu"),
            ("--device", museum.ESCAPE, r"\x1b"), ("--layers", "99", "between"), ("--layers", "-99", "between"),
            ("--top-fraction", "nan", "above 0"), ("--top-fraction", "1.5", "at most 1"), ("--image-size", "0", "at least 1"),
            ("--image-size", "33", "(Input height (33)"), ("--image-size", "32x9999999", "at most"),
            ("--constants", "nope", "cifar-c"),
            ("--class-map", "twice.json", "cat twice"),
            ("--class-map", "long_cell.csv", "long_cell.csv"), ("--class-map", "nowhere.json", "nowhere.json"),
            ("--class-map", "photos", "this is a folder"),
            ("--class-map", "pipe.png", "named pipe"), ("--class-map", "binary_list.txt", "UTF-8"),
            ("--cache", "good.pth", "another folder"), ("--cache", "/proc/nope", "another folder"),
            ("--weights", "nope.nothing", "--weights"), ("--weights", "k" * 10_000, "--weights"),
            ("--model-args", "depth", "KEY=VALUE"), ("--model-args", "depth=1000000000", "from 1 to 200"),
            ("--model-args", "__class__=3", "expected one of"), ("--model", "resnet18", "test_vit"),
            ("--model", "../../etc/passwd", "overfocus list models"), ("--model", museum.ESCAPE, r"\x1b"),
            ("--model", "hf-hub:nobody/nothing", "overfocus list models"), ("--corruption", "other image", "Valid names"),
            ("--corruption", "FOG", "did you mean 'fog'"), ("--max-pixels", "10", "--max-pixels"), ("--workers", "100000", "256"),
            ("--output", "good.pth", "another output"), ("--output", "/proc/nope", "another output"),
            ("--output", "o" * 300, "a shorter path"), ("--output", "photos", "another output"), ("--output", "run", "another"),
        ),
        ("compare", "run", "run", "--no-report", "--output", "out"): (
            ("--resamples", "0", "at least 1"), ("--resamples", "1000000000000", "at most"), ("--group", "x=run", "got both"),
            ("--ablation", "photos", "overfocus ablate"), ("--ablation", "run", "expected an ablation"),
            ("--output", "good.pth", "another output"), ("--output", "photos", "another output"),
        ),
        ("ablate", "good.pth", *measure): (
            ("--fraction", "0", "above 0"), ("--fraction", "nan", "above 0"), ("--fraction", "1", "below 1"),
            ("--draws", "0", "at least 1"), ("--how", "erase", "remove or corrupt"), ("--output", "run", "another"),
        ),
        ("evaluate", "good.pth", "--data", "photos", "--output", "out", "--workers", "0"): (
            ("--data", "/dev/zero", "expected a folder"), ("--data", "photos/cat", "at least two"),
            ("--task", "segmentation", "--task"),
            ("--clean", "photos", "--clean"), ("--baseline", "nowhere", "nowhere"), ("--baseline", "run", "overfocus evaluate"),
            ("--window", "64", "segmentation"), ("--scales", "nan", "above 0"), ("--scales", "1e9", "at most"),
            ("--tree-geometry", "odd", "as-is or model"), ("--device", "meta", "try cpu"),
        ),
        ("heatmap", "good.pth", "photos/cat/one.png", "--output", "out"): (
            ("--head", "99", "between"), ("--layer", "-99", "between"), ("--query", "9,9", "method row"),
            ("--class", "9", "grad-cam"),
            ("--head-fusion", "sum", "mean, max or min"), ("--discard-ratio", "nan", "below 1"), ("--method", "cam", "rollout"),
            ("--corruption", "nope", "Valid names"), ("--output", "good.pth", "another output"), ("--device", "meta", "try cpu"),
        ),
        ("figure", "layers", "run"): (
            ("--layer", "0", "only to columns"), ("--image", "0", "only to columns"), ("--layers", "99", "there is 0, 1"),
            ("--layers", "0-1000000000", "at most 1000"), ("--metric", "nope", "There is"), ("--label", "nope=x", "NAME=TEXT"),
            ("--corruption", "nope", "There is"), ("--severity", "9", "there is"), ("--output", "x.exe", ".pdf"),
        ),
        ("figure", "columns", "run"): (
            ("--metric", "gini", "leave it out"), ("--layers", "0", "leave it out"), ("--image", "nope", "there is 0"),
            ("--layer", "99", "between"),
        ),
        ("check", "run", "--max", "gini=1"): (
            ("--max", "top_share=nan", "expected a finite number"), ("--max", "top_share=true", "expected a finite number"),
            ("--max", "image=1", "image"), ("--layers", "99", "99"), ("--corruption", "nope", "nope"),
        ),
    }.items():  # fmt: skip
        for option, value, words in options:
            yield Case(f"{' '.join(command[:1])} {option} {value[:20]}", [*command, option, value], words)
    for command in (["compare", "run", "--no-report"], ["check", "run"]):
        yield Case(f"too little {command[0]}", [*command, *(["--output", "out"] if command[0] == "compare" else [])], "expected")


CASES = list(cases())


@pytest.fixture(scope="session")
def rooms(tmp_path_factory: pytest.TempPathFactory, synthetic_run: Callable[..., Path]) -> Path:
    made: Path = museum.make_museum(tmp_path_factory.mktemp("museum"), synthetic_run)
    return made


@pytest.fixture
def here(rooms: Path, showing: Callable[[Path], Path]) -> Path:
    """A folder of its own that shows the museum."""
    return showing(rooms)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: " ".join([case.kind, *case.command[:1]]).encode("ascii", "replace").decode()
)
def test_one_clear_line(case: Case, here: Path) -> None:
    before = {path.name for path in here.iterdir()}
    result = CliRunner().invoke(app, case.command, prog_name="overfocus")
    assert result.exit_code == case.status, result.output[-2000:] + repr(result.exception)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("overfocus: warning: ")]
    assert len(lines) == 1, result.stderr[:4000]
    assert lines[0].startswith("overfocus: ")
    assert len(lines[0]) < LONGEST
    assert lines[0].isprintable()
    assert case.words in lines[0]
    assert "bug in overfocus" not in lines[0]
    assert "Traceback" not in lines[0]
    assert ADVICE.search(lines[0])
    assert not (here / "executed").exists()
    assert not [path for path in here.rglob(".*.unfinished") if not path.is_symlink()]
    assert {path.name for path in here.iterdir()} <= before | {"out", "overfocus-heatmaps"}


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 300
    assert len({case.kind for case in CASES}) >= 60
