"""Whatever metadata, descriptions, headers and recipes say: an error of ours in one line, or something that can be used."""

import copy
import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from overfocus.checkpoints.loaded import class_names_for, preprocess_for
from overfocus.checkpoints.metadata import metadata_of_config, metadata_of_safetensors, metadata_of_trainer
from overfocus.checkpoints.read import read_checkpoint
from overfocus.errors import CheckpointError, OverfocusError, RunError, TrainingError
from overfocus.runs.description import (
    ComparisonDescription,
    RunDescription,
    TrainingDescription,
    decode_description,
    encode_description,
)
from overfocus.runs.folder import read_arrays, read_table
from overfocus.training.settings import Recipe, load_recipe

AMOUNTS = [pytest.param(25, id="few"), pytest.param(1500, id="many", marks=pytest.mark.slow)]
TEXTS = st.text(st.characters(exclude_categories=[]), max_size=30) | st.sampled_from(
    ["", "../../etc/passwd", "\x1b[31m\u202e", "\ud800", "[red]", "=1+1", "os.system", "nan", "1e999", "[" * 5000, "k" * 20_000]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 10**9, 10**40, 2**53, 2**64, 1e-300, 1e300])
PLAIN = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8)
METADATA = ("architecture", "model_args", "tap", "class_names", "class_colours", "input_size", "mean", "std", "interpolation")
METADATA += ("crop_pct", "crop_mode")
CONTENT = ("arch", "args", "model_args", "model_kwargs", "hyper_parameters", "meta", "config", "class_names", "classes", "cfg")
CONFIG = ("architecture", "model_type", "num_classes", "pretrained_cfg", "model_args", "label_names", "label_descriptions")
CONFIG += METADATA


def says_one_line(error: OverfocusError, words: str = "") -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 2200
    assert words in str(error)


def tables(keys: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """Dictionaries with some of these keys, at two depths."""
    inner = st.dictionaries(st.sampled_from(keys), VALUES, max_size=4)
    return st.dictionaries(st.sampled_from(keys), VALUES | inner, max_size=5)


@pytest.fixture(scope="module")
def small() -> torch.nn.Module:
    model: torch.nn.Module = timm.create_model("test_vit")
    return model


@pytest.mark.parametrize("examples", AMOUNTS)
@pytest.mark.parametrize(
    ("read", "keys", "as_text"),
    [
        (metadata_of_safetensors, METADATA, True),
        (metadata_of_config, CONFIG, False),
        (metadata_of_trainer, CONTENT + METADATA, False),
    ],
    ids=["safetensors metadata", "config.json", "checkpoint"],
)
def test_metadata(read: Callable[..., Any], keys: tuple[str, ...], as_text: bool, examples: int, small: torch.nn.Module) -> None:
    @settings(max_examples=examples)
    @given(tables(keys))
    def check(values: dict[str, Any]) -> None:
        given = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
        try:
            metadata = read(given if as_text else values, "file")
            preprocess, _ = preprocess_for(small, metadata, None)
        except CheckpointError as error:
            says_one_line(error)
        else:
            assert all(math.isfinite(number) for number in (*preprocess.mean, *preprocess.std))
            assert all(number > 0 for number in preprocess.std)
            assert max(preprocess.input_size) <= 16_384
            assert preprocess.crop_pct > 0
            assert all(isinstance(name, str) for name in class_names_for(metadata, small) or [])

    check()


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, of lists the first two entries."""
    yield where
    inside = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, part in inside:
        yield from places(part, (*where, key))


def changed(value: Any, where: tuple[Any, ...], new: Any, *, gone: bool) -> Any:
    """A copy with another value at one place, or without it."""
    if not where:
        return new
    whole = at = copy.deepcopy(value)
    for key in where[:-1]:
        at = at[key]
    if gone:
        del at[where[-1]]
    else:
        at[where[-1]] = new
    return whole


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, synthetic_run: Callable[..., Path]) -> Path:
    return synthetic_run(tmp_path_factory.mktemp("fuzz") / "run", images=2, layers=2, displayed=1)


TRAINING = {"format": 2, "overfocus": "0.2.0", "created": "", "status": "running", "notes": ["a"]}
SETTINGS = {"recipe": {"epochs": 1}, "architecture": {"name": "test_vit"}, "seed": 0, "images": 4, "class_names": ["a", "b"]}
TRAINING |= {"settings": SETTINGS | {"input_size": [3, 32, 32], "processes": 1}}
MODELS = [{"name": "a", "run": "runs/a"}, {"name": "b", "run": "../b"}]
COMPARISON = {"format": 2, "overfocus": "0.2.0", "baseline": "a", "models": MODELS, "images": 3, "resamples": 10}
COMPARISON |= {
    "table": [{"model": "b", "mean": 0.5}],
    "verdicts": [{"question": "q", "model": "b", "answer": "yes", "sentence": "s"}],
}


@pytest.mark.parametrize("examples", AMOUNTS)
@pytest.mark.parametrize("kind", [RunDescription, TrainingDescription, ComparisonDescription])
def test_descriptions(kind: Any, examples: int, sound: Path) -> None:
    known = {TrainingDescription: TRAINING, ComparisonDescription: COMPARISON}
    whole = known.get(kind) or json.loads((sound / "run.json").read_text())
    where = list(places(whole))

    @settings(max_examples=examples)
    @given(st.sampled_from(where), VALUES, st.booleans(), st.none() | st.tuples(st.integers(0, 3000), st.binary(max_size=3)))
    def check(place: tuple[Any, ...], new: Any, gone: bool, bytes_in: tuple[int, bytes] | None) -> None:
        text = json.dumps(changed(whole, place, new, gone=gone)).encode()
        if bytes_in is not None:
            text = text[: bytes_in[0]] + bytes_in[1] + text[bytes_in[0] + 1 :]
        try:
            description = decode_description(text, kind, Path("description.json"))
        except (RunError, TrainingError) as error:
            says_one_line(error, "description.json")
            return
        assert decode_description(encode_description(description), kind, Path("again.json")) == description
        for layer in getattr(description, "layers", []):
            assert 0 < layer.uniform_share <= 1
            assert 0 < description.relative_depth(layer) < 10**6
            assert layer.label.isprintable()

    check()


@pytest.mark.parametrize("examples", AMOUNTS)
def test_safetensors_headers(examples: int, tmp_path: Path) -> None:
    whole = save({"blocks.0.attn.qkv.weight": torch.zeros(6, 2), "b": torch.ones(3)}, {"architecture": "test_vit"})
    length = struct.unpack("<Q", whole[:8])[0]
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    where = list(places(header))
    path = tmp_path / "file.safetensors"

    @settings(max_examples=examples)
    @given(st.sampled_from(where), VALUES, st.booleans(), st.none() | st.integers(0, 2**64 - 1), st.integers(0, len(body)))
    def check(place: tuple[Any, ...], new: Any, gone: bool, claimed: int | None, kept: int) -> None:
        text = json.dumps(changed(header, place, new, gone=gone)).encode()
        path.write_bytes(struct.pack("<Q", len(text) if claimed is None else claimed) + text + body[:kept])
        try:
            file = read_checkpoint(path)
            metadata_of_safetensors(file.metadata, path)
        except CheckpointError as error:
            says_one_line(error, "file.safetensors")

    check()


@pytest.mark.parametrize("examples", AMOUNTS)
def test_recipes(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    names = [field.name for field in fields(Recipe)]
    sound = {"epochs": 1, "batch_size": 2, "learning_rate": 0.1}

    @settings(max_examples=examples)
    @given(st.dictionaries(st.sampled_from(names) | TEXTS, VALUES, max_size=5), st.none() | TEXTS)
    def check(values: dict[str, Any], text: str | None) -> None:
        try:
            content = yaml.safe_dump(sound | values, allow_unicode=True) if text is None else text
        except (yaml.YAMLError, RecursionError):
            return
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
        try:
            recipe = load_recipe(str(path))
        except TrainingError as error:
            says_one_line(error, "recipe")
        else:
            assert all(math.isfinite(value) for value in vars(recipe).values() if isinstance(value, float))

    check()


@pytest.mark.parametrize("examples", AMOUNTS)
@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_tables_and_arrays(kind: str, examples: int, sound: Path, tmp_path: Path) -> None:
    source = next(sound.glob("metrics/*.parquet") if kind == "parquet" else sound.glob("maps/image-*.npz"))
    whole = source.read_bytes()
    path = tmp_path / f"damaged.{kind}"
    read: Callable[[Path], Any] = read_table if kind == "parquet" else read_arrays

    @settings(max_examples=examples)
    @given(st.integers(0, len(whole)), st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=3))
    def check(kept: int, flips: list[tuple[int, int]]) -> None:
        damaged = bytearray(whole)
        for place, value in flips:
            damaged[place] = value
        path.write_bytes(damaged[:kept] if len(flips) < 2 else damaged)
        try:
            read(path)
        except RunError as error:
            says_one_line(error, "damaged")

    check()
